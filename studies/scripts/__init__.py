"""The scripts in scripts/: which runs each of them starts."""
