"""The tangent kernel, layer by layer: ``tangent_kernel`` as a matrix, ``operator`` where it is too large to store."""
