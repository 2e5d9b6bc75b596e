"""Jacobians of maps: as rows, as an operator, and their singular values, exactly or matrix-free."""
