"""Testing a set of claims: registration, training of their experiments, judgement, report."""
