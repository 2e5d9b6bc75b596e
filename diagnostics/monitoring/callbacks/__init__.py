"""Callbacks that give the run of a trainer a monitor: ``LightningCallback``, ``HuggingFaceCallback``.

A trainer's package is imported when a callback for it is made.
"""

from skip_conditioning.diagnostics.monitoring.callbacks.hugging_face import HuggingFaceCallback
from skip_conditioning.diagnostics.monitoring.callbacks.lightning import LightningCallback

__all__ = ["HuggingFaceCallback", "LightningCallback"]
