"""The PŁ chain along training: ``λ(DF)|∇c|² ≤ |∇ℓ|² ≤ ‖DF‖²|∇c|²``, and the decrease that it promises.

Each network is trained with a monitor that logs the chain (``SpectrumMonitor(bounds=True)``), as a user's would be.
"""

import re
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from skip_conditioning.diagnostics.loss.probe_loss import loss_gradient, loss_metrics
from skip_conditioning.diagnostics.monitoring.monitor import SpectrumMonitor
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.tables import write_json
from skip_conditioning.diagnostics.theory.pl_inequality import pl_chain
from skip_conditioning.diagnostics.theory.statement import Statement
from skip_conditioning.experiments.theory.networks import LR, CheckedNetwork, networks_to_check, train
from skip_conditioning.experiments.theory.options import TheoryOptions
from skip_conditioning.experiments.theory.report import Check

_FLOW = "dℓ/dt = −∇cᵀ K ∇c"

#: Length of the numerical derivative's step: to first order the loss changes by this share of itself.
_CHANGE = 1e-5


def check_pl_chain(options: TheoryOptions) -> list[Check]:
    """Train every network with the chain logged at each step, and check its statements at some of them."""
    steps, interval = (12, 6) if options.quick else (200, 20)
    checks: list[Check] = []
    for network in tqdm(networks_to_check(options), desc="PŁ along training", leave=False):
        states = train(network, steps)
        step, model = next(states)
        with _monitor(network, model, options.out / "pl") as monitor:
            while True:
                monitor.step(step)
                if step % interval == 0:
                    checks += [Check(network.name, statement, step) for statement in _statements(network, model)]
                if step == steps:
                    break
                step, model = next(states)
    return checks


def _monitor(network: CheckedNetwork, model: nn.Module, out: Path) -> SpectrumMonitor:
    """A monitor of the chain at every step, its tables empty, and the run's ``config.json`` beside them."""
    directory = out / "runs" / re.sub(r"\W+", "-", network.name).strip("-")
    monitor = SpectrumMonitor(
        model, (network.x, network.y), directory, maps=(), bounds=True, schedule=1, max_overhead=None
    )
    monitor.rewind(-1)
    config = {"experiment": "theory", "model": network.name, "arm": network.name, "trial": 0, "lr": LR}
    write_json(config, directory / "config.json")
    return monitor


def _statements(network: CheckedNetwork, model: nn.Module) -> list[Statement]:
    chain = pl_chain(model, network.x, network.y)
    return [*chain.statements, _gradient_flow(network, model, chain.kernel_squared)]


def _gradient_flow(network: CheckedNetwork, model: nn.Module, kernel_squared: float) -> Statement:
    """``dℓ/dt = −∇cᵀ K ∇c`` along ``−∇ℓ``: on the left by a central difference, which knows nothing of derivatives.

    Its error is estimated from a second one with half the step, and from the rounding of the losses.
    """
    with measuring(model, network.x, dtype=torch.float64) as probed:
        gradient = loss_gradient(probed.recording(), network.y, probed.x)
        slope = {parameter: gradient.scale * part for parameter, part in gradient.parameters.items()}
        length = sum(float((part**2).sum()) for part in slope.values())
        if length == 0 or gradient.loss == 0:
            cause = "the gradient of the loss is zero"
            return Statement("gradient flow", _FLOW, -length, "=", -kernel_squared, 0.0, cause=cause)

        def loss(time: float) -> float:
            """After so much gradient flow, to first order; with the same dropout masks every time."""
            moved = {parameter: probed.state[parameter] - time * part for parameter, part in slope.items()}
            return loss_metrics(probed.logits(moved), network.y, probed.x)["loss"].item()

        time = _CHANGE * gradient.loss / length
        whole, half = ((loss(step) - loss(-step)) / (2 * step) for step in (time, time / 2))
    error = 4 * abs(whole - half) + 100 * torch.finfo(torch.float64).eps * gradient.loss / time
    cause = f"the difference quotient is only known to {error:.2g}" if error >= abs(kernel_squared) else ""
    note = "left by a central difference"
    return Statement("gradient flow", _FLOW, half, "=", -kernel_squared, error, cause=cause, note=note)
