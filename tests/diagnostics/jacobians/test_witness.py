"""Witnesses: floors from random products of a known rounding, and what is accepted or refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.errors import UnsupportedModelError
from skip_conditioning.diagnostics.jacobians.rows import dense_jacobian
from skip_conditioning.diagnostics.jacobians.witness import NORMS, Witness, floor_of, witnessed_pullback
from skip_conditioning.diagnostics.networks.measuring import measuring

REAL = torch.float64


def drawn(*shape, seed):
    return torch.randn(shape, dtype=REAL, generator=torch.Generator().manual_seed(seed))


ROUNDINGS = {
    "independent": drawn(200, 120, seed=0),
    "of one direction": drawn(200, 1, seed=1) @ drawn(1, 120, seed=2),
    "of three directions": drawn(200, 3, seed=3) @ drawn(3, 120, seed=4),
    "of one row": torch.eye(200, dtype=REAL)[:, :1] @ drawn(1, 120, seed=5),
}


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("name", ROUNDINGS)
def test_floors_lie_above_the_norm_of_the_rounding_and_not_far(name, scale):
    rounding = ROUNDINGS[name]
    norm = float(torch.linalg.matrix_norm(rounding, 2))
    floors = [floor_of(scale * drawn(4, 200, seed=seed) @ rounding, 200) for seed in range(50)]
    ratios = torch.tensor(floors, dtype=REAL) / scale
    assert (ratios >= norm).double().mean() >= (0.8 if name == "of one row" else 0.95)
    assert ratios.median() <= 3 * NORMS * norm


def test_no_rounding_has_no_floor():
    assert floor_of(torch.zeros(3, 5, dtype=REAL), 4) == 0


@pytest.fixture
def map():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with measuring(model, drawn(6, 4, seed=6)) as probed:
        yield probed.maps("network")[0]


def test_it_accepts_the_jacobian_itself_and_nothing_that_is_off(map):
    witness, rows = Witness(map, map.reference), dense_jacobian(map, 2**30)
    products = witness.cotangents @ rows
    assert witness.difference(products) < 1e-14
    assert witness.accepts(products)
    for off in (products * (1 + 1e-6), products + 1e-6, products.roll(1, dims=1), torch.zeros_like(products)):
        assert not witness.accepts(off)
    v = drawn(2, rows.shape[1], seed=7)
    assert witness.accepts_images(products, v, v @ rows.T)
    assert not witness.accepts_images(products, v, v @ rows.T * (1 + 1e-6))


def test_a_function_that_is_not_the_networks_is_refused_by_name(map):
    other = replace(map, function=lambda point: 2 * map.function(point))
    with pytest.raises(UnsupportedModelError, match=r"the network map of 'network': .* differs from plain autograd's"):
        witnessed_pullback(other, 2**30, Witness(other, other.reference))
