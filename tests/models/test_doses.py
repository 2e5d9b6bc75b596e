"""Arms with a number in their name: where they begin and end, and what is refused."""

import pytest
import torch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.experiments.config.presets import preset
from skip_conditioning.experiments.training.networks import check_arms
from skip_conditioning.experiments.training.runs import all_runs
from skip_conditioning.models import build_model, has_arm

OPTIONS = {"depth": 3, "width": 8, "in_features": 12, "normaliser": "batch"}


def built(arm):
    torch.manual_seed(0)
    return build_model("residual-mlp", arm=arm, **OPTIONS)


def states(arm):
    return built(arm).state_dict()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("dose", "arm"),
    [("gain-0", "chain"), ("gain-1", "residual"), ("gain-0.5", "gain-0.5"), ("chain-to-looks-linear-0", "chain"),
     ("chain-to-looks-linear-1", "chain-looks-linear"), ("chain-orthogonal-to-looks-linear-0", "chain-orthogonal")],
)  # fmt: skip
def test_the_ends_of_a_dose_are_the_arms_it_lies_between(dose, arm):
    assert same(states(dose), states(arm))
    x = torch.randn(5, 12)
    assert torch.equal(built(dose)(x), built(arm)(x))


def test_weights_lie_on_the_line_between_and_logits_are_scaled():
    start, end, middle = (states(f"chain-to-looks-linear-{share}") for share in (0, 1, 0.25))
    for name, value in middle.items():
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * end[name] if value.is_floating_point() else value)
    x = torch.randn(5, 12)
    scaled, plain = built("gain-0.7@1.5"), built("gain-0.7")
    assert same(scaled.state_dict(), plain.state_dict())
    torch.testing.assert_close(scaled(x), 1.5 * plain(x))


@pytest.mark.parametrize("arm", ["gain-", "gain-x", "chain-to-looks-linear-1.5", "gain-1@", "gain--1", "gain-1@2@3"])
def test_what_is_no_dose_is_refused_by_name(arm):
    assert not has_arm("residual-mlp", arm)
    with pytest.raises(InputError, match="unknown arm"):
        check_arms("residual-mlp", [arm])


def test_other_networks_have_no_doses():
    assert not has_arm("paper-mnist", "gain-0.3")
    assert has_arm("paper-mnist", "gain-0.25")


def runs(*arm_lr, lr=(0.1,)):
    config = preset("demo", arms=("chain", "residual"), lr=lr, arm_lr=arm_lr, trials=1, out="o")
    config.check()
    return [(run.arm, run.lr) for run in all_runs(config)]


def test_arms_have_rates_of_their_own():
    assert runs("residual=0.5", "residual=2") == [("chain", 0.1), ("residual", 0.5), ("residual", 2.0)]
    assert runs("residual=0.5", lr=(0.1, 0.5)) == [("chain", 0.1), ("chain", 0.5), ("residual", 0.5)]


@pytest.mark.parametrize("entry", ["residual=0", "residual=x", "residual", "resid=1", "residual=nan"])
def test_rates_that_are_none_are_refused(entry):
    with pytest.raises(InputError, match="--arm-lr"):
        runs(entry)
    with pytest.raises(InputError, match="each once"):
        runs("residual=1", "residual=1.0")
