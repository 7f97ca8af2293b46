"""What every room may use and what needs only the standard library: errors, files, starting a command."""
