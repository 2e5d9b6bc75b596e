"""A training loop watched: what is measured when (``schedule``, ``measurement``), and the ``monitor``."""
