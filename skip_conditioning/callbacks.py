"""Callbacks for trainers, whose packages are imported when a callback is made."""

from skip_conditioning.diagnostics.monitoring.callbacks import HuggingFaceCallback, LightningCallback

__all__ = ["HuggingFaceCallback", "LightningCallback"]
