"""The library: conditioning of a network's layers, measured. Knows torch, numpy, scipy and pandas, and no other room.

``measure`` has the two functions that measure a model, ``spectrum`` what they return, ``tables`` what is kept on disk,
``errors`` what a user can meet. Behind them, each folder importing only those below it: ``monitoring`` (a training loop
watched), ``theory`` (the paper's statements), ``kernel`` and ``loss``, ``jacobians``, ``networks`` (all that touches
somebody's ``nn.Module``), ``linalg`` (algorithms that know no network), ``support``. Users import the names that
``skip_conditioning`` exports.
"""

from skip_conditioning.diagnostics import tables as tables
