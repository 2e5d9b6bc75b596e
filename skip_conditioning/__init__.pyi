from .diagnostics import tables as tables
from .diagnostics.errors import (
    InputError as InputError,
)
from .diagnostics.errors import (
    LayerCallError as LayerCallError,
)
from .diagnostics.errors import (
    MemoryBudgetError as MemoryBudgetError,
)
from .diagnostics.errors import (
    NonFiniteError as NonFiniteError,
)
from .diagnostics.errors import (
    UnknownLayerError as UnknownLayerError,
)
from .diagnostics.errors import (
    UnsupportedModelError as UnsupportedModelError,
)
from .diagnostics.jacobians.operator import JacobianOperator as JacobianOperator
from .diagnostics.kernel.operator import TangentKernelOperator as TangentKernelOperator
from .diagnostics.kernel.result import TangentKernel as TangentKernel
from .diagnostics.kernel.tangent_kernel import tangent_kernel as tangent_kernel
from .diagnostics.linalg.extremes import (
    largest_singular_value as largest_singular_value,
)
from .diagnostics.linalg.extremes import (
    smallest_singular_value as smallest_singular_value,
)
from .diagnostics.linalg.operators import MatrixOperator as MatrixOperator
from .diagnostics.linalg.operators import Operator as Operator
from .diagnostics.linalg.sketching import frobenius_norm as frobenius_norm
from .diagnostics.linalg.sketching import randomized_svd as randomized_svd
from .diagnostics.linalg.slq import lanczos_density as lanczos_density
from .diagnostics.loss.descent import guaranteed_decrease as guaranteed_decrease
from .diagnostics.loss.hessian import (
    HessianOperator as HessianOperator,
)
from .diagnostics.loss.hessian import (
    largest_eigenvalue as largest_eigenvalue,
)
from .diagnostics.loss.hessian import (
    smallest_eigenvalue as smallest_eigenvalue,
)
from .diagnostics.loss.hessian import (
    spectral_norm as spectral_norm,
)
from .diagnostics.measure import jacobian as jacobian
from .diagnostics.measure import spectra as spectra
from .diagnostics.monitoring.measurement import Measurement as Measurement
from .diagnostics.monitoring.monitor import SpectrumMonitor as SpectrumMonitor
from .diagnostics.monitoring.schedule import (
    at_steps as at_steps,
)
from .diagnostics.monitoring.schedule import (
    every as every,
)
from .diagnostics.monitoring.schedule import (
    log_spaced as log_spaced,
)
from .diagnostics.monitoring.schedule import (
    until as until,
)
from .diagnostics.spectrum import Spectrum as Spectrum
from .diagnostics.tables import Experiment as Experiment
from .diagnostics.tables import read_experiment as read_experiment
from .diagnostics.theory.chain_rule import chain_rule as chain_rule
from .diagnostics.theory.curvature import Curvature as Curvature
from .diagnostics.theory.curvature import curvature as curvature
from .diagnostics.theory.curvature_bounds import LayerConstants as LayerConstants
from .diagnostics.theory.curvature_bounds import hessian_bound as hessian_bound
from .diagnostics.theory.pl_inequality import PLChain as PLChain
from .diagnostics.theory.pl_inequality import pl_chain as pl_chain
from .diagnostics.theory.regularity import Regularity as Regularity
from .diagnostics.theory.regularity import regularity as regularity
from .diagnostics.theory.skip_bound import skip_bound as skip_bound
from .diagnostics.theory.statement import Statement as Statement

__version__: str
