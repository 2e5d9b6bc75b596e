"""Figures of an experiment's tables, one module each; ``drawing`` holds what they share.

Each function takes tables and returns a matplotlib ``Figure``; nothing here knows of torch or of training.
``skip-conditioning figures DIRECTORY`` draws those of an experiment. The others show what the tests of the paper's
claims and of its theory found.
"""

from skip_conditioning.figures.bounds_along_training import bounds_along_training as bounds_along_training
from skip_conditioning.figures.conditioning_heat_map import conditioning_heat_map as conditioning_heat_map
from skip_conditioning.figures.conditioning_vs_speed import conditioning_vs_speed as conditioning_vs_speed
from skip_conditioning.figures.convergence_at_infinity import convergence_at_infinity as convergence_at_infinity
from skip_conditioning.figures.curvature_growth import curvature_growth as curvature_growth
from skip_conditioning.figures.dose_response import dose_response as dose_response
from skip_conditioning.figures.drawing.saving import NothingToDrawError as NothingToDrawError
from skip_conditioning.figures.drawing.saving import save as save
from skip_conditioning.figures.forest_plot import forest_plot as forest_plot
from skip_conditioning.figures.intervention_effects import intervention_effects as intervention_effects
from skip_conditioning.figures.learning_rate_sweep import learning_rate_sweep as learning_rate_sweep
from skip_conditioning.figures.loss_curves import loss_curves as loss_curves
from skip_conditioning.figures.matched_conditioning import matched_conditioning as matched_conditioning
from skip_conditioning.figures.measure_ranking import measure_ranking as measure_ranking
from skip_conditioning.figures.random_matrices import random_matrices as random_matrices
from skip_conditioning.figures.regularity_terms import regularity_terms as regularity_terms
from skip_conditioning.figures.singular_value_histograms import singular_value_histograms as singular_value_histograms
from skip_conditioning.figures.singular_value_ridges import singular_value_ridges as singular_value_ridges
