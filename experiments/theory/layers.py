"""The statements about layers, along training: chain rule, regularity, and what each skip guarantees."""

from collections.abc import Callable, Iterable

import pandas as pd
from torch import nn
from tqdm import tqdm

from skip_conditioning.diagnostics.theory.chain_rule import chain_rule
from skip_conditioning.diagnostics.theory.regularity import regularity
from skip_conditioning.diagnostics.theory.skip_bound import skip_bound
from skip_conditioning.diagnostics.theory.statement import Statement
from skip_conditioning.experiments.theory.networks import (
    CheckedNetwork,
    contractive_network,
    networks_to_check,
    paper_network,
    train,
)
from skip_conditioning.experiments.theory.options import TheoryOptions
from skip_conditioning.experiments.theory.report import Check, write_table

_SUBSPACES = ("all", "centred", "data")


def check_chain_rule(options: TheoryOptions) -> list[Check]:
    """``∂F/∂θ_l`` of every layer, and the kernel, against the products of the layers' derivatives."""
    networks = networks_to_check(options)
    if options.model is None:
        networks.append(paper_network(options))
    return _along_training(
        options, networks, lambda network, model: chain_rule(model, network.x, layers=options.layers), "chain rule"
    )


def check_regularity(options: TheoryOptions) -> list[Check]:
    """``λ(DF)`` against its bound by the layers, plain and restricted; writes the terms to ``regularity.parquet``."""
    rows: list[dict[str, object]] = []
    checks: list[Check] = []
    for network, step, model in _states(options, networks_to_check(options), "regularity"):
        for subspace in _SUBSPACES:
            result = regularity(model, network.x, layers=options.layers, subspace=subspace)
            terms = [term.statement for term in result.terms] if subspace == "all" else []
            statements = [result.statement, result.restricted_statement, *terms]
            checks += [Check(network.name, statement, step) for statement in statements]
            where = {"network": network.name, "step": step, "subspace": subspace, "lambda": result.whole.value}
            for kind, layers in (("plain", result.terms), ("restricted", result.restricted)):
                rows += [{**where, "kind": kind, **term.as_row()} for term in layers]
    write_table(pd.DataFrame(rows), options.out / "regularity.parquet")
    return checks


def check_skips(options: TheoryOptions) -> list[Check]:
    """``σ_min(I + Jg) ≥ 1 − ‖Jg‖`` of every block of the networks with identity skips.

    Raises:
        LayerCallError: A network of the user's has no block whose output has the shape of its input.
    """
    networks = networks_to_check(options)
    layers: tuple[str, ...] | str | None = options.layers
    if options.model is None:
        networks = [network for network in networks if network.name.startswith("skip")]
        networks.append(contractive_network(options))
        layers = "blocks.*"  # the stem and the head are no blocks, whatever their shapes
    return _along_training(
        options, networks, lambda network, model: skip_bound(model, network.x, layers=layers), "skips"
    )


def _along_training(
    options: TheoryOptions,
    networks: list[CheckedNetwork],
    statements: Callable[[CheckedNetwork, nn.Module], Iterable[Statement]],
    name: str,
) -> list[Check]:
    return [
        Check(network.name, statement, step)
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
