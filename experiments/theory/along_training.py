"""The statements checked along training: chain rule, regularity, what each skip guarantees, and the PŁ chain."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from skip_conditioning.diagnostics.loss.losses import loss_metrics
from skip_conditioning.diagnostics.loss.probe_loss import loss_gradient
from skip_conditioning.diagnostics.monitoring.monitor import SpectrumMonitor
from skip_conditioning.diagnostics.networks.measuring import measuring
from skip_conditioning.diagnostics.tables import write_json, write_table
from skip_conditioning.diagnostics.theory.chain_rule import chain_rule
from skip_conditioning.diagnostics.theory.pl_inequality import pl_chain
from skip_conditioning.diagnostics.theory.regularity import regularity
from skip_conditioning.diagnostics.theory.skip_bound import skip_bound
from skip_conditioning.diagnostics.theory.statement import Statement
from skip_conditioning.experiments.theory.experiment import CheckedStatement, TheoryOptions
from skip_conditioning.experiments.theory.networks import (
    LR,
    CheckedNetwork,
    contractive_network,
    networks_to_check,
    paper_network,
    train,
)

_SUBSPACES = ("all", "centred", "data")

_FLOW = "dℓ/dt = −∇cᵀ K ∇c"

#: Length of the numerical derivative's step: to first order the loss changes by this share of itself.
_CHANGE = 1e-5


def check_chain_rule(options: TheoryOptions) -> list[CheckedStatement]:
    """``∂F/∂θ_l`` of every layer, and the kernel, against the products of the layers' derivatives."""
    networks = networks_to_check(options)
    if options.model is None:
        networks.append(paper_network(options))
    return _along_training(
        options, networks, lambda network, model: chain_rule(model, network.x, layers=options.layers), "chain rule"
    )


def check_regularity(options: TheoryOptions) -> list[CheckedStatement]:
    """``λ(DF)`` against its bound by the layers, plain and restricted; writes the terms to ``regularity.parquet``."""
    rows: list[dict[str, object]] = []
    checks: list[CheckedStatement] = []
    for network, step, model in _states(options, networks_to_check(options), "regularity"):
        for subspace in _SUBSPACES:
            result = regularity(model, network.x, layers=options.layers, subspace=subspace)
            terms = [term.statement for term in result.terms] if subspace == "all" else []
            statements = [result.statement, result.restricted_statement, *terms]
            checks += [CheckedStatement(network.name, statement, step, kind=network.kind) for statement in statements]
            where = {"network": network.name, "step": step, "subspace": subspace, "lambda": result.whole.value}
            for kind, layers in (("plain", result.terms), ("restricted", result.restricted)):
                rows += [{**where, "kind": kind, **term.as_row()} for term in layers]
    write_table(pd.DataFrame(rows), options.out / "regularity.parquet")
    return checks


def check_skips(options: TheoryOptions) -> list[CheckedStatement]:
    """``σ_min(I + Jg) ≥ 1 − ‖Jg‖`` of every block of the networks with identity skips.

    Raises:
        LayerCallError: A network of the user's has no block whose output has the shape of its input.
    """
    networks = networks_to_check(options)
    layers: tuple[str, ...] | str | None = options.layers
    if options.model is None:
        networks = [network for network in networks if network.has_skips]
        networks.append(contractive_network(options))
        layers = "blocks.*"  # the stem and the head are no blocks, whatever their shapes
    return _along_training(
        options, networks, lambda network, model: skip_bound(model, network.x, layers=layers), "skips"
    )


