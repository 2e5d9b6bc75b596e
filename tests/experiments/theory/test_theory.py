"""The command that checks the theory: its quick version end to end, what it prints and writes, and bad input."""

import pandas as pd
import pytest
import torch
from torch import nn

from skip_conditioning.diagnostics.tables import read_experiment
from skip_conditioning.diagnostics.theory.statement import Statement
from skip_conditioning.experiments.theory import __main__ as theory
from skip_conditioning.experiments.theory import along_training
from skip_conditioning.experiments.theory.experiment import (
    CheckedStatement,
    TheoryOptions,
    print_checks,
    print_conclusion,
    statement_rows,
)
from skip_conditioning.experiments.theory.networks import networks_to_check, train

HERE = "tests.experiments.theory.test_theory"

FIGURES = (
    "bounds_along_training",
    "convergence_at_infinity",
    "curvature_growth",
    "random_matrices",
    "regularity_terms",
)


class Clipped(torch.autograd.Function):
    """The identity, whose backward pass pretends that it halves."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


class Wrong(nn.Sequential):
    """A network with a wrong derivative in the middle."""

    def forward(self, x):
        return self[2](Clipped.apply(self[1](self[0](x)).tanh()))


def user_network(arm="default"):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.Sequential(nn.Tanh(), nn.Linear(8, 10)))


def partly_frozen(arm="default"):
    network = user_network()
    network[1].requires_grad_(False)
    return network


def with_dropout(arm="default"):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.Dropout(0.5), nn.Tanh(), nn.Linear(12, 10))


class Uncut(nn.Module):
    """Skips written in the forward pass, around the blocks."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
        self.blocks, self.head = nn.ModuleList([nn.Linear(49, 49), nn.Linear(49, 49)]), nn.Linear(49, 10)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.head(x)


def uncut(arm="default"):
    return Uncut()


def tuple_network(arm="default"):
    network = user_network()
    network.register_forward_hook(lambda module, args, output: (output, 1))
    return network


