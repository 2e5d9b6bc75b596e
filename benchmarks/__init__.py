"""Measurements against peers, both sides in one run; results with their environment are in ``results/``."""
