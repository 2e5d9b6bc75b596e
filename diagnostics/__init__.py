"""Conditioning of a network's layers: Jacobians, their singular values, and a monitor for training loops.

Names are loaded when first used, so that ``diagnostics.tables`` can be read without loading torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diagnostics import tables
    from diagnostics.jacobian_operator import JacobianOperator
    from diagnostics.measure import jacobian, spectra
    from diagnostics.monitor import SpectrumMonitor
    from diagnostics.spectrum import Spectrum

__all__ = ["JacobianOperator", "Spectrum", "SpectrumMonitor", "jacobian", "spectra", "tables"]

_HOMES = {
    "JacobianOperator": "diagnostics.jacobian_operator",
    "Spectrum": "diagnostics.spectrum",
    "SpectrumMonitor": "diagnostics.monitor",
    "jacobian": "diagnostics.measure",
    "spectra": "diagnostics.measure",
}


def __getattr__(name: str) -> Any:
    if name == "tables":
        return importlib.import_module("diagnostics.tables")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'diagnostics' has no attribute {name!r}")
