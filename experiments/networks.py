"""The network of a run, from the registry or the user's factory, built for the data it is trained on."""

import ast
from collections.abc import Sequence
from typing import Any

from torch import nn

from diagnostics.errors import InputError, near_matches
from models import arms, build_model, model_options

#: The arm of a user's factory that declares none.
ONLY_ARM = "default"

#: Images wider than this get the ImageNet stem.
_CIFAR_STEM_UP_TO = 64


def check_arms(name: str, chosen: Sequence[str]) -> None:
    """Raise ``InputError`` for an arm the network does not have, or one named twice."""
    known = arms(name) or (ONLY_ARM,)
    for arm in chosen:
        if arm not in known:
            raise InputError(
                f"unknown arm {arm!r} of {name}; it has {', '.join(known)} (--arms).{near_matches(arm, known)}"
            )


def build_network(
    name: str, arm: str, options: Sequence[str], *, num_classes: int, input_shape: Sequence[int]
) -> nn.Module:
    """A network in train mode, initialised from the global random stream.

    Args:
        name: As for ``models.build_model``.
        arm: One of its arms, or ``ONLY_ARM``.
        options: Options of the model, each ``name=value``, such as ``depth=16``.
        num_classes: Number of logits.
        input_shape: ``(C, H, W)`` of one image.

    Raises:
        InputError: An option without ``=``.
        ModelOptionError: Whatever the model does not have or take.
    """
    wanted: dict[str, Any] = {
        "num_classes": num_classes,
        "in_channels": input_shape[0],
        "in_features": input_shape[0] * input_shape[1] * input_shape[2],
        "stem": "imagenet" if input_shape[-1] > _CIFAR_STEM_UP_TO else "cifar",
    }
    # A user's factory knows its own sizes; a network of the registry is told those it asks for.
    known = () if ":" in name else model_options(name)
    sizes = {key: value for key, value in wanted.items() if key in known}
    return build_model(name, arm=None if arm == ONLY_ARM else arm, **{**sizes, **parse_model_options(options)}).train()


def parse_model_options(options: Sequence[str]) -> dict[str, Any]:
    """``["depth=16", "normaliser=batch"]`` as keyword arguments: Python literals, or else text.

    Raises:
        InputError: One of them is not of the form ``name=value``.
    """
    parsed = {}
    for option in options:
        name, sign, value = option.partition("=")
        if not sign or not name.isidentifier():
            raise InputError(f"model option {option!r} is not of the form name=value, such as depth=16")
        try:
            parsed[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed[name] = value
    return parsed
