"""Spectra of the shortcuts that change the shape, arm by arm: ``skip-conditioning analyse --shortcuts``.

A network's other shortcuts are identities. These are the ones in which the paper's arms ``original`` and ``modified``
differ, and each is linear and acts on disjoint patches, so all its singular values follow from one small matrix.
"""

import copy
import math
import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from skip_conditioning.diagnostics.errors import UnsupportedModelError
from skip_conditioning.diagnostics.linalg.closed_forms import patchwise
from skip_conditioning.experiments.processes.machine import one_thread
from skip_conditioning.experiments.training.networks import build_network
from skip_conditioning.models import PreActivationBlock, arms

MODELS = ("preact-resnet18", "preact-resnet50")

#: The arms that are shown: the paper's, of a network that has them.
PAPER_ARMS = (("original", "modified"), ("chain", "residual", "modified"))

#: Shapes of one image: of CIFAR, and of ImageNet with its stem.
IMAGES = ((3, 32, 32), (3, 224, 224))

#: Unit patches a module is applied to at a time.
_UNIT_PATCHES = 512


def shortcut_table(
    models: Sequence[str] = MODELS,
    *,
    images: Sequence[tuple[int, int, int]] = IMAGES,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """One row per shape-changing shortcut of the paper's arms of freshly initialised networks, for one image.

    The arms of a network have the same weights. Takes about 25 seconds on one core, nearly all of it for ResNet-50.

    Args:
        models: Names of networks of `PreActivationBlock`s.
        images: Shapes ``(C, H, W)`` of an input; above a width of 64 the network has its ImageNet stem.
        seed: Of the weights.
        progress: Whether to show a bar.

    Returns:
        Columns ``model, image, layer, arm``; ``input, output`` (shapes, such as ``64×32×32``); ``rows, cols, rank``;
        ``full_rank``; ``sigma_max``; ``sigma_min_nonzero`` (NaN for the zero map); ``sigma_mean`` (over all
        ``min(rows, cols)`` values); ``zero_share`` (the share of them that are zero); ``blind_share`` (the share of the
        input's dimensions that make no difference to the output); ``condition_number``, infinite exactly where
        ``full_rank`` is False.

    Raises:
        UnsupportedModelError: A shortcut does not act on disjoint patches, or a network has none that changes the
            shape.
        ModelOptionError: There is no such network.
    """
    cases = [(model, image) for model in models for image in images]
    rows = []
    with one_thread(), tqdm(cases, unit="network", dynamic_ncols=True, leave=False, disable=not progress) as bar:
        for model, image in bar:
            bar.set_description(f"{model} {_by(image)}")
            networks = {arm: _fresh(model, arm, image, seed) for arm in _shown(model)}
            by_arm = {arm: _changing_shortcuts(network, image) for arm, network in networks.items()}
            if not any(by_arm.values()):
                raise UnsupportedModelError(f"{model} has no shortcut that changes the shape of its input")
            for layer in next(iter(by_arm.values())):
                keys = {"model": model, "image": _by(image), "layer": layer}
                for arm, shortcuts in by_arm.items():
                    try:
                        rows.append(keys | {"arm": arm} | _row(*shortcuts[layer]))
                    except UnsupportedModelError as error:
                        raise UnsupportedModelError(f"{layer} of {model}, arm {arm}: {error}") from error
    return pd.DataFrame(rows)


def _shown(model: str) -> tuple[str, ...]:
    """The paper's arms of a network; all its arms if it has none of the paper's."""
    known = arms(model)
    return next((shown for shown in PAPER_ARMS if set(shown) <= set(known)), known)


def readable_shortcut_table(frame: pd.DataFrame) -> str:
    """The table of `shortcut_table` as text; an infinite condition number says what it is due to."""
    infinite = "∞: rank-deficient"
    text = frame[["model", "image", "layer", "arm", "input", "output", "rows", "cols", "rank"]].astype(str)
    for name, column in {"σ max": "sigma_max", "σ min ≠ 0": "sigma_min_nonzero", "σ mean": "sigma_mean"}.items():
        text[name] = frame[column].map(lambda value: "none" if math.isnan(value) else f"{value:.3g}")
    text["zero σ"] = frame["zero_share"].map("{:.1%}".format)
    text["blind to"] = frame["blind_share"].map("{:.1%}".format)
    kappas = zip(frame["condition_number"], frame["full_rank"], strict=True)
    text["κ"] = [f"{kappa:.3g}" if full else infinite for kappa, full in kappas]
    return text.to_string(index=False)


def shortcut_report(
    models: Sequence[str] = MODELS, *, images: Sequence[tuple[int, int, int]] = IMAGES, seed: int = 0
) -> str:
    """The table as text, under a heading that explains it; arguments as for `shortcut_table`."""
    frame = shortcut_table(models, images=images, seed=seed, progress=sys.stderr.isatty())
    heading = (
        f"Shortcuts that change the shape, freshly initialised with seed {seed} (the same weights in every arm), "
        f"for one image of {' or '.join(map(_by, images))}.\n"
        "All singular values exactly, in float64, from the matrix that a shortcut applies to each patch. Of the "
        "min(rows, cols) values, rank are not zero; σ mean is over all of them.\n"
        "'blind to': the share of the input's dimensions that make no difference to the shortcut's output.\n"
    )
    return f"{heading}\n{readable_shortcut_table(frame)}"


def patch_matrix(module: nn.Module, input_shape: Sequence[int]) -> tuple[Tensor, int]:
    """The matrix that a module applies to every patch of its input, from the module itself.

    An output pixel's patch is the ``H/H' × W/W'`` pixels it stands for. The module is applied to the unit vectors of
    one patch, in float64; then, at a random input of the full shape, it must agree with that matrix on each patch.

    Args:
        module: Maps ``(N, C_in, H, W)`` to ``(N, C_out, H', W')``, or ``(N, C_in)`` to ``(N, C_out)``: one patch. Left
            as it was; evaluated in eval mode. Linear, a constant aside.
        input_shape: ``(C_in, H, W)`` or ``(C_in,)``.

    Returns:
        The matrix, shape ``(C_out, C_in · H/H' · W/W')``, float64; and the number of patches.

    Raises:
        UnsupportedModelError: The patches do not tile the image, or the module does not act on each of them by itself,
            linearly and in the same way.
    """
    module = copy.deepcopy(module).cpu().double().eval()
    name, channels = type(module).__name__, input_shape[0]
    # A stream of its own: measuring must not move the global stream.
    x = torch.randn(1, *input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = (module(x) - module(torch.zeros_like(x)))[0]
        sides, out_sides = x.shape[2:], y.shape[1:]
        if len(sides) != len(out_sides) or any(a % b for a, b in zip(sides, out_sides, strict=True)):
            raise UnsupportedModelError(
                f"{name} maps {_by(input_shape)} to {_by(y.shape)}, so no patches of equal size tile the image"
            )
        patch = tuple(a // b for a, b in zip(sides, out_sides, strict=True))
        inputs = channels * math.prod(patch)
        units = torch.eye(inputs, dtype=torch.float64).reshape(inputs, channels, *patch)
        constant = module(torch.zeros_like(units[:1]))
        matrix = torch.cat([(module(chunk) - constant).flatten(1) for chunk in units.split(_UNIT_PATCHES)]).T
    split = x.reshape(channels, *(n for pair in zip(out_sides, patch, strict=True) for n in pair))
    pixels, within = range(1, split.dim(), 2), range(2, split.dim(), 2)
    patches = split.permute(*pixels, 0, *within).reshape(-1, inputs)  # (C, H', a, W', b) → (H', W', C, a, b)
    if not torch.allclose(matrix @ patches.T, y.reshape(len(y), -1), rtol=1e-9, atol=1e-9 * float(y.abs().max())):
        raise UnsupportedModelError(
            f"{name} does not apply one matrix to every patch of {_by(patch)} pixels; "
            "use diagnostics.spectra(..., map='layer')"
        )
    return matrix, math.prod(out_sides)


def _fresh(name: str, arm: str, image: tuple[int, int, int], seed: int) -> nn.Module:
    """A network with weights from a seed; the global random stream does not move."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build_network(name, arm, (), num_classes=10, input_shape=image)


def _changing_shortcuts(
    model: nn.Module, image: tuple[int, int, int]
) -> dict[str, tuple[nn.Module, torch.Size, torch.Size]]:
    """Shortcuts that change the shape, by dotted name, with the shapes of one input and output."""
    shortcuts: dict[str, tuple[nn.Module, torch.Size, torch.Size]] = {}
    for name, block in model.named_modules():
        if isinstance(block, PreActivationBlock):

            def record(shortcut: nn.Module, args: tuple[Tensor, ...], y: Tensor, name: str = name) -> None:
                if args[0].shape != y.shape:
                    shortcuts[f"{name}.shortcut"] = (shortcut, args[0].shape[1:], y.shape[1:])

            block.shortcut.register_forward_hook(record)
    with torch.no_grad():
        model.eval()(torch.zeros(1, *image))
    return shortcuts


def _row(shortcut: nn.Module, shape: torch.Size, out_shape: torch.Size) -> dict[str, object]:
    """The columns of one shortcut."""
    matrix, patches = patch_matrix(shortcut, shape)
    values = patchwise(matrix, patches)
    floor = max(matrix.shape) * float(np.finfo(np.float64).eps) * values[0]
    nonzero = values[values > floor]
    rank, cols, full = len(nonzero), math.prod(shape), len(nonzero) == len(values)
    return {
        "input": _by(shape),
        "output": _by(out_shape),
        "rows": math.prod(out_shape),
        "cols": cols,
        "rank": rank,
        "full_rank": full,
        "sigma_max": float(values[0]),
        "sigma_min_nonzero": float(nonzero[-1]) if rank else math.nan,
        "sigma_mean": float(values.mean()),
        "zero_share": 1 - rank / len(values),
        "blind_share": 1 - rank / cols,
        "condition_number": float(values[0] / values[-1]) if full else math.inf,
    }


def _by(shape: Sequence[int]) -> str:
    """A shape as text: ``64×32×32``."""
    return "×".join(map(str, shape))
