"""What every room may use: errors, files, downloads, starting a command. It needs only the standard library and tqdm."""
