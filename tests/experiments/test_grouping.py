"""Which runs are trained together: fresh ones by their arms' structure, begun ones as they were begun."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from diagnostics.errors import InputError
from experiments.cells import Cell, recorded_group
from experiments.data import ImageData, Split
from experiments.grouping import alike_arms, grouped
from experiments.presets import PRESETS
from experiments.ranks import Ranks
from experiments.training_data import HeldData

CONFIG = replace(PRESETS["demo"][1], together="auto")
CELLS = [Cell(arm, lr, trial, trial) for trial in (0, 1) for lr in (0.1, 0.5) for arm in ("a", "b", "c")]
ALIKE = {"a": "a", "b": "a"}


@pytest.fixture(autouse=True)
def _a_cpu_is_faster_with_them(monkeypatch):
    monkeypatch.setattr("experiments.grouping._FASTER_TOGETHER", {"cpu"})


class TwoRanks(Ranks):
    count = 2


def held():
    split = Split(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    return HeldData(ImageData("none", split, split, 3, (0.5,), (0.5,)), CONFIG, torch.device("cpu"), Ranks())


def layers(*inner):
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 4), *inner, nn.Linear(4, 3))


def arms(build, *, data=None, ranks=None, **options):
    return alike_arms(replace(CONFIG, **options), data or held(), ranks or Ranks(), build, torch.rand(3, 1, 2, 2))


BUILD = {
    "plain": layers(),
    "random": layers(nn.Dropout(0.5)),
    "tanh": layers(nn.Tanh()),
    "other": layers(),
}


def test_arms_of_one_structure_go_together_and_others_are_left_to_be_trained_alone():
    assert arms(BUILD) == {"plain": "plain", "tanh": "tanh", "other": "plain"}
    assert arms(BUILD, together="no") == {}


def test_arms_that_only_look_alike_do_not_go_together():
    class Hidden(nn.Module):
        factors: dict = {}  # noqa: RUF012

        def forward(self, x):
            return x * self.factors.get(id(self), 1)

    def second():
        made = layers(Hidden())()
        Hidden.factors[id(made[2])] = 5
        return made

    kept = []  # so that no two have the same id

    def keeping(make):
        return lambda: kept.append(make()) or kept[-1]

    assert arms({"first": keeping(lambda: layers(Hidden())()), "second": keeping(second)})["first"] == "first"
    assert arms({"first": keeping(lambda: layers(Hidden())()), "second": keeping(second)}).get("second") != "first"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"build": BUILD}, "random: its forward pass draws random numbers"),
        ({"build": {"plain": layers()}, "compile": True}, "--compile"),
        ({"build": {"plain": layers()}, "ranks": TwoRanks()}, "several processes"),
        ({"build": {"plain": layers()}, "data": "streamed"}, "streamed"),
    ],
)
def test_what_cannot_be_done_is_refused_on_demand_and_otherwise_left(options, words):
    with pytest.raises(InputError, match=f"--together yes cannot be done .*{words}.*--together no"):
        arms(**options, together="yes")
    assert "random" not in arms(**options)


def test_auto_is_for_the_devices_where_it_is_faster(monkeypatch):
    assert arms({"plain": layers()}) == {"plain": "plain"}
    monkeypatch.setattr("experiments.grouping._FASTER_TOGETHER", {"cuda"})
    assert arms({"plain": layers()}) == {}


def test_large_networks_go_together_on_demand_only():
    build = {"wide": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 250_000), nn.Linear(250_000, 3))}
    assert arms(build) == {}
    assert arms(build, together="yes") == {"wide": "wide"}


def names(groups):
    return [[cell.run_id for cell in group] for group in groups]


def begin(runs, groups, status="running"):
    """Record runs as an experiment does that begins to train them."""
    for group in groups:
        together = "\n".join(cell.run_id for cell in group) if len(group) > 1 else ""
        for cell in group:
            (runs / cell.run_id).mkdir(parents=True)
            record = {"arm": cell.arm, "lr": cell.lr, "trial": cell.trial, "seed": cell.seed, "together": together}
            (runs / cell.run_id / "config.json").write_text(json.dumps(record))
            (runs / cell.run_id / "status.json").write_text(json.dumps({"status": status}))


def test_fresh_runs_go_together_by_learning_rate_and_all_are_there_once(tmp_path):
    groups = grouped(CELLS, ALIKE, tmp_path)
    assert sorted(cell.run_id for group in groups for cell in group) == sorted(cell.run_id for cell in CELLS)
    joint, *single = groups
    assert {cell.arm for cell in joint} == {"a", "b"}
    assert [cell.lr for cell in joint] == [0.5] * 4 + [0.1] * 4
    assert all(len(group) == 1 and group[0].arm == "c" for group in single)
    assert grouped(CELLS, {}, tmp_path) == [[cell] for cell in CELLS]


def test_groups_begun_stay_what_they_were_and_what_is_over_is_left_out(tmp_path):
    before = grouped(CELLS[:6], ALIKE, tmp_path)
    begin(tmp_path, before)
    now = grouped(CELLS, ALIKE, tmp_path)
    assert now[: len(before)] == before
    assert {cell.trial for group in now[len(before) :] for cell in group} == {1}
    # One of the group that is over is still computed along; that the options leave it out changes nothing.
    (tmp_path / before[0][1].run_id / "status.json").write_text('{"status": "diverged"}')
    kept = [cell for cell in CELLS[:6] if cell not in before[0][1:3]]
    assert grouped(kept, ALIKE, tmp_path)[0] == before[0]
    for cell in before[0]:
        (tmp_path / cell.run_id / "status.json").write_text('{"status": "finished"}')
    assert grouped(CELLS[:6], ALIKE, tmp_path) == before[1:]


def test_a_run_begun_alone_stays_alone(tmp_path):
    begin(tmp_path, [[CELLS[0]]])
    groups = grouped(CELLS, ALIKE, tmp_path)
    assert [CELLS[0]] in groups
    assert sorted(map(len, groups)) == [1, 1, 1, 1, 1, 7]


@pytest.mark.parametrize("recorded", [1, 3, 7])
def test_a_group_of_which_not_all_is_recorded_was_never_begun(tmp_path, recorded):
    group = grouped(CELLS, ALIKE, tmp_path)[0]
    begin(tmp_path, [group])
    for cell in group[recorded:]:
        (tmp_path / cell.run_id / "config.json").unlink()
    assert recorded_group(tmp_path, group[0]) == []
    assert grouped(CELLS, ALIKE, tmp_path)[0] == group
    # The trial that comes with more of them joins.
    more = [*CELLS, Cell("a", 0.1, 2, 2)]
    assert len(grouped(more, ALIKE, tmp_path)[0]) == 9


@pytest.mark.parametrize("content", ["", "[", '"text"', '{"together": "a-lr0.1-trial00\\nb-lr0.1-trial00"}'])
def test_a_damaged_record_is_bad_input(tmp_path, content):
    begin(tmp_path, [CELLS[:2]])
    (tmp_path / CELLS[1].run_id / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config.json .*another --out"):
        [recorded_group(tmp_path, cell) for cell in CELLS[:2]]
