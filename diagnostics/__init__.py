"""Conditioning of a network's layers: Jacobians, their singular values, and a monitor for training loops.

The statements of the theory, measured, are in ``diagnostics.bounds``.

Names are loaded when first used, so that ``diagnostics.tables`` can be read without loading torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diagnostics import tables
    from diagnostics.extremes import largest_singular_value, smallest_singular_value
    from diagnostics.jacobian_operator import JacobianOperator
    from diagnostics.kernel import tangent_kernel
    from diagnostics.kernel_operator import TangentKernelOperator
    from diagnostics.kernel_result import TangentKernel
    from diagnostics.measure import jacobian, spectra
    from diagnostics.monitor import SpectrumMonitor
    from diagnostics.sketching import frobenius_norm, randomized_svd
    from diagnostics.slq import lanczos_density
    from diagnostics.spectrum import Spectrum

__all__ = [
    "JacobianOperator",
    "Spectrum",
    "SpectrumMonitor",
    "TangentKernel",
    "TangentKernelOperator",
    "frobenius_norm",
    "jacobian",
    "lanczos_density",
    "largest_singular_value",
    "randomized_svd",
    "smallest_singular_value",
    "spectra",
    "tables",
    "tangent_kernel",
]

_HOMES = {
    "JacobianOperator": "diagnostics.jacobian_operator",
    "Spectrum": "diagnostics.spectrum",
    "SpectrumMonitor": "diagnostics.monitor",
    "frobenius_norm": "diagnostics.sketching",
    "jacobian": "diagnostics.measure",
    "lanczos_density": "diagnostics.slq",
    "largest_singular_value": "diagnostics.extremes",
    "randomized_svd": "diagnostics.sketching",
    "smallest_singular_value": "diagnostics.extremes",
    "spectra": "diagnostics.measure",
    "TangentKernel": "diagnostics.kernel_result",
    "TangentKernelOperator": "diagnostics.kernel_operator",
    "tangent_kernel": "diagnostics.kernel",
}


def __getattr__(name: str) -> Any:
    if name == "tables":
        return importlib.import_module("diagnostics.tables")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'diagnostics' has no attribute {name!r}")
