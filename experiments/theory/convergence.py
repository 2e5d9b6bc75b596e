"""Convergence to an optimum at infinity: gradient descent with steps of 1/β, on the class for which it is proved.

Sixteen images are fitted from good and bad initialisations, with cross-entropy, whose optimum is at infinity, and with
the mean square. Beside the normalised residual class are a chain and plain weights, for which nothing is guaranteed
beforehand; what their own constants guarantee step by step is checked as well.

The class has ε = 1, so that ``‖DŴ‖ ≤ 1``, and comes twice: with γ = 1/2, where blocks do something and λ(DF) is bounded
below along the path, and with the γ at which ``λ₀ = σ_min(H_0)²/4`` holds at all weights (see `gain_with_floor`).
"""

import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from skip_conditioning.experiments.data.datasets import load_data
from skip_conditioning.experiments.theory.contractive_constants import ContractiveClass, gain_with_floor
from skip_conditioning.experiments.theory.convergence_analysis import checks_of, curve_of, fits_of
from skip_conditioning.experiments.theory.convergence_training import Problem, Weights, train
from skip_conditioning.experiments.theory.options import TheoryOptions
from skip_conditioning.experiments.theory.report import Check, write_table
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


def check_convergence(options: TheoryOptions) -> list[Check]:
    """Train all arms, write ``convergence.parquet`` and ``convergence_fits.parquet``, and return every check.

    MNIST takes part where ``options.data_dir`` has it; else it is missing from the tables.
    """
    checks: list[Check] = []
    curves, fits = [], []
    for case in training_cases(options):
        problem, start, keys = prepared(case, options)
        name = ", ".join(f"γ = {value:.3g}" if key == "gain" else str(value) for key, value in keys.items())
        trajectory = train(problem, start, case.steps, title=name)
        curve = curve_of(trajectory, INITIALISATIONS)
        fit = fits_of(curve)
        curves.append(curve.assign(**keys))
        fits.append(fit.assign(**keys))
        measured = list(INITIALISATIONS) if not options.quick else list(INITIALISATIONS[:1])
        checks += checks_of(name, problem, trajectory, curve, fit, measured)
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