def wrong_network(arm="default"):
    return Wrong(nn.Flatten(), nn.Linear(784, 6), nn.Linear(6, 10))


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Everything, at the quick size, once."""
    out = tmp_path_factory.mktemp("theory")
    assert theory.main(["--out", str(out), "--quick"]) == 0
    return out


@pytest.mark.slow
def test_the_quick_version_writes_every_statement_and_no_theorem_is_violated(quick):
    table = pd.read_parquet(quick / "theory.parquet")
    assert set(table["experiment"]) == set(theory.EXPERIMENTS)
    theorems = table[~table["is_claim"]]
    assert set(theorems["verdict"]) == {"holds", "vacuous"}
    assert (theorems["slack"] >= -theorems["error"]).all()
    assert ((theorems["verdict"] == "vacuous") == (theorems["cause"] != "")).all()
    # A bound that is zero is never said to hold.
    bounds = theorems[theorems["statement"].str.startswith(("regularity", "PŁ floor"))]
    bounds = bounds[bounds["statement"] != "regularity along the path"]
    assert (bounds.loc[bounds["verdict"] == "holds", "right"] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_quick_version_draws_every_figure(quick, name, suffix):
    assert (quick / "figures" / f"{name}.{suffix}").stat().st_size > 5000


@pytest.mark.slow
def test_the_chain_is_logged_at_every_step_with_the_decrease_of_each_but_the_last(quick):
    metrics = read_experiment(quick / "pl").metrics
    for _, run in metrics.groupby("run_id"):
        assert run["step"].tolist() == list(range(13))
        assert run["observed_decrease"].notna().tolist() == [True] * 12 + [False]
        # The probe is all the training data: what one step gained is the difference of two losses.
        assert run["observed_decrease"][:-1].to_numpy() == pytest.approx(-run["loss"].diff()[1:].to_numpy(), rel=1e-9)
        assert run["predicted_decrease"][:-1].to_numpy() == pytest.approx(0.1 * run["grad_squared"][:-1].to_numpy())


@pytest.mark.slow
def test_a_run_repeats(quick, tmp_path):
    assert theory.main(["skips", "--out", str(tmp_path), "--quick"]) == 0
    again, before = (pd.read_parquet(directory / "theory.parquet") for directory in (tmp_path, quick))
    before = before[before["experiment"] == "skips"].reset_index(drop=True)
    assert len(before) > 1
    pd.testing.assert_frame_equal(again, before, check_exact=True)


def test_a_network_of_the_users_own(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--quick", "--model", f"{HERE}:user_network"]
    assert theory.main(arguments) == 0
    table = pd.read_parquet(tmp_path / "theory.parquet")
    assert set(table["experiment"]) == {"chain-rule", "regularity", "pl"}
    assert set(table["network"]) == {f"{HERE}:user_network"}
    printed = capsys.readouterr().out
    assert "0 are violated" in printed
    assert "Sequential has no block whose output has the shape of its input" in printed


@pytest.mark.parametrize("factory", ["partly_frozen", "with_dropout"])
def test_the_gradient_flow_moves_what_is_trained_with_the_masks_of_the_chain(tmp_path, factory):
    arguments = ["pl", "--out", str(tmp_path), "--quick", "--model", f"{HERE}:{factory}"]
    assert theory.main([*arguments, "--probe-size", "4"]) == 0
    flow = pd.read_parquet(tmp_path / "theory.parquet").query("statement == 'gradient flow'")
    assert set(flow["verdict"]) == {"holds"}
    assert (flow["error"] < 1e-3 * flow["left"].abs()).all()


def test_a_network_that_is_no_chain_has_everything_else_checked(tmp_path, capsys):
    model = f"{HERE}:uncut"
    assert theory.main(["--out", str(tmp_path), "--quick", "--probe-size", "4", "--model", model]) == 0
    assert "chain-rule: not checked: the layers are no chain" in capsys.readouterr().out
    assert set(pd.read_parquet(tmp_path / "theory.parquet")["experiment"]) == {"skips", "pl"}
    assert theory.main(["chain-rule", "--out", str(tmp_path), "--quick", "--model", model]) == 2
    cut = ["chain-rule", "--layers", "head", "--probe-size", "4", "--out", str(tmp_path), "--quick", "--model", model]
    assert theory.main(cut) == 0
    # What an earlier call found stays.
    assert set(pd.read_parquet(tmp_path / "theory.parquet")["experiment"]) == {"skips", "pl", "chain-rule"}


def test_a_violation_is_a_finding_with_its_numbers_and_not_an_error(tmp_path, capsys):
    arguments = [
        "pl",
        "--out",
        str(tmp_path),
        "--quick",
        "--model",
        f"{HERE}:wrong_network",
    ]
    assert theory.main(arguments) == 0
    table = pd.read_parquet(tmp_path / "theory.parquet")
    wrong = table[table["verdict"] == "violated"]
    assert set(wrong["statement"]) == {"gradient flow"}
    printed = capsys.readouterr().out
    assert f"{wrong['left'].iloc[0]:.17g}" in printed
    assert "repeat with: skip-conditioning theory pl" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["regularty"], "Did you mean 'regularity'?"),
        (["convergence", "--model", "residual-mlp"], "convergence checks networks of our own"),
        (["--dataset", "mnist"], "name it by --model"),
        (["pl", "--probe-size", "0", "--model", "residual-mlp"], "--probe-size is 0"),
        (["pl", "--model", "resnet"], "resnet"),
        (["pl", "--model", "nowhere:nothing"], "there is no module 'nowhere'"),
        (["pl", "--model", f"{HERE}:tuple_network"], "must return logits of shape"),
        (
            ["regularity", "--model", f"{HERE}:user_network", "--layers", "3"],
            "has 0, 1, 2",
        ),
        (["--layers", "blocks.*"], "name it by --model"),
        (["--sed", "1"], "--sed"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys):
    assert theory.main([*arguments, "--out", str(tmp_path / "out"), "--quick"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert theory.main(["skips", "--quick", "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: cannot write {out}")
        assert error.count("\n") == 1


def test_threads_are_as_they_were(tmp_path):
    threads = torch.get_num_threads()
    theory.main(["random-matrices", "--out", str(tmp_path), "--quick"])
    assert torch.get_num_threads() == threads


def checks(*statements):
    return [CheckedStatement("net", statement, step) for step, statement in enumerate(statements)]


def test_the_least_slack_of_each_verdict_is_printed(capsys):
    loose, tight = (Statement("s", "a ≥ b", left, ">=", 1.0, 1e-9) for left in (5.0, 1.5))
    vacuous = Statement("s", "a ≥ b", 1.0, ">=", 0.0, 1e-9, cause="dead units: 3 of 4")
    claim = Statement("c", "p ≤ 0", 2.0, "<=", 0.0, 0.1, is_claim=True)
    print_checks("x", checks(loose, tight, vacuous, claim), 1.0)
    print_conclusion({"x": checks(loose, tight, vacuous, claim)})
    printed = capsys.readouterr().out
    assert "1.5" in printed
    assert "0.5" in printed
    assert "vacuous: s, net: dead units: 3 of 4\n" in printed
    assert "does not hold" in printed
    assert "VIOLATED" not in printed
    assert "3 checks of theorems: 2 hold, 1 are vacuous, 0 are violated" in printed
    assert "1 checks of claims: 0 hold, 0 are vacuous, 1 do not hold" in printed


def test_rows_hold_both_sides():
    row = statement_rows({"x": checks(Statement("s", "a ≥ b", 2.0, ">=", 1.0, 0.0))})[0]
    assert (row["experiment"], row["step"], row["left"], row["right"], row["slack"]) == ("x", 0, 2.0, 1.0, 1.0)


def test_networks_of_one_seed_are_the_same_and_training_lowers_the_loss():
    network = networks_to_check(TheoryOptions(None, quick=True))[0]
    first, last = ([model(network.x).detach() for _, model in train(network, 5)][step] for step in (0, -1))
    assert torch.equal(first, network.build()(network.x))
    loss = nn.functional.cross_entropy
    assert loss(last, network.y) < loss(first, network.y)


def test_a_layer_left_out_of_the_chain_rule_is_noticed(monkeypatch, tmp_path):
    from skip_conditioning.diagnostics.theory.chain_rule import _Layerwise

    whole = _Layerwise.pull_back

    def without_one(self, rows):
        self._layers = [(name, own, None if name == "blocks.1" else jacobian) for name, own, jacobian in self._layers]
        return whole(self, rows)

    monkeypatch.setattr(_Layerwise, "pull_back", without_one)
    checks = along_training.check_chain_rule(TheoryOptions(tmp_path, quick=True))
    assert any(check.statement.verdict == "violated" for check in checks)
