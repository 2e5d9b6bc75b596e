"""From an experiment's tables to a verdict: claims, paired comparisons, the rules that decide, and the words for it."""
