"""What every room may use: work shared among processes, progress bars, sizes of memory."""
