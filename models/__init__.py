"""Networks of the paper and baselines, each a plain chain of modules; shortcuts tell their arms apart."""

from models.arms import Arm, chain_shortcut, modified_shortcut, residual_shortcut
from models.blocks import PreActivationBlock
from models.errors import ModelOptionError
from models.initialisation import initialise
from models.paper_mnist import build_paper_mnist
from models.preact_resnet import build_preact_resnet
from models.registry import arms, build_model, default_arm, model_names, model_options
from models.residual_mlp import WeightNormLinear, build_residual_mlp
from models.shortcuts import (
    ConvolutionShortcut,
    IdentityShortcut,
    NoShortcut,
    OrthogonalShortcut,
    PartialIsometryShortcut,
    PooledIdentityShortcut,
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
