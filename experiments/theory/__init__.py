"""The theory's statements, checked on networks that train: ``skip-conditioning theory [NAME…] --out DIR``.

The experiments are in `along_training` (chain rule, regularity, skips, PŁ chain), `random_matrices`,
`curvature_growth` and `convergence`; `networks` holds the networks, `experiment` what goes in and comes out.
"""
