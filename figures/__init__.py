"""Figures of an experiment's tables, one module each; nothing here knows of torch or of training.

``python -m figures DIR`` draws them all. Each function takes tables and returns a matplotlib ``Figure``.
"""

from skip_conditioning.figures.conditioning_heat_map import conditioning_heat_map
from skip_conditioning.figures.conditioning_vs_speed import conditioning_vs_speed
from skip_conditioning.figures.drawing.saving import save
from skip_conditioning.figures.loss_curves import loss_curves
from skip_conditioning.figures.random_matrices import random_matrices
from skip_conditioning.figures.singular_value_histograms import singular_value_histograms
from skip_conditioning.figures.singular_value_ridges import singular_value_ridges

__all__ = [
    "conditioning_heat_map",
    "conditioning_vs_speed",
    "loss_curves",
    "random_matrices",
    "save",
    "singular_value_histograms",
    "singular_value_ridges",
]
