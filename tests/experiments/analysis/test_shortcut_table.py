"""The table of shortcuts against dense Jacobians of the same networks, and what it refuses."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.errors import UnsupportedModelError
from skip_conditioning.diagnostics.linalg.closed_forms import patchwise
from skip_conditioning.experiments import spectrum_analysis
from skip_conditioning.experiments.analysis.shortcut_table import (
    patch_matrix,
    readable_shortcut_table,
    shortcut_report,
    shortcut_table,
)
from skip_conditioning.models import (
    ConvolutionShortcut,
    IdentityShortcut,
    NoShortcut,
    OrthogonalShortcut,
    PartialIsometryShortcut,
    PooledIdentityShortcut,
    PreActivationBlock,
    ScaledShortcut,
    SumShortcut,
    build_model,
    modified_shortcut,
    residual_shortcut,
)

SHORTCUTS = {
    "none": (NoShortcut(2, 3, 2), (2, 4, 6)),
    "identity": (IdentityShortcut(), (2, 3, 4)),
    "scaled": (ScaledShortcut(PooledIdentityShortcut(2, 3, 2), -0.25), (2, 4, 6)),
    "convolution": (ConvolutionShortcut(3, 5, 2), (3, 4, 6)),
    "convolution to fewer channels": (ConvolutionShortcut(5, 3, 2), (5, 4, 6)),
    "convolution with bias and gain": (ConvolutionShortcut(3, 5, 3, bias=True, gain=0.5), (3, 6, 3)),
    "convolution of stride 1": (ConvolutionShortcut(3, 5, 1), (3, 5, 2)),
    "unused convolution": (ConvolutionShortcut(3, 5, 2, gain=0.0), (3, 4, 4)),
    "pooled identity": (PooledIdentityShortcut(2, 5, 2), (2, 4, 6)),
    "partial isometry": (PartialIsometryShortcut(3, 5, 2, rank=4), (3, 4, 6)),
    "partial isometry of vectors": (PartialIsometryShortcut(5, 3, rank=2), (5,)),
    "orthogonal": (OrthogonalShortcut(3), (3, 2, 3)),
    "original": (residual_shortcut(3, 6, 2), (3, 4, 6)),
    "modified": (modified_shortcut(3, 6, 2), (3, 4, 6)),
    "modified with bias": (modified_shortcut(3, 6, 3, bias=True), (3, 6, 3)),
    "sum": (SumShortcut(a=ConvolutionShortcut(2, 4, 2), b=PartialIsometryShortcut(2, 4, 2)), (2, 4, 4)),
}

MODULE = "skip_conditioning.experiments.analysis.shortcut_table"


def dense_values(module: nn.Module, *shape: int) -> np.ndarray:
    """All singular values of a module, by SVD of its Jacobian from plain autograd."""
    J = torch.autograd.functional.jacobian(copy.deepcopy(module).double(), torch.randn(1, *shape).double())
    return torch.linalg.svdvals(J.reshape(-1, math.prod(shape))).numpy()


@pytest.mark.parametrize(("shortcut", "shape"), SHORTCUTS.values(), ids=SHORTCUTS)
def test_every_shortcut_from_its_patches_and_from_its_dense_jacobian(shortcut, shape) -> None:
    expected = dense_values(shortcut, *shape)
    measured = patchwise(*patch_matrix(shortcut, shape))
    np.testing.assert_allclose(measured, expected, rtol=0, atol=1e-13 * max(expected[0], 1))


def test_the_matrix_of_the_modified_shortcut_is_the_convolution_at_one_pixel_plus_the_pool() -> None:
    shortcut = modified_shortcut(2, 4, 2)
    matrix, patches = patch_matrix(shortcut, (2, 6, 4))
    expected = torch.zeros(4, 2, 2, 2, dtype=torch.float64)
    expected[:, :, 0, 0] = shortcut.conv.weight.detach()[:, :, 0, 0]
    expected[[1, 2], [0, 1]] += 0.5
    torch.testing.assert_close(matrix, expected.flatten(1))
    assert patches == 6


def test_the_module_and_the_random_stream_are_left_alone(nothing_changes) -> None:
    shortcut = modified_shortcut(2, 4, 2).train()
    with nothing_changes(shortcut):
        patch_matrix(shortcut, (2, 4, 4))
        shortcut_table(["paper-mnist"], images=[(1, 28, 28)])


class Centred(nn.AvgPool2d):
    """Pooling less the mean over the image: linear, alike on all patches, but each output reads all of them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y - y.mean((2, 3), keepdim=True)


NOT_PATCHWISE = {
    "overlapping": nn.Conv2d(2, 3, 3, stride=2, padding=1),
    "shifted": nn.Conv2d(2, 3, 2, stride=2, padding=1, dilation=2),
    "not linear": nn.Sequential(nn.AvgPool2d(2), nn.ReLU()),
    "centred": Centred(2),
}


@pytest.mark.parametrize("module", NOT_PATCHWISE.values(), ids=NOT_PATCHWISE)
def test_what_does_not_act_on_patches_is_refused(module) -> None:
    with pytest.raises(UnsupportedModelError, match=r"one matrix to every patch of 2×2 pixels.*map='layer'"):
        patch_matrix(module, (2, 4, 6))


