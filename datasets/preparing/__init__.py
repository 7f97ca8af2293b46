"""What tools/prepare.py does: download, verify, unpack, arrange and check datasets."""
