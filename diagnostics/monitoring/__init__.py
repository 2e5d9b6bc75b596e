"""A training loop watched: what is measured when (``schedule``, ``measurement``), at what cost, and the ``monitor``."""
