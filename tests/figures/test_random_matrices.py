import numpy as np
from matplotlib.colors import to_hex
from matplotlib.patches import StepPatch

from skip_conditioning.figures import random_matrices
from skip_conditioning.figures.random_matrices import random_matrix_spectra


def test_spectra_are_those_of_the_paper() -> None:
    spectra = random_matrix_spectra(seed=3)
    squares = {name: np.mean(values**2) for name, values in spectra.items()}
    np.testing.assert_allclose(squares["A"], 1 / 3, rtol=0.02)  # variance of the entries times the size
    np.testing.assert_allclose(squares["I + A"], 4 / 3, rtol=0.02)
    assert spectra["A"][-1] < 0.01 < 0.2 < spectra["I + A"][-1]


def test_the_seed_decides() -> None:
    first, again, other = (random_matrix_spectra(20, seed)["A"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_histograms_have_30_bins_on_0_to_2() -> None:
    figure = random_matrices(size=100)
    outlines = [p for p in figure.axes[0].patches if isinstance(p, StepPatch) and p.get_label().startswith("σ")]
    assert len(outlines) == 2
    for outline, values in zip(outlines, random_matrix_spectra(size=100).values(), strict=True):
        counts, edges = np.histogram(values, 30, (0, 2))
        np.testing.assert_array_equal(outline.get_data().values, counts)
        np.testing.assert_allclose(outline.get_data().edges, edges)


def test_limit_laws_lie_over_the_histograms() -> None:
    size = 300
    axis = random_matrices(size).axes[0]
    laws = [line for line in axis.lines if line.get_label().startswith("limit law of σ")]
    assert len(laws) == 2
    for law, outline in zip(laws, [p for p in axis.patches if isinstance(p, StepPatch)], strict=True):
        sigma, counts = law.get_data()
        values, edges, _ = outline.get_data()
        np.testing.assert_allclose(np.trapezoid(counts, sigma) / (edges[1] - edges[0]), size, rtol=1e-3)
        centres = (edges[1:] + edges[:-1]) / 2
        np.testing.assert_allclose(np.interp(centres, sigma, counts, 0, 0), values, atol=4)
        assert law.get_color() == to_hex(outline.get_edgecolor())


def test_triangles_mark_the_lower_edges() -> None:
    axis = random_matrices(size=50).axes[0]
    marks = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "^"]
    np.testing.assert_allclose(marks, [0, 12**-0.5], atol=1e-12)
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert "limit law of σ(A), from 0 (▲) to 1.15" in labels
    assert "limit law of σ(I + A), from 0.289 (▲) to 1.89" in labels
