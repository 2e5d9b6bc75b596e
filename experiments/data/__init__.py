"""Data sets, and batches of them as a function of the step."""
