"""A training loop watched: what is measured when (``schedule``, ``measurement``), what that costs, and the ``monitor``."""
