"""Networks of the paper and baselines, each a plain chain of modules; shortcuts tell their arms apart."""

from skip_conditioning.models.arms import Arm as Arm
from skip_conditioning.models.arms import chain_shortcut as chain_shortcut
from skip_conditioning.models.arms import modified_shortcut as modified_shortcut
from skip_conditioning.models.arms import residual_shortcut as residual_shortcut
from skip_conditioning.models.errors import ModelOptionError as ModelOptionError
from skip_conditioning.models.initialisation import initialise as initialise
from skip_conditioning.models.paper_mnist import build_paper_mnist as build_paper_mnist
from skip_conditioning.models.preact_resnet import build_preact_resnet as build_preact_resnet
from skip_conditioning.models.registry import arms as arms
from skip_conditioning.models.registry import build_model as build_model
from skip_conditioning.models.registry import default_arm as default_arm
from skip_conditioning.models.registry import has_arm as has_arm
from skip_conditioning.models.registry import model_names as model_names
from skip_conditioning.models.registry import model_options as model_options
from skip_conditioning.models.residual_mlp import WeightNormLinear as WeightNormLinear
from skip_conditioning.models.residual_mlp import build_residual_mlp as build_residual_mlp
from skip_conditioning.models.shortcuts import ConvolutionShortcut as ConvolutionShortcut
from skip_conditioning.models.shortcuts import IdentityShortcut as IdentityShortcut
from skip_conditioning.models.shortcuts import NoShortcut as NoShortcut
from skip_conditioning.models.shortcuts import OrthogonalShortcut as OrthogonalShortcut
from skip_conditioning.models.shortcuts import PartialIsometryShortcut as PartialIsometryShortcut
from skip_conditioning.models.shortcuts import PooledIdentityShortcut as PooledIdentityShortcut
from skip_conditioning.models.shortcuts import PreActivationBlock as PreActivationBlock
from skip_conditioning.models.shortcuts import ScaledShortcut as ScaledShortcut
from skip_conditioning.models.shortcuts import ShortcutFactory as ShortcutFactory
from skip_conditioning.models.shortcuts import SumShortcut as SumShortcut
