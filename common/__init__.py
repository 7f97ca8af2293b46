"""Shared by all folders: errors, files, downloads, the start of a command. It needs the standard library and tqdm."""
