"""Commands that are killed at random moments and run again: see `__main__.py`."""
