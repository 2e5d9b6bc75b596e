"""The network of a run, from the registry or the user's factory, built for the data it is trained on."""

import ast
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skip_conditioning.diagnostics.errors import InputError, NonFiniteError, near_matches
from skip_conditioning.experiments.config.train_config import ONLY_ARM
from skip_conditioning.experiments.processes.machine import clear_memory_errors
from skip_conditioning.models import arms, build_model, has_arm, model_options

#: Images wider than this get the ImageNet stem.
_CIFAR_STEM_UP_TO = 64


def check_arms(name: str, chosen: Sequence[str]) -> None:
    """Raise ``InputError`` for an arm the network does not have, or one that cannot name a directory."""
    known = arms(name) or (ONLY_ARM,)
    for arm in chosen:
        if "/" in arm or arm.startswith("."):
            raise InputError(f"arm {arm!r} of {name} cannot be part of a directory's name; rename it")
        if arm not in known and not has_arm(name, arm):
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
        input_shape: Of one input, ``(C, H, W)`` for an image.

    Raises:
        InputError: An option without ``=``, or a network that cannot be trained.
        ModelOptionError: Whatever the model does not have or take, or an error in the user's factory.
    """
    wanted: dict[str, Any] = {
        "num_classes": num_classes,
        "in_channels": input_shape[0],
        "in_features": math.prod(input_shape),
        "stem": "imagenet" if input_shape[-1] > _CIFAR_STEM_UP_TO else "cifar",
    }
    # A user's factory knows its own sizes; a network of the registry gets those among its options.
    known = () if ":" in name else model_options(name)
    sizes = {key: value for key, value in wanted.items() if key in known}
    with clear_memory_errors("give the model smaller --model-options"):
        model = build_model(name, arm=None if arm == ONLY_ARM else arm, **{**sizes, **parse_model_options(options)})
    if any(torch.nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise InputError(f"{name} has lazy layers without a size; call the network once in its factory")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"{name} has no parameter to train")
    return model.train()


def check_network(name: str, model: nn.Module, images: Tensor, num_classes: int) -> None:
    """Check that a network can be trained on some images, by a forward pass in train mode.

    Args:
        name: What to call it in messages.
        model: The network; its buffers and the random streams may change.
        images: Shape ``(N, C, H, W)``, with N no larger than the smallest training batch.
        num_classes: Smallest number of logits that it must have.

    Raises:
        InputError: It cannot be applied to the images, or its output is not ``(N, num_classes)`` or wider.
        NonFiniteError: A weight is NaN or infinite.
    """
    for key, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise NonFiniteError(f"{name}: {key!r} holds NaN or infinity from the start; look at its initialisation")
    try:
        with torch.no_grad():
            logits = model(images)
    except (RuntimeError, ValueError, TypeError) as error:
        shape = " × ".join(map(str, images.shape))
        raise InputError(f"{name} cannot be applied to a batch of {shape} in train mode: {error}") from error
    output = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        raise InputError(f"{name} must return logits of shape ({len(images)}, {num_classes}); it returns {output}")
    if logits.shape[1] < num_classes:
        raise InputError(f"{name} must have a logit for each of the {num_classes} classes; it returns {output}")


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
