"""Convergence to an optimum at infinity: gradient descent with steps of 1/β, on the class for which it is proved.

Sixteen images are fitted from good and bad initialisations, with cross-entropy, whose optimum is at infinity, and with
the mean square. Beside the normalised residual class are a chain and plain weights, for which nothing is guaranteed
beforehand; what their own constants guarantee step by step is checked as well.

The class has ε = 1, so that ``‖DŴ‖ ≤ 1``, and comes twice: with γ = 1/2, where blocks do something and λ(DF) is bounded
below along the path, and with the γ at which ``λ₀ = σ_min(H_0)²/4`` holds at all weights (see `gain_with_floor`).
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from skip_conditioning.diagnostics.kernel.tangent_kernel import tangent_kernel
from skip_conditioning.diagnostics.loss.hessian import HessianOperator, spectral_norm
from skip_conditioning.diagnostics.tables import write_table
from skip_conditioning.diagnostics.theory.statement import Statement
from skip_conditioning.experiments.data.datasets import load_data
from skip_conditioning.experiments.theory.contractive_constants import ContractiveClass, gain_with_floor
from skip_conditioning.experiments.theory.convergence_training import Problem, Trajectory, Weights, train
from skip_conditioning.experiments.theory.experiment import CheckedStatement, TheoryOptions
from skip_conditioning.models import build_model

SAMPLES, DEPTH, CLASSES = 16, 2, 10
GAIN, EPS = 0.5, 1.0
#: Images from which the samples are drawn and whose mean is taken off; averaged over patches of 4×4 pixels.
_POOL_OF_IMAGES, _PATCH = 1000, 4

#: Two draws of PyTorch's own weights, and variants of the first; ``× 30`` scales all weights.
INITIALISATIONS = ("default", "another draw", "zero head", "weights × 30", "weights × 0.001", "wrong classes")
#: Logit by which the head of ``wrong classes`` prefers the class after the right one, were the blocks the identity.
_WRONG_LOGIT = 10.0


@dataclass(frozen=True)
class Case:
    """One arm on one data set.

    Attributes:
        dataset: ``digits`` or ``mnist``.
        cost: ``cross-entropy`` or ``mean square``.
        arm: Of ``contractive-mlp``.
        steps: Steps of gradient descent.
        certified: Whether γ is so small that λ(DF) is bounded below at all weights; otherwise it is 1/2.
    """

    dataset: str
    cost: str
    arm: str
    steps: int
    certified: bool = False


def check_convergence(options: TheoryOptions) -> list[CheckedStatement]:
    """Train all arms, write ``convergence.parquet`` and ``convergence_fits.parquet``, and return every check.

    MNIST takes part where ``options.data_dir`` has it; else it is missing from the tables.
    """
    checks: list[CheckedStatement] = []
    curves, fits = [], []
    for case in training_cases(options):
        problem, start, keys = prepared(case, options)
        name = ", ".join(f"γ = {value:.3g}" if key == "gain" else str(value) for key, value in keys.items())
        trajectory = train(problem, start, case.steps, title=name)
        curve = curve_of(trajectory)
        fit = fits_of(curve)
        curves.append(curve.assign(**keys))
        fits.append(fit.assign(**keys))
        measured = INITIALISATIONS[: 1 if options.quick else None]
        kind = kind_of(case.cost, case.arm)
        checks += (replace(check, kind=kind) for check in _checks_of(name, problem, trajectory, curve, fit, measured))
    order = ["dataset", "cost", "arm", "gain", "initialisation"]
    for frames, file in ((curves, "convergence"), (fits, "convergence_fits")):
        frame = pd.concat(frames, ignore_index=True)
        frame = frame[[*order, *(column for column in frame if column not in order)]]
        write_table(frame, options.out / f"{file}.parquet")
    return checks


def training_cases(options: TheoryOptions) -> list[Case]:
    """What is trained."""
    if options.quick:
        short = [Case("digits", "cross-entropy", arm, 300) for arm in ("residual", "chain", "unnormalised")]
        certified = Case("digits", "cross-entropy", "residual", 300, certified=True)
        return [*short, certified, Case("digits", "mean square", "residual", 300)]
    cases = [Case("digits", "cross-entropy", "residual", 100_000)]
    cases += [Case("digits", "cross-entropy", arm, 10_000) for arm in ("chain", "unnormalised")]
    cases += [Case("digits", "mean square", arm, 5_000) for arm in ("residual", "chain", "unnormalised")]
    cases.append(Case("digits", "cross-entropy", "residual", 10_000, certified=True))
    cases.append(Case("digits", "mean square", "residual", 5_000, certified=True))
    if options.data_dir is not None and (options.data_dir / "mnist").is_dir():
        cases.append(Case("mnist", "cross-entropy", "residual", 10_000))
        cases.append(Case("mnist", "mean square", "residual", 5_000))
    return cases


def kind_of(cost: str, arm: str) -> str:
    """The kind of a case, by which claims choose: its cost and its arm."""
    return f"{cost}, {arm}"


def prepared(case: Case, options: TheoryOptions) -> tuple[Problem, Weights, dict[str, str | float]]:
    """The problem, the stacked initial weights, and the columns that identify the case."""
    inputs, labels = images(case.dataset, options)
    gain = gain_with_floor(inputs, DEPTH) if case.certified else GAIN
    model_options = {"width": inputs.shape[1], "depth": DEPTH, "num_classes": CLASSES, "gain": gain, "eps": EPS}
    draws = []
    for seed in (options.seed, options.seed + 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            draws.append(build_model("contractive-mlp", arm=case.arm, **model_options).double())
    one_hot = functional.one_hot(labels, CLASSES).double()
    targets = labels if case.cost == "cross-entropy" else one_hot
    eps = None if case.arm == "unnormalised" else EPS
    family = ContractiveClass(0.0 if case.arm == "chain" else 1.0, gain, eps)
    assert isinstance(draws[0], nn.Sequential)
    problem = Problem(draws[0], family, inputs, targets)
    keys: dict[str, str | float] = {"dataset": case.dataset, "cost": case.cost, "arm": case.arm, "gain": gain}
    return problem, initial_weights(draws, inputs, one_hot), keys


def images(dataset: str, options: TheoryOptions) -> tuple[Tensor, Tensor]:
    """Images of few pixels, less the mean image, each of length √d; and their classes.

    Returns:
        Shapes ``(16, 49)``, float64, and ``(16,)``.
    """
    data = load_data(
        dataset, None if dataset == "digits" else options.data_dir, limit_train=_POOL_OF_IMAGES, limit_test=1
    )
    pixels = functional.avg_pool2d(data.train.images.double(), _PATCH).flatten(1)
    chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(options.seed))[:SAMPLES]
    centred = (pixels - pixels.mean(dim=0))[chosen]
    return centred / centred.norm(dim=1, keepdim=True) * math.sqrt(pixels.shape[1]), data.train.labels[chosen]


def initial_weights(draws: list[nn.Module], inputs: Tensor, one_hot: Tensor) -> Weights:
    """The weights of all `INITIALISATIONS`, stacked; all but ``another draw`` are made of the first draw."""
    first, second = ({name: p.detach() for name, p in model.named_parameters()} for model in draws)
    wrong = torch.linalg.pinv(inputs) @ (_WRONG_LOGIT * one_hot.roll(1, dims=1))
    head = "head.weight"
    starts = [
        first,
        second,
        first | {head: torch.zeros_like(first[head])},
        {name: 30 * weight for name, weight in first.items()},
        {name: 1e-3 * weight for name, weight in first.items()},
        first | {head: wrong.T},
    ]
    return {name: torch.stack([start[name] for start in starts]) for name in first}


def curve_of(trajectory: Trajectory) -> pd.DataFrame:
    """The logged rows, one for each initialisation and step."""
    rows = []
    for logged in trajectory.rows:
        columns = {name: np.broadcast_to(np.asarray(value), len(INITIALISATIONS)) for name, value in logged.items()}
        rows.append(pd.DataFrame({"initialisation": INITIALISATIONS, **columns}))
    return pd.concat(rows, ignore_index=True)


def fits_of(curve: pd.DataFrame) -> pd.DataFrame:
    """Fits to the last decade of steps, for each initialisation.

    ``exponent`` is p of ``ℓ ~ t^−p`` and ``rate`` is r of ``ℓ ~ e^{−rt}``, by ordinary least squares over the logged
    steps from ``first_step`` to ``last_step``; the standard errors take the residuals to be independent, which those of
    a smooth curve are not. ``norm_slope`` is the slope of ``|θ|`` against ``log t``, ``norm_growth`` the last
    ``|θ|`` over the first. ``distance`` is the last ``|θ − θ_0|``, ``distance_before`` the largest logged before.
    """
    rows = []
    for initialisation, run in curve.groupby("initialisation", sort=False):
        last = int(run["step"].max())
        late = run[run["step"] >= last / 10]
        time, log_time, log_loss = late["step"], np.log(late["step"]), np.log(late["loss"])
        exponent, exponent_se = _slope(log_time, log_loss)
        rate, rate_se = _slope(time, log_loss)
        rows.append(
            {
                "initialisation": initialisation,
                "exponent": -exponent,
                "exponent_se": exponent_se,
                "rate": -rate,
                "rate_se": rate_se,
                "first_step": int(late["step"].min()),
                "last_step": last,
                "loss": run["loss"].iloc[-1],
                "parameter_norm": run["parameter_norm"].iloc[-1],
                "norm_growth": run["parameter_norm"].iloc[-1] / run["parameter_norm"].iloc[0],
                "norm_slope": _slope(log_time, late["parameter_norm"])[0],
                "distance": run["distance"].iloc[-1],
                "distance_before": run["distance"].iloc[:-1].max(),
            }
        )
    return pd.DataFrame(rows)


def _checks_of(
    network: str,
    problem: Problem,
    trajectory: Trajectory,
    curve: pd.DataFrame,
    fits: pd.DataFrame,
    measured: Sequence[str],
) -> Iterator[CheckedStatement]:
    """Every statement on one arm: of all steps of each initialisation, and of single states measured directly.

    The last state of the initialisations ``measured`` is, and of the first of them the initial state too.
    """
    for run, fit in enumerate(fits.to_dict("records")):
        statements = [*_of_all_steps(trajectory, run, fit)]
        if problem.is_classification:
            statements.append(_growth(fit, len(problem.inputs)))
        yield from (CheckedStatement(network, each, fit["last_step"], fit["initialisation"]) for each in statements)
    first, last = min(trajectory.weights), max(trajectory.weights)
    for initialisation, step in [(measured[0], first), *((initialisation, last) for initialisation in measured)]:
        (row,) = curve[(curve["initialisation"] == initialisation) & (curve["step"] == step)].to_dict("records")
        states = _of_a_state(problem, trajectory, INITIALISATIONS.index(initialisation), row)
        yield from (CheckedStatement(network, statement, step, initialisation) for statement in states)


def _of_all_steps(trajectory: Trajectory, run: int, fit: dict[Any, Any]) -> Iterator[Statement]:
    """The guarantees and the regularity along a run."""
    yield Statement(
        name="decrease per step",
        formula="max_t ℓ_{t+1} − ℓ_t + η_t/2·λ_t|∇c_t|² − rounding ≤ 0",
        left=float(trajectory.worst_step[run]),
        relation="<=",
        right=0.0,
        error=0.0,
        note=f"{int(trajectory.violations[run])} of {fit['last_step']} steps gained less",
    )
    yield Statement(
        name="cumulative guarantee",
        formula="max_t ℓ_t − G_t − rounding ≤ 0",
        left=float(trajectory.worst_total[run]),
        relation="<=",
        right=0.0,
        error=0.0,
        note=(
            f"G of {'λ₀, for all weights' if trajectory.prior else 'λ_t along the path'}; fitted ℓ ~ t^−p, "
            f"p = {fit['exponent']:.4f} ± {fit['exponent_se']:.4f} over steps {fit['first_step']} to {fit['last_step']}"
        ),
    )
    least = float(trajectory.least_regularity[run])
    yield Statement(
        name="regularity along the path",
        formula="min_t λ_t ≥ λ₀" if trajectory.prior else "min_t λ_t > 0",
        left=least,
        relation=">=",
        right=trajectory.prior,
        error=1e-12 * least,
        cause="" if least > 0 else "the layers do not bound λ(DF) away from 0",
        note="" if trajectory.prior else "a condition, no bound: λ₀ = 0 before training",
    )


def _growth(fit: dict[Any, Any], samples: int) -> Statement:
    """``|θ| → ∞``, as far as the steps can tell: from a far start ``|θ|`` may fall at first, not so ``|θ − θ_0|``."""
    separated = fit["loss"] < math.log(2) / samples
    return Statement(
        name="optimum at infinity",
        formula="|θ_T − θ_0| ≥ max_{t<T} |θ_t − θ_0|",
        left=fit["distance"],
        relation=">=",
        right=fit["distance_before"],
        error=0.0,
        cause="" if separated else "the loss is above ln 2 / N, so that classes may not be separated yet",
        note=f"|θ_T|/|θ_0| = {fit['norm_growth']:.4g}, d|θ|/d ln t = {fit['norm_slope']:.3g} in the last decade",
        is_claim=True,
    )


def _of_a_state(problem: Problem, trajectory: Trajectory, run: int, row: dict[Any, Any]) -> Iterator[Statement]:
    """The bounds of one state against the tangent kernel and the Hessian themselves."""
    network = copy.deepcopy(problem.network)
    network.load_state_dict({name: weight[run] for name, weight in trajectory.weights[int(row["step"])].items()})
    kernel = tangent_kernel(network, problem.inputs).spectrum()
    yield Statement(
        name="regularity of the layers",
        formula="λ(DF) ≥ Σ_l λ(Df_l) Π_{j>l} λ(Jf_j)",
        left=float(kernel.values[-1]),
        relation=">=",
        right=row["lambda_layers"],
        error=kernel.floor,
        cause="" if row["lambda_layers"] > 0 else "the layers do not bound λ(DF) away from 0",
    )
    norm = spectral_norm(HessianOperator(network, problem.inputs, problem.targets))
    yield Statement(
        name="curvature",
        formula="‖∇²ℓ‖ ≤ β",
        left=norm.value,
        relation="<=",
        right=row["beta"],
        error=norm.residual,
        note="" if norm.converged else "‖∇²ℓ‖ has not converged: a lower bound",
    )


def _slope(x: pd.Series, y: pd.Series) -> tuple[float, float]:
    """Slope of the least-squares line and its standard error."""
    deviation, response = (np.asarray(values, dtype=float) - float(np.mean(values)) for values in (x, y))
    spread = float(deviation @ deviation)
    slope = float(deviation @ response) / spread
    residual = response - slope * deviation
    return slope, math.sqrt(float(residual @ residual) / (len(residual) - 2) / spread)
