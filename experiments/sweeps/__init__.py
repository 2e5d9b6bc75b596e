"""Many runs at once: on the cores of this machine (``workers``), or on a cluster (``jobs``)."""