def check_pl_chain(options: TheoryOptions) -> list[CheckedStatement]:
    """``λ(DF)|∇c|² ≤ |∇ℓ|² ≤ ‖DF‖²|∇c|²``, and the decrease that it promises, at some steps of every network.

    Each is trained with a monitor that logs the chain (``SpectrumMonitor(bounds=True)``), as a user's would be.
    """
    steps, interval = (12, 6) if options.quick else (200, 20)
    checks: list[CheckedStatement] = []
    for network in tqdm(networks_to_check(options), desc="PŁ along training", leave=False):
        states = train(network, steps)
        step, model = next(states)
        with _monitor(network, model, options.out / "pl") as monitor:
            while True:
                monitor.step(step)
                if step % interval == 0:
                    chain = pl_chain(model, network.x, network.y)
                    statements = [*chain.statements, _gradient_flow(network, model, chain.kernel_squared)]
                    checks += [
                        CheckedStatement(network.name, statement, step, kind=network.kind) for statement in statements
                    ]
                if step == steps:
                    break
                step, model = next(states)
    return checks


def _along_training(
    options: TheoryOptions,
    networks: list[CheckedNetwork],
    statements: Callable[[CheckedNetwork, nn.Module], Iterable[Statement]],
    name: str,
) -> list[CheckedStatement]:
    return [
        CheckedStatement(network.name, statement, step, kind=network.kind)
        for network, step, model in _states(options, networks, name)
        for statement in statements(network, model)
    ]


def _states(
    options: TheoryOptions, networks: list[CheckedNetwork], name: str
) -> Iterable[tuple[CheckedNetwork, int, nn.Module]]:
    """Every network at the start, early and (unless quick) late in training."""
    steps = (0, 10) if options.quick else (0, 10, 100)
    bar = tqdm(total=len(networks) * len(steps), desc=name, leave=False)
    with bar:
        for network in networks:
            for step, model in train(network, steps[-1]):
                if step in steps:
                    yield network, step, model
                    bar.update()


def _monitor(network: CheckedNetwork, model: nn.Module, out: Path) -> SpectrumMonitor:
    """A monitor of the chain at every step, its tables empty, and the run's ``config.json`` beside them."""
    directory = out / "runs" / re.sub(r"\W+", "-", network.name).strip("-")
    monitor = SpectrumMonitor(
        model, (network.x, network.y), directory, maps=(), bounds=True, schedule=1, max_overhead=None, overwrite=True
    )
    config = {"experiment": "theory", "model": network.name, "arm": network.name, "trial": 0, "lr": LR}
    write_json(config, directory / "config.json")
    return monitor


def _gradient_flow(network: CheckedNetwork, model: nn.Module, kernel_squared: float) -> Statement:
    """``dℓ/dt = −∇cᵀ K ∇c`` along ``−∇ℓ``: on the left by a central difference, which knows nothing of derivatives.

    Its error is estimated from a second one with half the step, and from the rounding of the losses.
    """
    with measuring(model, (network.x, network.y), dtype=torch.float64) as probed:
        gradient = loss_gradient(probed.recording(), probed.probe)
        slope = {parameter: gradient.scale * part for parameter, part in gradient.parameters.items()}
        length = sum(float((part**2).sum()) for part in slope.values())
        if length == 0 or gradient.loss == 0:
            cause = "the gradient of the loss is zero"
            return Statement("gradient flow", _FLOW, -length, "=", -kernel_squared, 0.0, cause=cause)

        def loss(time: float) -> float:
            """After so much gradient flow, to first order; with the same dropout masks every time."""
            moved = {parameter: probed.state[parameter] - time * part for parameter, part in slope.items()}
            return loss_metrics(probed.returned(moved), probed.probe)["loss"].item()

        time = _CHANGE * gradient.loss / length
        whole, half = ((loss(step) - loss(-step)) / (2 * step) for step in (time, time / 2))
    error = 4 * abs(whole - half) + 100 * torch.finfo(torch.float64).eps * gradient.loss / time
    cause = f"the difference quotient is only known to {error:.2g}" if error >= abs(kernel_squared) else ""
    note = "left by a central difference"
    return Statement("gradient flow", _FLOW, half, "=", -kernel_squared, error, cause=cause, note=note)
