"""Networks of the paper and baselines, each a plain chain of modules; shortcuts tell their arms apart."""

from skip_conditioning.models.arms import Arm, chain_shortcut, modified_shortcut, residual_shortcut
from skip_conditioning.models.errors import ModelOptionError
from skip_conditioning.models.initialisation import initialise
from skip_conditioning.models.paper_mnist import build_paper_mnist
from skip_conditioning.models.preact_resnet import build_preact_resnet
from skip_conditioning.models.registry import arms, build_model, default_arm, model_names, model_options
from skip_conditioning.models.residual_mlp import WeightNormLinear, build_residual_mlp
from skip_conditioning.models.shortcuts import (
    ConvolutionShortcut,
    IdentityShortcut,
    NoShortcut,
    OrthogonalShortcut,
    PartialIsometryShortcut,
    PooledIdentityShortcut,
    PreActivationBlock,
    ScaledShortcut,
    ShortcutFactory,
    SumShortcut,
)

__all__ = [
    "Arm",
    "ConvolutionShortcut",
    "IdentityShortcut",
    "ModelOptionError",
    "NoShortcut",
    "OrthogonalShortcut",
    "PartialIsometryShortcut",
    "PooledIdentityShortcut",
    "PreActivationBlock",
    "ScaledShortcut",
    "ShortcutFactory",
    "SumShortcut",
    "WeightNormLinear",
    "arms",
    "build_model",
    "build_paper_mnist",
    "build_preact_resnet",
    "build_residual_mlp",
    "chain_shortcut",
    "default_arm",
    "initialise",
    "model_names",
    "model_options",
    "modified_shortcut",
    "residual_shortcut",
]
