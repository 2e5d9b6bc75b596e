"""Saved checkpoints and shortcuts, analysed; the command is ``spectrum_analysis``."""
