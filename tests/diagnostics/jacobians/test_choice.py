"""The choice between exact and matrix-free: by memory and by estimated cost, repeatable, and said in words."""

import math

import pytest
import torch
from torch import nn

from skip_conditioning import spectra
from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.jacobians import exact as choice
from skip_conditioning.diagnostics.jacobians.exact import METHODS, check_method, choose_method
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.support.memory import GIB


def chosen(model, x, memory_budget=GIB, map="network", layers=None):
    """What is chosen for the first of a model's maps."""
    with measuring(model, x) as probed:
        return choose_method(probed.maps(map, layers)[0], memory_budget)


def convolutions(size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    return model, torch.randn(2, 3, size, size)


def test_a_small_map_is_exact_and_the_reason_says_so():
    method, reason = chosen(*convolutions(4))
    assert method == "exact"
    assert reason.startswith("auto: exact fits, ")


def test_a_map_that_does_not_fit_is_matrix_free():
    assert chosen(*convolutions(16), memory_budget=2**20) == (
        "lanczos",
        "auto: an exact spectrum does not fit the memory budget",
    )


def test_a_map_that_fits_but_costs_more_is_matrix_free():
    method, reason = chosen(*convolutions(64), memory_budget=2**50)
    assert method == "lanczos"
    exact, free = (float(word.rstrip(",")) for word in reason.split() if word[0].isdigit())
    assert exact > free
    assert reason.startswith("auto: exact would take about ")


def test_a_cheap_map_is_exact_though_matrix_free_were_cheaper(monkeypatch):
    model, x = convolutions(8)
    assert chosen(model, x)[0] == "exact"
    monkeypatch.setattr(choice, "_MATRIX_FREE_PRODUCTS", 1)
    assert chosen(model, x)[0] == "exact"
    monkeypatch.setattr(choice, "_CHEAP", 0.0)
    assert chosen(model, x)[0] == "lanczos"


def test_a_larger_budget_never_turns_exact_into_matrix_free():
    model, x = convolutions(16)
    methods = [chosen(model, x, memory_budget=4**power)[0] for power in range(8, 22)]
    first = methods.index("exact")
    assert first > 0
    assert methods == ["lanczos"] * first + ["exact"] * (len(methods) - first)


@pytest.mark.parametrize("size", [4, 64])
@pytest.mark.parametrize("map", ["layer", "tail", "param", "kernel"])
def test_the_choice_repeats_and_depends_on_no_value(size, map):
    model, x = convolutions(size)
    first = chosen(model, x, map=map, layers=["2"])
    assert chosen(model, x, map=map, layers=["2"]) == first
    assert chosen(model, 2 * x, map=map, layers=["2"]) == first


def test_choosing_draws_nothing_and_changes_nothing(nothing_changes):
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    x = torch.randn(4, 6)
    with nothing_changes(model, x):
        chosen(model, x)


def test_the_note_of_a_spectrum_says_what_was_chosen_and_why():
    model, x = convolutions(6)
    exact = spectra(model, x, map="network")["network"]
    assert exact.note == chosen(model, x)[1]
    assert exact.method.startswith("exact: ")
    free = spectra(model, x, map="network", memory_budget=2**20)["network"]
    assert free.note == "auto: an exact spectrum does not fit the memory budget"
    assert free.method == "lanczos: 2 random vectors × 32 steps"


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_a_method_that_was_asked_for_needs_no_reason(method):
    model, x = convolutions(4)
    measured = spectra(model, x, map="network", method=method)["network"]
    assert (measured.note, measured.method.split(":")[0]) == ("", method)


def test_known_methods_and_tolerances_pass():
    for method in METHODS:
        for tolerance in (None, 0.01, 1, 1e-9):
            assert check_method(method, tolerance) is None


@pytest.mark.parametrize("method", ["lanzcos", "", None, "Exact", 3])
def test_unknown_methods_are_named_with_those_known(method):
    with pytest.raises(InputError, match=r"unknown method .*; known are auto, exact, lanczos") as caught:
        check_method(method, None)
    assert repr(method) in str(caught.value)


def test_a_near_match_is_offered():
    with pytest.raises(InputError, match="Did you mean 'lanczos'"):
        check_method("lanzcos", None)


@pytest.mark.parametrize("tolerance", [0, -0.1, math.inf, math.nan])
@pytest.mark.parametrize("method", METHODS)
def test_tolerances_that_are_none_are_refused(method, tolerance):
    with pytest.raises(InputError, match=r"tolerance must be a positive relative error such as .*, or None; it is "):
        check_method(method, tolerance)
