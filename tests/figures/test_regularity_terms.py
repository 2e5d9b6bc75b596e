"""The figure of the regularity bound: shares, terms, and vacuous terms at the bottom."""

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.figures.regularity_terms import regularity_terms


def rows(network, step=5, subspace="all", whole=0.5):
    shares = {"stem": 0.1, "blocks.0": 0.2, "head": 0.0}
    terms = {"stem": (0.01, ""), "blocks.0": (0.0, "dead units: 3 of 4"), "head": (0.1, "")}
    return [
        {
            "network": network,
            "step": step,
            "subspace": subspace,
            "lambda": whole,
            "kind": kind,
            "layer": layer,
            "lambda_share": shares[layer],
            "term": term * (2 if kind == "restricted" else 1),
            "cause": cause,
        }
        for kind in ("plain", "restricted")
        for layer, (term, cause) in terms.items()
    ]


@pytest.fixture
def table():
    return pd.DataFrame([*rows("a"), *rows("b", whole=0.7), *rows("a", step=0, whole=9.0), *rows("a", subspace="data")])


def test_the_last_step_of_all_outputs(table):
    figure = regularity_terms(table)
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    assert [float(axis.lines[0].get_ydata()[0]) for axis in figure.axes] == [0.5, 0.7]


def test_shares_and_terms_are_the_tables(table):
    _, shares, restricted, restricted_vacuous, plain, plain_vacuous = (
        np.asarray(line.get_ydata(), dtype=float) for line in regularity_terms(table).axes[0].lines
    )
    np.testing.assert_equal(shares, [0.1, 0.2, np.nan])
    np.testing.assert_allclose(restricted, [0.02, np.nan, 0.2])
    np.testing.assert_allclose(plain, [0.01, np.nan, 0.1])
    for vacuous in (restricted_vacuous, plain_vacuous):
        assert np.isnan(vacuous).tolist() == [True, False, True]
        assert vacuous[1] < 0.01


def test_a_network_with_nothing_but_vacuous_terms_can_be_drawn(table):
    nothing = table.assign(term=0.0, lambda_share=0.0, cause="x")
    nothing["lambda"] = 0.0
    figure = regularity_terms(nothing)
    figure.draw_without_rendering()
    _, shares, restricted, restricted_vacuous, plain, plain_vacuous = figure.axes[0].lines
    for line in (shares, restricted, plain):
        assert np.isnan(np.asarray(line.get_ydata(), float)).all()
    for line in (restricted_vacuous, plain_vacuous):
        assert np.isfinite(np.asarray(line.get_ydata(), float)).all()
