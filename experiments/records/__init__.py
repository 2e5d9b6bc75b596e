"""What an experiment leaves on disk: its directory, checkpoints, logs, and the speed table."""
