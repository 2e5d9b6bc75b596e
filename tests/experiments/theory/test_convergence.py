"""Convergence to an optimum at infinity: the constants are bounds, guarantees hold, and wrong ones are found out."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian, jacrev

from skip_conditioning.diagnostics.kernel.tangent_kernel import tangent_kernel
from skip_conditioning.diagnostics.loss.costs import CrossEntropy
from skip_conditioning.diagnostics.loss.hessian import HessianOperator, spectral_norm
from skip_conditioning.diagnostics.theory.curvature_bounds import hessian_bound, jacobian_bound
from skip_conditioning.experiments.theory import convergence, convergence_training
from skip_conditioning.experiments.theory.contractive_constants import (
    NORMALISER_CURVATURE,
    ContractiveClass,
    gain_with_floor,
    layer_constants,
    normaliser_curvature,
    normaliser_slope,
    regularities,
    regularity_floor,
    singular_value_range,
    spectra_of,
    widened,
)
from skip_conditioning.experiments.theory.convergence import fits_of
from skip_conditioning.experiments.theory.convergence_training import Problem, Trajectory, log_spaced, train
from skip_conditioning.experiments.theory.experiment import TheoryOptions
from skip_conditioning.models import build_model

FAMILIES = {
    "residual": ContractiveClass(1.0, 0.5, 0.3),
    "chain": ContractiveClass(0.0, 0.5, 0.3),
    "unnormalised": ContractiveClass(1.0, 0.5, None),
}
INPUTS = torch.randn(3, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1])


def network(arm: str, seed: int, scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = build_model("contractive-mlp", arm=arm, width=5, depth=2, num_classes=3, gain=0.5, eps=0.3).double()
    for parameter in model.parameters():
        parameter.data.mul_(scale)
    assert isinstance(model, nn.Sequential)
    return model


def stacked(models: list[nn.Sequential]) -> dict[str, Tensor]:
    names = [name for name, _ in models[0].named_parameters()]
    return {name: torch.stack([model.get_parameter(name).detach() for model in models]) for name in names}


def spectra(models: list[nn.Sequential]):
    features = [[INPUTS] for _ in models]
    for model, states in zip(models, features, strict=True):
        for block in model.blocks:
            states.append(block(states[-1]).detach())
    hidden = [torch.stack(states) for states in zip(*features, strict=True)]
    *blocks, head = stacked(models).values()
    return spectra_of(blocks, head, [INPUTS, *hidden[1:]])


@pytest.mark.parametrize("eps", [1.0, 0.2])
@pytest.mark.parametrize("length", [0.0, 0.2, 0.5, 0.8, 3.0])
def test_derivatives_of_the_normaliser_are_bounded_as_claimed(length: float, eps: float) -> None:
    v = torch.zeros(3, dtype=torch.float64)
    v[0] = length

    def normalised(v: Tensor) -> Tensor:
        return v / (eps + v @ v).sqrt()

    values = torch.linalg.svdvals(jacrev(normalised)(v))
    low, high = normaliser_slope(torch.tensor(length, dtype=torch.float64), eps)
    torch.testing.assert_close(torch.stack([values[-1], values[0]]), torch.stack([low, high]))
    second = hessian(normalised)(v)
    angles = torch.linspace(0, torch.pi, 2001, dtype=torch.float64)
    unit = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], dim=1)  # the bound is a plane's
    largest = torch.einsum("oij,ni,nj->no", second, unit, unit).norm(dim=1).max()
    bound = normaliser_curvature(torch.tensor(length), eps)
    assert largest <= bound * (1 + 1e-6)
    if length**2 >= eps / 2 or length == 0.5 * eps**0.5:
        assert largest == pytest.approx(float(bound), rel=1e-5)
    assert largest <= NORMALISER_CURVATURE / eps * (1 + 1e-9)


@pytest.mark.parametrize(
    ("arm", "scale"), [("residual", 5.0), ("residual", 0.1), ("chain", 1.0), ("unnormalised", 5.0)]
)
def test_constants_bound_the_hessian_and_lambda_everywhere_within_reach(arm: str, scale: float) -> None:
    centre = [network(arm, seed, scale) for seed in (0, 1)]
    reach = torch.full((3, 2), 0.05, dtype=torch.float64)
    near = widened(FAMILIES[arm], spectra(centre), reach)
    layers, terms = layer_constants(FAMILIES[arm], near), regularities(FAMILIES[arm], near).sum(dim=0)
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        for run, model in enumerate(centre):
            moved = copy.deepcopy(model)
            for parameter in moved.parameters():
                step = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
                parameter.data.add_(0.05 * step / step.norm())
            outputs = moved(INPUTS).detach()
            slope = (outputs.softmax(dim=1) - torch.eye(3)[LABELS]).norm() / 3
            bound = hessian_bound(layers, slope, CrossEntropy(3, 3).curvature)
            assert spectral_norm(HessianOperator(moved, INPUTS, LABELS)).value <= bound[run]
            values = tangent_kernel(moved, INPUTS).spectrum().values
            assert values[0] <= jacobian_bound(layers)[run] ** 2
            assert values[-1] >= terms[run] * (1 - 1e-9)


def test_lambda_has_a_floor_at_all_weights_where_gamma_is_small() -> None:
    gain = gain_with_floor(INPUTS, depth=2)
    family = ContractiveClass(1.0, gain, 0.3)
    floor = regularity_floor(family, INPUTS, depth=2)
    assert floor == pytest.approx(float(torch.linalg.svdvals(INPUTS)[-1]) ** 2 / 4)
    for seed, scale in enumerate((1e-3, 1.0, 1e3)):
        torch.manual_seed(seed)
        model = build_model("contractive-mlp", width=5, depth=2, num_classes=3, gain=gain, eps=0.3).double()
        for parameter in model.parameters():
            parameter.data.mul_(scale)
        assert tangent_kernel(model, INPUTS).spectrum().values[-1] >= floor
    assert regularity_floor(FAMILIES["residual"], 100 * INPUTS, 50) == 0
    assert regularity_floor(FAMILIES["chain"], INPUTS, 2) == regularity_floor(FAMILIES["unnormalised"], INPUTS, 2) == 0


def test_singular_values_of_more_rows_than_columns_reach_zero() -> None:
    low, high = singular_value_range(INPUTS.T)
    assert low == 0
    assert float(high) == pytest.approx(float(torch.linalg.matrix_norm(INPUTS, 2)))
    assert float(singular_value_range(INPUTS)[0]) == pytest.approx(float(torch.linalg.svdvals(INPUTS)[-1]))


def short_training(arm: str = "residual", steps: int = 150) -> Trajectory:
    models = [network(arm, 0), network(arm, 1, 20.0)]
    return train(Problem(models[0], FAMILIES[arm], INPUTS, LABELS), stacked(models), steps, title=arm)


@pytest.mark.parametrize("arm", FAMILIES)
def test_runs_side_by_side_are_plain_gradient_descent(arm: str) -> None:
    measured = short_training(arm, steps=12)
    for run, (seed, scale) in enumerate([(0, 1.0), (1, 20.0)]):
        model = network(arm, seed, scale)
        for row in measured.rows[:-1]:
            loss = nn.functional.cross_entropy(model(INPUTS), LABELS)
            assert loss.item() == pytest.approx(float(row["loss"][run]))
            for parameter, gradient in zip(
                model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                parameter.data.sub_(row["lr"][run] * gradient)


def test_an_inflated_lambda_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not short_training().violations.any()
    inflated = [100 * value for value in singular_value_range(INPUTS)]
    monkeypatch.setattr(convergence_training, "singular_value_range", lambda _: inflated)
    measured = short_training()
    assert measured.violations.all()
    assert torch.all(measured.worst_step > 0)
    assert torch.all(measured.worst_total > 0)


def test_steps_beyond_two_over_beta_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence_training._State, "lr", property(lambda state: 1000 / state.beta))
    assert short_training().violations.any()


def test_logged_steps_are_evenly_spaced_in_their_logarithm() -> None:
    assert log_spaced(300, 1) == [0, 1, 10, 100, 300]
    assert len(log_spaced(10**5, 20)) < 100


def test_a_power_law_has_its_exponent() -> None:
    step = np.array(log_spaced(1000, 20))
    curve = pd.DataFrame({"initialisation": "default", "step": step, "loss": 3 / (1.0 * step.clip(1)) ** 0.8})
    (fit,) = fits_of(curve.assign(parameter_norm=np.log(step + 2), distance=step)).to_dict("records")
    assert fit["exponent"] == pytest.approx(0.8)
    assert fit["exponent_se"] < 1e-9
    assert (fit["first_step"], fit["last_step"]) == (100, 1000)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[list, Path]:
    out = tmp_path_factory.mktemp("convergence")
    return convergence.check_convergence(TheoryOptions(out, quick=True, seed=0, data_dir=None)), out


def test_no_statement_is_violated_and_few_are_vacuous(quick: tuple[list, Path]) -> None:
    checks, _ = quick
    verdicts = pd.DataFrame([check.statement.as_row() | {"network": check.network} for check in checks])
    assert set(verdicts["statement"]) == {
        "decrease per step", "cumulative guarantee", "regularity along the path", "optimum at infinity",
        "regularity of the layers", "curvature",
    }  # fmt: skip
    assert not (verdicts["verdict"] == "violated").any()
    residual = verdicts[verdicts["network"].str.contains("residual") & (verdicts["statement"] != "optimum at infinity")]
    assert (residual["verdict"] == "holds").all()


def test_tables_hold_every_initialisation_of_every_arm(quick: tuple[list, Path]) -> None:
    _, out = quick
    curves, fits = (pd.read_parquet(out / f"{name}.parquet") for name in ("convergence", "convergence_fits"))
    keys = ["dataset", "cost", "arm", "gain", "initialisation"]
    assert len(fits) == 5 * len(convergence.INITIALISATIONS) == len(curves.groupby(keys))
    assert {"step", "loss", "guarantee", "parameter_norm", "lambda_layers", "beta", "lr", "cost_grad_squared",
            "violations"} <= set(curves)  # fmt: skip
    assert (curves["loss"] <= curves["guarantee"] + 1e-9).all()
    assert (curves["lr"] == 1 / curves["beta"]).all()
    assert not curves["violations"].any()
    assert np.isfinite(curves.select_dtypes("number")).all(axis=None)


def test_mnist_takes_part_only_where_it_is(tmp_path: Path) -> None:
    options = TheoryOptions(tmp_path, quick=False, seed=0, data_dir=tmp_path)
    assert {case.dataset for case in convergence.training_cases(options)} == {"digits"}
    (tmp_path / "mnist").mkdir()
    assert {case.dataset for case in convergence.training_cases(options)} == {"digits", "mnist"}
    assert {case.dataset for case in convergence.training_cases(replace(options, data_dir=None))} == {"digits"}
