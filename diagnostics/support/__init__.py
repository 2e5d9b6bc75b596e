"""What every room may use: work shared among processes, and progress bars."""
