"""What every room may use: errors, files, downloads, starting a command. Only the standard library and tqdm are needed."""
