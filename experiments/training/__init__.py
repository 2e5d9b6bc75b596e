"""Training: the runs of an experiment, the network of each, its loop, and what it will take."""
