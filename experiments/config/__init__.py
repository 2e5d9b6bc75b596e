"""The options of an experiment, its presets, and the command line."""
