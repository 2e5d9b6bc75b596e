"""The statements about layers, along training: chain rule, regularity, and what each skip guarantees."""

from collections.abc import Callable, Iterable

import pandas as pd
from torch import nn
from tqdm import tqdm

from skip_conditioning.diagnostics.errors import LayerCallError
from skip_conditioning.diagnostics.theory.chain_rule import chain_rule
from skip_conditioning.diagnostics.theory.regularity import regularity
from skip_conditioning.diagnostics.theory.skip_bound import skip_bound
from skip_conditioning.diagnostics.theory.statement import Statement
from skip_conditioning.experiments.theory.networks import Subject, contractive_network, paper_network, subjects, train
from skip_conditioning.experiments.theory.setting import Check, Setting, write_table

_SUBSPACES = ("all", "centred", "data")


def check_chain_rule(setting: Setting) -> list[Check]:
    """``∂F/∂θ_l`` against the product of the layers, of every layer and of the kernel."""
    networks = subjects(setting)
    if setting.model is None:
        networks.append(paper_network(setting))
    return _along_training(
        setting, networks, lambda one, model: chain_rule(model, one.x, layers=setting.layers), "chain rule"
    )


def check_regularity(setting: Setting) -> list[Check]:
    """``λ(DF)`` against its layers, plain and restricted, on three subspaces; writes the factors as a table."""
    rows: list[dict[str, object]] = []
    checks: list[Check] = []
    for subject, step, model in _states(setting, subjects(setting), "regularity"):
        for subspace in _SUBSPACES:
            found = regularity(model, subject.x, layers=setting.layers, subspace=subspace)
            terms = [term.statement for term in found.terms] if subspace == "all" else []
            statements = [found.statement, found.restricted_statement, *terms]
            checks += [Check(subject.name, one, step) for one in statements]
            where = {"network": subject.name, "step": step, "subspace": subspace, "lambda": found.whole.value}
            for kind, layers in (("plain", found.terms), ("restricted", found.restricted)):
                rows += [{**where, "kind": kind, **term.as_row()} for term in layers]
    write_table(pd.DataFrame(rows), setting.out / "regularity.parquet")
    return checks


def check_skips(setting: Setting) -> list[Check]:
    """``σ_min(I + Jg) ≥ 1 − ‖Jg‖`` of every block of the networks with identity skips."""
    if setting.model is None:
        networks = [one for one in subjects(setting) if one.name.startswith("skip")] + [contractive_network(setting)]
        # The stem and the head are no blocks, whatever their shapes.
        return _along_training(
            setting, networks, lambda one, model: skip_bound(model, one.x, layers="blocks.*"), "skips"
        )
    (subject,) = subjects(setting)
    try:
        return _along_training(
            setting, [subject], lambda one, model: skip_bound(model, one.x, layers=setting.layers), "skips"
        )
    except LayerCallError as reason:
        print(f"skips: {reason}")
        return []


def _along_training(
    setting: Setting,
    networks: list[Subject],
    statements: Callable[[Subject, nn.Module], Iterable[Statement]],
    name: str,
) -> list[Check]:
    return [
        Check(subject.name, statement, step)
        for subject, step, model in _states(setting, networks, name)
        for statement in statements(subject, model)
    ]


def _states(setting: Setting, networks: list[Subject], name: str) -> Iterable[tuple[Subject, int, nn.Module]]:
    """Every network at the start, early and late in training."""
    steps = (0, 10) if setting.quick else (0, 10, 100)
    bar = tqdm(total=len(networks) * len(steps), desc=name, leave=False)
    with bar:
        for subject in networks:
            for step, model in train(subject, steps[-1]):
                if step in steps:
                    yield subject, step, model
                    bar.update()
