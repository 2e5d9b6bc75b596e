"""From an experiment's tables to a verdict: claims, paired comparisons, the rule that decides, numbers as texts."""
