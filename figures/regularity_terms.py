"""The regularity bound term by term: each layer's part of the kernel's smallest eigenvalue, and its bound."""

import textwrap

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from skip_conditioning.figures.drawing.style import GREY, SETTINGS, arm_styles, log_axis, new_figure

#: Kinds of terms: how they are marked, and what they are.
_KINDS = {
    "restricted": ("^", "its term, restricted to the directions that matter"),
    "plain": ("s", "its term λ(Df_l) Π λ(Jf_j)"),
}
#: Where vacuous terms are marked: so far below the smallest positive value.
_BELOW = 10.0


@matplotlib.rc_context(SETTINGS)
def regularity_terms(table: pd.DataFrame) -> Figure:
    """One panel for each network after its training: every layer's share of the kernel, and its terms of the bound.

    Args:
        table: Columns ``network``, ``step``, ``subspace``, ``lambda``, ``kind``, ``layer``, ``lambda_share``, ``term``
            and ``cause``, as ``skip-conditioning theory regularity`` writes them; rows of the
            ``subspace`` ``all`` are shown.
    """
    rows = table[table["subspace"] == "all"]
    rows = rows[rows["step"] == rows.groupby("network")["step"].transform("max")]
    networks = list(dict.fromkeys(rows["network"]))
    styles = arm_styles(networks)
    positive = pd.concat([rows["lambda_share"], rows["term"], rows["lambda"]])
    positive = positive[positive > 0]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 1.0)
    figure = new_figure(4.2)
    axes = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for axis, network in zip(axes, networks, strict=True):
        of_network = rows[rows["network"] == network]
        _panel(axis, of_network, styles[network].colour, low / _BELOW)
        axis.set_title("\n".join(textwrap.wrap(network, 60 // len(networks) + 4)))
    log_axis(axes[0].yaxis, low / _BELOW, high)
    axes[0].set_ylim(low / _BELOW / 2, high * 2)
    axes[0].set_ylabel("smallest eigenvalue λ")
    figure.legend(handles=_handles(), loc="outside lower center", ncols=2)
    return figure


def _panel(axis: Axes, rows: pd.DataFrame, colour: str, bottom: float) -> None:
    layers = list(dict.fromkeys(rows["layer"]))
    shares = rows.drop_duplicates("layer").set_index("layer")["lambda_share"]
    axis.axhline(float(rows["lambda"].iloc[0]), color=colour, linewidth=1)
    axis.plot(range(len(layers)), [shares[layer] or np.nan for layer in layers], "o", color=colour, markersize=5)
    for (kind, (marker, _)), shift in zip(_KINDS.items(), (0.15, 0.3), strict=True):
        terms = rows[rows["kind"] == kind].set_index("layer")
        positions = np.arange(len(layers)) + shift
        known = [terms["term"][layer] if not terms["cause"][layer] else np.nan for layer in layers]
        vacuous = [bottom if terms["cause"][layer] else np.nan for layer in layers]
        axis.plot(positions, known, marker, color=colour, markersize=5, fillstyle="none")
        axis.plot(positions, vacuous, marker, color=GREY, markersize=3)
    axis.set_xticks(range(len(layers)), layers, rotation=90)


def _handles() -> list[Line2D]:
    return [
        Line2D([], [], color="0.2", linewidth=1, label="λ(DF) of the network"),
        Line2D([], [], marker="o", color="0.2", linestyle="", label="λ(D_{θ_l}F), the layer's share"),
        *(
            Line2D([], [], marker=marker, fillstyle="none", color="0.2", linestyle="", label=what)
            for marker, what in _KINDS.values()
        ),
        Line2D([], [], marker="s", markersize=3, color=GREY, linestyle="", label="a vacuous term, at the bottom"),
    ]
