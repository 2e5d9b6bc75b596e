"""The theory's statements, checked on networks that train: ``skip-conditioning theory [NAME…] --out DIR``.

The experiments are in `layers` (chain rule, regularity, skips), `random_matrices`, `pl_along_training`,
`curvature_growth` and `convergence`; `networks` holds the networks, `options` and `report` what goes in and comes out.
"""
