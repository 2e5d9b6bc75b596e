"""The PŁ chain along training: ``λ(DF)|∇c|² ≤ |∇ℓ|² ≤ ‖DF‖²|∇c|²``, and the decrease that it promises.

Each network is trained with a monitor that logs the chain (``SpectrumMonitor(bounds=True)``), as a user's would be.
"""

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from diagnostics.monitor import SpectrumMonitor
from diagnostics.pl_chain import pl_chain
from diagnostics.statement import Statement
from diagnostics.tables import write_json
from experiments.theory.setting import Check, Setting
from experiments.theory.subjects import LR, Subject, subjects, train

#: Length of the numerical derivative's step: to first order the loss changes by this share of itself.
_CHANGE = 1e-5


def check_pl_chain(setting: Setting) -> list[Check]:
    """Train every network with the chain logged at each step, and check its statements at some of them."""
    steps, interval = (12, 6) if setting.quick else (200, 20)
    checks: list[Check] = []
    for subject in tqdm(subjects(setting), desc="PŁ along training", leave=False):
        states = train(subject, steps)
        step, model = next(states)
        with _monitor(subject, model, setting.out / "pl") as monitor:
            while True:
                monitor.step(step)
                if step % interval == 0:
                    checks += [Check(subject.name, one, step) for one in _statements(subject, model)]
                if step == steps:
                    break
                step, model = next(states)
    return checks


def _monitor(subject: Subject, model: nn.Module, out: Path) -> SpectrumMonitor:
    """A monitor of the chain at every step, its tables empty, and the run's ``config.json`` beside them."""
    directory = out / "runs" / re.sub(r"\W+", "-", subject.name).strip("-")
    monitor = SpectrumMonitor(
        model, (subject.x, subject.y), directory, maps=(), bounds=True, schedule=1, max_overhead=None
    )
    monitor.rewind(-1)
    config = {"experiment": "theory", "model": subject.name, "arm": subject.name, "trial": 0, "lr": LR}
    write_json(config, directory / "config.json")
    return monitor


def _statements(subject: Subject, model: nn.Module) -> list[Statement]:
    chain = pl_chain(model, subject.x, subject.y)
    return [*chain.statements, _gradient_flow(subject, model, chain.kernel_squared)]


def _gradient_flow(subject: Subject, model: nn.Module, kernel_squared: float) -> Statement:
    """``dℓ/dt = −∇cᵀ K ∇c`` along ``−∇ℓ``: on the left by a central difference, which knows nothing of derivatives.

    Its error is estimated from a second one with half the step, and from the rounding of the losses.
    """
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    slope = _gradient(subject, model, weights)
    length = sum(float((part**2).sum()) for part in slope.values())
    loss = float(_loss(subject, model, weights))
    if length == 0 or loss == 0:
        cause = "the gradient of the loss is zero"
        return Statement("gradient flow", _FLOW, -length, "=", -kernel_squared, 0.0, cause=cause)

    def difference(time: float) -> float:
        ahead, back = (
            float(_loss(subject, model, {name: weights[name] - t * slope[name] for name in weights}))
            for t in (time, -time)
        )
        return (ahead - back) / (2 * time)

    time = _CHANGE * loss / length
    whole, half = difference(time), difference(time / 2)
    rounding = 100 * torch.finfo(torch.float64).eps * loss / time
    error = 4 * abs(whole - half) + rounding
    return Statement("gradient flow", _FLOW, half, "=", -kernel_squared, error, note="left by a central difference")


_FLOW = "dℓ/dt = −∇cᵀ K ∇c"


def _gradient(subject: Subject, model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    found = torch.autograd.grad(_loss(subject, model, leaves), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def _loss(subject: Subject, model: nn.Module, weights: dict[str, Tensor]) -> Tensor:
    """The loss on the probe with other weights; buffers stay as they are."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return cross_entropy(functional_call(model, {**weights, **buffers}, (subject.x,)), subject.y)
