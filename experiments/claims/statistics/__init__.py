"""Statistics, which know nothing of experiments: paired tests, intervals, mediation, prediction, correlation."""
