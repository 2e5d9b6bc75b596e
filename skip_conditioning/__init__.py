"""Conditioning of a network's layers while it trains: Jacobians, their singular values, the tangent kernel.

The public names, and where each lives, are listed once in ``__init__.pyi`` beside this file, which editors and type
checkers read too. Each is loaded when it is first used, so that reading tables does not load torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
