"""Networks by name: ``build_model("preact-resnet18", arm="modified", num_classes=100)``."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from skip_conditioning.models import contractive_mlp, paper_mnist, preact_resnet, residual_mlp
from skip_conditioning.models.arms import Arm, dosed_arm
from skip_conditioning.models.errors import ModelOptionError, check_choice
from skip_conditioning.models.shortcuts import NoShortcut
from skip_conditioning.models.user_code import load_attribute, raised


@dataclass(frozen=True)
class Entry:
    """A network in the registry.

    Attributes:
        builder: Called with an arm and keyword options; these are its keyword-only parameters.
        arms: Names of the arms.
        default_arm: The arm that is built when none is asked for.
    """

    builder: Callable[..., nn.Module]
    arms: tuple[str, ...]
    default_arm: str


REGISTRY: dict[str, Entry] = {
    "paper-mnist": Entry(paper_mnist.build_paper_mnist, tuple(paper_mnist.ARMS), "residual"),
    **{
        f"preact-resnet{layers}": Entry(
            partial(preact_resnet.build_preact_resnet, layers), tuple(preact_resnet.ARMS), "original"
        )
        for layers in preact_resnet.BLOCKS
    },
    "residual-mlp": Entry(residual_mlp.build_residual_mlp, tuple(residual_mlp.arms_with_gain(1.0)), "residual"),
    "contractive-mlp": Entry(contractive_mlp.build_contractive_mlp, tuple(contractive_mlp.ARMS), "residual"),
}
"""Every network of this package, by name."""


def build_model(name: str, *, arm: str | Arm | None = None, **options: Any) -> nn.Module:
    """Build a network, with parameters drawn from the global random stream.

    The same seed gives the same parameters for every arm with the same initialisation, bit for bit.

    Args:
        name: A name of `model_names`, or ``package.module:factory`` or ``file.py:factory`` (`load_attribute`), any
            callable that returns an `nn.Module`.
        arm: A name of `arms`, or an `Arm` of your own. By default ``residual`` or ``original``: the
            network with its usual skips. A factory is passed ``arm=`` only if one is given.
        **options: The network's options (`model_options`), or the factory's keyword arguments.

    Returns:
        The network, in train mode, on the CPU unless a `torch.device` context says otherwise.

    Raises:
        ModelOptionError: The name, the arm, an option or its value does not exist, in one line.
    """
    if ":" in name:
        return _build_from_factory(name, options if arm is None else {"arm": arm, **options})
    entry = _entry(name)
    for option in options:
        check_choice(f"option of {name}", option, model_options(name))
    return entry.builder(entry.default_arm if arm is None else arm, **options)


def model_names() -> tuple[str, ...]:
    """Names of all networks, in the order in which to list them."""
    return tuple(REGISTRY)


def arms(name: str) -> tuple[str, ...]:
    """Names of a network's arms.

    Args:
        name: As for `build_model`. A factory declares its arms in an attribute, ``factory.arms = ("a",
            "b")``; without it there are none to choose from.

    Raises:
        ModelOptionError: There is no such network.
    """
    if ":" in name:
        return tuple(getattr(_load_factory(name), "arms", ()))
    return _entry(name).arms


def has_arm(name: str, arm: str) -> bool:
    """Whether a network has an arm, by its name in `arms` or, of ``residual-mlp``, with a dose in it (`arms.DOSES`).

    Args:
        name: As for `build_model`.
        arm: The arm.

    Raises:
        ModelOptionError: There is no such network.
    """
    return arm in arms(name) or (
        name == "residual-mlp" and dosed_arm(arm, lambda _: NoShortcut, NoShortcut) is not None
    )


def default_arm(name: str) -> str:
    """The arm of a named network that `build_model` builds when none is asked for.

    Raises:
        ModelOptionError: There is no such network.
    """
    return _entry(name).default_arm


def model_options(name: str) -> dict[str, inspect.Parameter]:
    """Options of a named network, with their defaults and annotations.

    Raises:
        ModelOptionError: There is no such network.
    """
    parameters = inspect.signature(_entry(name).builder).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def _entry(name: str) -> Entry:
    """The registry's entry, or an error that offers the near matches."""
    if name.endswith(".py"):
        raise ModelOptionError(f"model {name!r} names a file, but no factory in it; give {name}:factory")
    check_choice("model", name, REGISTRY)
    return REGISTRY[name]


def _load_factory(path: str) -> Callable[..., Any]:
    """Import ``package.module:factory`` or ``file.py:factory``.

    Raises:
        ModelOptionError: The module cannot be imported, or has no such callable.
    """
    try:
        factory = load_attribute(path)
    except ImportError as error:
        raise ModelOptionError(f"model {path!r}: {error}") from error
    if not callable(factory):
        kind = type(factory).__name__
        raise ModelOptionError(f"model {path!r} is of type {kind} and cannot be called; name a factory")
    return factory


def _build_from_factory(path: str, options: dict[str, Any]) -> nn.Module:
    """Call a factory.

    Raises:
        ModelOptionError: It does not take these options, raises an error, or does not return an `nn.Module`.
    """
    factory = _load_factory(path)
    returned = _returned_type(factory)
    if returned is not None and not issubclass(returned, nn.Module):
        raise ModelOptionError(f"model {path!r} returns {returned.__name__}, not an nn.Module, and is not called")
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ModelOptionError(f"model {path!r}: {error}") from error
    except ValueError:  # of a few built-in classes there is no signature
        pass
    try:
        model = factory(**options)
    except Exception as error:  # whatever the user's code raises
        raise ModelOptionError(f"model {path!r} {raised(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelOptionError(f"model {path!r}: the factory returned {type(model).__name__}, not an nn.Module")
    return model


def _returned_type(factory: Callable[..., Any]) -> type | None:
    """What a class makes, or a function is annotated to return; None where nothing says so."""
    if isinstance(factory, type):
        return factory
    annotation = getattr(factory, "__annotations__", {}).get("return")
    return annotation if isinstance(annotation, type) and annotation is not object else None
