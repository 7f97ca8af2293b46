"""Behind tools/prepare.py: download, verify, unpack, arrange and check datasets."""
