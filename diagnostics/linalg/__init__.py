"""Linear algebra that knows no network: operators, Lanczos, quadrature, densities, closed forms, limit laws."""