def test_patches_that_do_not_tile_the_image_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="ConvolutionShortcut maps 2×5×4 to 3×3×2, so no patches"):
        patch_matrix(ConvolutionShortcut(2, 3, 2), (2, 5, 4))


def test_a_small_network_against_its_dense_jacobians() -> None:
    table = shortcut_table(["paper-mnist"], images=[(1, 28, 28)], seed=3).set_index("arm")
    assert list(table.index) == ["chain", "residual", "modified"]
    assert set(table["layer"]) == {"block2.shortcut"}
    for arm, row in table.iterrows():
        torch.manual_seed(3)
        values = dense_values(build_model("paper-mnist", arm=arm).block2.shortcut, 5, 12, 12)
        nonzero = values[values > 1e-10]
        assert (row["input"], row["output"], row["rows"], row["cols"]) == ("5×12×12", "20×4×4", 320, 720)
        assert row["rank"] == len(nonzero)
        assert row["sigma_max"] == pytest.approx(values[0])
        assert row["sigma_mean"] == pytest.approx(values.mean())
        assert row["zero_share"] == pytest.approx(1 - len(nonzero) / 320)
        assert row["blind_share"] == pytest.approx(1 - len(nonzero) / 720)
        if len(nonzero):
            assert row["sigma_min_nonzero"] == pytest.approx(nonzero[-1])
    assert list(table["rank"]) == [0, 80, 160]
    assert not table["full_rank"].any()
    assert np.isinf(table["condition_number"]).all()


def test_resnet18_as_the_theory_has_it() -> None:
    table = shortcut_table(["preact-resnet18"], images=[(3, 32, 32)])
    assert list(table["layer"]) == [f"layer{stage}.0.shortcut" for stage in (2, 3, 4) for _ in "12"]
    assert list(table["input"][::2]) == ["64×32×32", "128×16×16", "256×8×8"]
    # The convolution reads one pixel in four, all of C_in channels; with the pool all 2·C_in outputs are reached.
    original, modified = (table[table["arm"] == arm] for arm in ("original", "modified"))
    np.testing.assert_array_equal(original["rank"], original["cols"] // 4)
    np.testing.assert_array_equal(modified["rank"], modified["rows"])
    assert not original["full_rank"].any()
    assert np.isinf(original["condition_number"]).all()
    assert modified["full_rank"].all()
    np.testing.assert_allclose(modified["condition_number"], modified["sigma_max"] / modified["sigma_min_nonzero"])
    # Random weights, uniform on ±1/√C_in, have σ from (√2 − 1)/√3 to (√2 + 1)/√3 (Marchenko & Pastur).
    np.testing.assert_allclose(original["sigma_max"], (math.sqrt(2) + 1) / math.sqrt(3), rtol=0.06)


def test_the_text_marks_what_is_rank_deficient_and_has_no_bare_infinity() -> None:
    lines = readable_shortcut_table(shortcut_table(["paper-mnist"], images=[(1, 28, 28)])).splitlines()
    assert len(lines) == 4
    assert all(line.endswith("∞: rank-deficient") for line in lines[1:])
    assert "none" in lines[1]  # the chain's shortcut is the zero map
    assert not any(word in " ".join(lines) for word in ("inf", "nan", "NaN"))


def test_a_network_that_the_table_cannot_describe_is_named(monkeypatch) -> None:
    monkeypatch.setattr(f"{MODULE}.arms", lambda name: ("only",))
    block = PreActivationBlock(nn.Identity(), nn.Conv2d(3, 4, 1, stride=2), nn.Conv2d(3, 4, 3, stride=2, padding=1))
    monkeypatch.setattr(
        f"{MODULE}.build_network",
        lambda *args, **kwargs: nn.Sequential(block),
    )
    with pytest.raises(UnsupportedModelError, match=r"0\.shortcut of mine, arm only: Conv2d does not apply one matrix"):
        shortcut_table(["mine"], images=[(3, 8, 8)])
    monkeypatch.setattr(f"{MODULE}.build_network", lambda *args, **kwargs: nn.Flatten())
    with pytest.raises(UnsupportedModelError, match="mine has no shortcut that changes the shape"):
        shortcut_table(["mine"], images=[(3, 8, 8)])


def test_the_command_line_prints_the_table_and_needs_no_path(monkeypatch, capsys) -> None:
    small = functools.partial(shortcut_report, ["paper-mnist"], images=[(1, 28, 28)])
    monkeypatch.setattr(spectrum_analysis, "shortcut_report", small)
    assert spectrum_analysis.main(["--shortcuts", "--seed", "5"]) == 0
    printed = capsys.readouterr().out
    for words in ("seed 5", "1×28×28", "block2.shortcut", "modified", "20×4×4", "∞: rank-deficient"):
        assert words in printed


def test_shortcuts_and_a_path_are_two_commands(tmp_path, capsys) -> None:
    assert spectrum_analysis.main(["--shortcuts", str(tmp_path)]) == 2
    assert "--shortcuts" in capsys.readouterr().err
