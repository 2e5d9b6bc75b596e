"""A training loop watched: the ``monitor``, what it measures when and at what cost, and ``callbacks`` for trainers."""
