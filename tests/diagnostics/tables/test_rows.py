"""A value that does not fit its column is refused when it is logged, alone; everything else can be written."""

import math

import numpy as np
import pytest
import torch

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import METRICS, SPECTRA, TableWriter, read_experiment

ROW = {"run_id": "one", "step": 7, "split": "train"}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("step", True, r"column 'step' must be a whole number from 0; it is True \(bool\)"),
        ("step", torch.tensor(True), "column 'step' must be a whole number from 0"),
        ("step", -1, "column 'step' must be a whole number from 0; it is -1"),
        ("step", None, "column 'step' must be a whole number from 0; it is None"),
        ("step", 1.5, "whole number from 0; it is 1.5"),
        ("step", math.inf, "whole number from 0; it is inf"),
        ("step", np.float32("nan"), "whole number from 0; it is nan"),
        ("step", 2**63, "whole number from 0; it is 9223372036854775808"),
        ("step", "3", "whole number from 0; it is 3 .str."),
        ("loss", 10**400, "column 'loss' must be a single number; it is 1000000.*… .int."),
        pytest.param("loss", 10**5000, "single number; it is a number of very many digits", id="huge"),
        ("loss", "low", "single number; it is low .str."),
        ("loss", 1j, "single number"),
        ("loss", [0.1], "single number"),
        ("loss", torch.ones(3), r"single number; it is a Tensor of shape \(3,\)"),
        ("loss", torch.ones(2, device="meta"), r"single number; it is a Tensor of shape \(2,\)"),
        ("loss", torch.ones((), device="meta"), "single number; it is tensor"),
        ("loss", np.ones((1, 2)), r"single number; it is a ndarray of shape \(1, 2\)"),
        ("split", 3, "column 'split' must be text"),
        ("split", "\ud800", "column 'split' must be text"),
        ("los", 1.0, "unknown column 'los'; the table has run_id, step, epoch"),
        (None, 1.0, "unknown column None"),
    ],
)
def test_a_bad_value_is_named_and_its_row_alone_is_refused(tmp_path, column, value, message):
    writer = TableWriter(tmp_path / "metrics", METRICS)
    writer.append(ROW)
    with pytest.raises(InputError, match=message) as caught:
        writer.append(ROW | {column: value})
    assert len(str(caught.value).splitlines()) == 1
    writer.append(ROW | {"step": 8})
    writer.save()
    writer.flush()
    assert read_experiment(tmp_path).metrics.step.tolist() == [7, 8]


@pytest.mark.parametrize("save", [False, True])
def test_numbers_of_any_library_are_written(tmp_path, save):
    writer = TableWriter(tmp_path / "metrics", METRICS)
    values = [1, True, np.int8(1), np.float16(1), np.longdouble(1), np.ones((1, 1)), torch.tensor([1.0]).bfloat16()]
    for step, value in enumerate([*values, torch.tensor(1, dtype=torch.uint8), torch.ones((), requires_grad=True)]):
        writer.append({"run_id": "one", "step": np.int32(step), "split": np.str_("train"), "loss": value})
        if save:
            writer.save()
    assert save or not list(tmp_path.rglob("*.jsonl"))
    writer.flush()
    assert read_experiment(tmp_path).metrics.loss.tolist() == [1.0] * 9


@pytest.mark.parametrize("values", [["1"], [[1.0]], 1.0, [10**400], "1"])
def test_a_list_holds_numbers(tmp_path, values):
    writer = TableWriter(tmp_path / "spectra", SPECTRA)
    with pytest.raises(InputError, match="column 'values' must be a list of numbers"):
        writer.append({"run_id": "one", "step": 0, "values": values})
    with pytest.raises(InputError, match="column 'resolved' must be True or False; it is 1"):
        writer.append({"run_id": "one", "step": 0, "resolved": 1})
    writer.append({"run_id": "one", "step": 0, "resolved": np.bool_(True), "values": np.float32([2, 1])})
    writer.flush()
    (row,) = read_experiment(tmp_path).spectra.to_dict("records")
    assert (row["values"].tolist(), row["resolved"]) == ([2.0, 1.0], True)
