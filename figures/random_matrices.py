"""The random-matrix picture of a skip connection: σ(A) reaches 0, σ(I + A) stays away from it."""

import math

import matplotlib
import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from skip_conditioning.diagnostics.linalg.limit_laws import SingularValueLaw
from skip_conditioning.figures.drawing.style import SETTINGS, arm_styles, new_figure

_BINS, _RANGE = 30, (0.0, 2.0)

#: Limits of the singular values of the two matrices as they grow: n times the variance of the entries is 1/3.
_LAWS = {"A": SingularValueLaw(0, 1 / math.sqrt(3)), "I + A": SingularValueLaw(1, 1 / math.sqrt(3))}


@matplotlib.rc_context(SETTINGS)
def random_matrices(size: int = 500, seed: int = 0) -> Figure:
    """Histograms of σ(A) and σ(I + A), 30 bins on (0, 2) as in the paper, under the limit laws for a large A.

    A law is drawn as the number of singular values that it expects in a bin around each σ; a triangle marks where it
    begins.

    Args:
        size: Rows and columns of A.
        seed: Of A.
    """
    spectra = random_matrix_spectra(size, seed)
    styles = arm_styles(["chain", "residual"])
    figure = new_figure(3.6)
    axis = figure.subplots()
    for (name, values), style in zip(spectra.items(), styles.values(), strict=True):
        counts, edges = np.histogram(values, _BINS, _RANGE)
        axis.stairs(
            counts, edges, fill=True, facecolor=to_rgba(style.colour, 0.2),
            edgecolor=style.colour, linewidth=0.6, label=f"σ({name}), smallest {values[-1]:.3g}",
        )  # fmt: skip
        law = _LAWS[name]
        low, high = law.edges
        grid = np.linspace(low, high, 1001)
        axis.plot(
            grid, size * (edges[1] - edges[0]) * law.density(grid), color=style.colour, linestyle=style.line,
            linewidth=1.8, label=f"limit law of σ({name}), from {low:.3g} (▲) to {high:.3g}",
        )  # fmt: skip
        axis.plot(low, 0, "^", color=style.colour, markersize=8, clip_on=False, zorder=3)
    beyond = max(int(np.sum(values > _RANGE[1])) for values in spectra.values())
    axis.set(
        xlim=_RANGE,
        ylim=(0, None),
        xlabel="singular value" + (f" ({beyond} beyond the axis)" if beyond else ""),
        ylabel="singular values per bin",
        title=f"A: {size}×{size}, entries uniform on ±1/√{size}",
    )
    axis.legend()
    return figure


def random_matrix_spectra(size: int = 500, seed: int = 0) -> dict[str, np.ndarray]:
    """Singular values, descending, of A, with entries uniform on ±1/√size, and of I + A (the keys).

    Here ‖A‖ → 2/√3 > 1, so the bound ``σ_min(I + A) ≥ 1 − ‖A‖`` says nothing.
    """
    bound = 1 / np.sqrt(size)
    matrix = np.random.default_rng(seed).uniform(-bound, bound, (size, size))
    return {
        "A": np.linalg.svd(matrix, compute_uv=False),
        "I + A": np.linalg.svd(np.eye(size) + matrix, compute_uv=False),
    }
