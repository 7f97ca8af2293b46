"""Fuzzing: changed files, settings and server answers go through the project's own commands. See `__main__.py`."""
