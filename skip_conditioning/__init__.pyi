# ruff: noqa: I001
# The public names by subject; skip_conditioning/__init__.py loads each when it is first used.

# Measure a model, a matrix or an operator.
from .diagnostics.measure import jacobian as jacobian, spectra as spectra, spectrum_of as spectrum_of
from .diagnostics.kernel.tangent_kernel import tangent_kernel as tangent_kernel

# A batch of several parts, and which outputs and loss count.
from .diagnostics.networks.probe import Probe as Probe

# What measurements return.
from .diagnostics.spectrum import Spectrum as Spectrum
from .diagnostics.kernel.result import TangentKernel as TangentKernel

# Watch a training loop, and say what is measured when.
from .diagnostics.monitoring.monitor import SpectrumMonitor as SpectrumMonitor
from .diagnostics.monitoring.measurement import Measurement as Measurement
from .diagnostics.monitoring.schedule import (
    at_steps as at_steps,
    every as every,
    log_spaced as log_spaced,
    until as until,
)

# The same for trainers: LightningCallback, HuggingFaceCallback.
from . import callbacks as callbacks

# Read the tables of an experiment (without loading torch).
from .diagnostics import tables as tables
from .diagnostics.tables import Experiment as Experiment, read_experiment as read_experiment

# Matrices known by their products.
from .diagnostics.linalg.operators import MatrixOperator as MatrixOperator, Operator as Operator
from .diagnostics.jacobians.operator import JacobianOperator as JacobianOperator
from .diagnostics.kernel.operator import TangentKernelOperator as TangentKernelOperator
from .diagnostics.loss.hessian import HessianOperator as HessianOperator

# What can be computed of an operator.
from .diagnostics.linalg.slq import lanczos_density as lanczos_density
from .diagnostics.linalg.extremes import (
    largest_singular_value as largest_singular_value,
    smallest_singular_value as smallest_singular_value,
)
from .diagnostics.linalg.sketching import frobenius_norm as frobenius_norm, randomized_svd as randomized_svd
from .diagnostics.loss.hessian import (
    largest_eigenvalue as largest_eigenvalue,
    smallest_eigenvalue as smallest_eigenvalue,
    spectral_norm as spectral_norm,
)

# The statements of the theory, checked on a model.
from .diagnostics.theory.statement import Statement as Statement
from .diagnostics.theory.chain_rule import chain_rule as chain_rule
from .diagnostics.theory.regularity import Regularity as Regularity, regularity as regularity
from .diagnostics.theory.pl_inequality import PLChain as PLChain, pl_chain as pl_chain
from .diagnostics.theory.curvature import Curvature as Curvature, curvature as curvature
from .diagnostics.theory.curvature_bounds import LayerConstants as LayerConstants, hessian_bound as hessian_bound
from .diagnostics.theory.skip_bound import skip_bound as skip_bound
from .diagnostics.loss.descent import guaranteed_decrease as guaranteed_decrease

# Errors; all are InputErrors.
from .diagnostics.errors import (
    ConstantMapError as ConstantMapError,
    InputError as InputError,
    LayerCallError as LayerCallError,
    MemoryBudgetError as MemoryBudgetError,
    NonFiniteError as NonFiniteError,
    UnknownLayerError as UnknownLayerError,
    UnsupportedModelError as UnsupportedModelError,
)

__version__: str
