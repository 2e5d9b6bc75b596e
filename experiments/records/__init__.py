"""What an experiment leaves on disk: its directory, checkpoints, locks, logs, provenance, and the speed table."""
