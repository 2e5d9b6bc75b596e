"""One monitor shared by two processes: the tables of one alone, the same decisions in both, and no failure of one."""

#: What each of two processes runs: rank, and the file through which they meet; tables go beside it.
PROGRAM = """
import os
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn

import skip_conditioning.diagnostics.monitoring.due_queue
import skip_conditioning.diagnostics.measure
import skip_conditioning.diagnostics.jacobians.exact
import skip_conditioning.diagnostics.networks.first_process
import skip_conditioning.diagnostics.kernel.batch
import skip_conditioning.diagnostics.kernel.engine
import skip_conditioning.diagnostics.kernel.spectra
import skip_conditioning.diagnostics.monitoring.monitor
import skip_conditioning.diagnostics.support.sharding
from skip_conditioning import diagnostics
from skip_conditioning import SpectrumMonitor
from skip_conditioning.diagnostics.errors import InputError, LayerCallError, UnknownLayerError
from skip_conditioning.diagnostics.monitoring.measurement import Measurement
from skip_conditioning.diagnostics.support.sharding import distribute, run_in_all, summed
from skip_conditioning.diagnostics.tables import read_experiment
from tests.unchanged import nothing_changes

torch.set_num_threads(1)
rank, meeting = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group(
    "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
)
group, folder = distributed.group.WORLD, Path(meeting).parent
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh()), nn.Linear(6, 3))
model.double()
x, y = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
own = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(rank)) * (1 + 5 * rank)


def gathered(value):
    found = [None, None]
    distributed.all_gather_object(found, value)
    return found


def monitor(name, **options):
    return SpectrumMonitor(model, (x, y), folder / name, **{"schedule": 1, "group": group, **options})


# The floor is measured, of rounding, which depends on how the work is shared; and so do the bounds that rest on it.
ROUNDING = ("floor", "sigma_min", "sigma_gmean", "condition_number", "resolved", "rank")


def equal(one, other, path):
    if path.startswith("witness"):
        assert (one is None) == (other is None) and not (one or 0) > 1e-12
    elif path.startswith(ROUNDING) and one is not None:
        np.testing.assert_allclose(one, other, rtol=0.5, err_msg=path)
    elif isinstance(one, float) and isinstance(other, float):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-13, err_msg=path)
    elif isinstance(one, list | np.ndarray):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13 * np.max(one, initial=0), err_msg=path)
    else:
        assert one == other or one is other, (path, one, other)


def equal_tables(one, other, sort):
    assert len(one) == len(other) > 0
    one, other = (table.sort_values(sort).to_dict("records") for table in (one, other))
    for row, shared in zip(one, other, strict=True):
        for column in row.keys() - {"run_id", "seconds", "estimated_seconds"}:
            equal(row[column], shared[column], f"{column} of {[row[key] for key in sort]}")


def same():
    model(own).square().sum().backward()
    assert not torch.equal(*gathered(model[1][1].running_var))
    whole = [Measurement(name, "1") for name in ("layer", "tail", "param", "kernel")]
    whole += [Measurement("network"), Measurement("kernel", "total"), Measurement("layer", "1", "sample")]
    samples = [Measurement(name, "1", "sample") for name in ("tail", "param", "kernel")]
    samples += [Measurement("network", batch_mode="sample")]
    for method, steps in {"exact": 2, "lanczos": 1, "auto": 1}.items():
        maps = whole + samples * (method == "exact")
        maps += [Measurement("layer", ["0", "2"], schedule=lambda step: step == 1)]
        options = {"maps": maps, "method": method, "max_overhead": None, "bounds": method == "exact"}
        alone, shared = monitor(f"alone-{method}", group=None, **options), monitor(f"shared-{method}", **options)
        for step in range(steps):
            found = alone.step(step, loss=float(rank))
            assert bool(found) == (rank == 0)  # without a group only one measures
            with nothing_changes(model, x):
                shared.log(step, split="test", loss=float(rank))
                alone.log(step, split="test", loss=float(rank))
                found = shared.step(step, loss=float(rank))
            assert len(found) == (23 if method == "exact" else 11), sorted(found)
            np.testing.assert_equal(*gathered({key: spectrum.as_row() for key, spectrum in found.items()}))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.1)
            model(own)
        alone.close(), shared.close()
        distributed.barrier()
        one, other = (read_experiment(folder / f"{name}-{method}") for name in ("alone", "shared"))
        equal_tables(one.spectra, other.spectra, ["step", "map", "layer", "batch_mode", "sample"])
        equal_tables(one.metrics, other.metrics, ["step", "split"])
        assert set(other.metrics.query("split != 'probe'").loss) == {0.0}  # the first's
        assert one.skipped.empty and other.skipped.empty
        assert other.spectra.rayleigh.notna().any()
        if method == "exact":
            assert other.metrics.predicted_decrease.notna().sum() == 1
        distributed.barrier()
        shared.rewind(0)
        distributed.barrier()
        assert set(read_experiment(folder / f"shared-{method}").spectra.step) == {0}
        distributed.barrier()

    # The group's first process need not be that of all, and who is not in it has nothing to do.
    lone = distributed.new_group([1])
    with monitor("lone", maps="network", max_overhead=None, group=lone) as only:
        assert list(only.step(0, loss=float(rank))) == (["network"] if rank else [])
    distributed.barrier()
    assert set(read_experiment(folder / "lone").metrics.query("split == 'train'").loss) == {1.0}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def clocks():
    clock, spectra = Clock(), diagnostics.measure.spectra
    pace = (1.0, -3.7)[rank]  # the other's clock runs backwards, and its measurements take no time
    seconds = 1.0

    def slow(*args, **options):
        clock.now += seconds if rank == 0 else 0.0
        return spectra(*args, **options)

    time.perf_counter = clock
    diagnostics.monitoring.probe_measurements.spectra = slow
    diagnostics.monitoring.probe_measurements.forecast = lambda *args, **options: 1.0
    with monitor("clocks", maps="network", max_overhead=0.1) as shared:
        measured = []
        for step in range(60):
            clock.now += pace
            measured += [step] if shared.step(step) else []
            assert rank or shared.overhead <= max(1 / (step + 1), 0.1) + 1e-9
    assert measured == [0, 19, 29, 39, 49, 59]
    distributed.barrier()
    skipped = read_experiment(folder / "clocks").skipped
    assert sorted(skipped.step) == [step for step in range(60) if step not in measured]
    assert set(skipped.estimated_seconds) == {1.0}

    # A long wait takes few rounds of messages, and lasts a tenth longer at most.
    seconds = 100.0
    asked, distribute = [], diagnostics.monitoring.due_queue.distribute
    diagnostics.monitoring.due_queue.distribute = lambda *args: (asked.append(step), distribute(*args))[1]
    with monitor("wait", maps="network", max_overhead=0.1, schedule=lambda step: step == 5) as shared:
        measured = []
        for step in range(2300):
            clock.now += pace
            measured += [step] if shared.step(step) else []
    assert len(measured) == 2 and measured[0] == 0 and 1999 <= measured[1] <= 2200, measured
    assert len(asked) < 100 and asked[0] == 5, len(asked)
    distributed.barrier()
    assert read_experiment(folder / "wait").skipped.step.tolist() == [5]

    # Nothing was measured after the first step: the first process says so, the others say nothing.
    shared = monitor("never", maps="network", max_overhead=0.1)
    shared.step(0)
    shared.step(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shared.close()
    assert [str(warning.message)[:20] for warning in caught] == ["nothing was measured"] * (rank == 0)


def broken(module, name, process, error, after=0):
    '''Make a function raise in one process, from its call after so many on; gives the way to mend it.'''
    whole, calls = getattr(module, name), []

    def raises(*args, **options):
        calls.append(None)
        if rank == process and len(calls) > after:
            raise error
        return whole(*args, **options)

    setattr(module, name, raises)
    return lambda: setattr(module, name, whole)


def failures():
    class Odd(LayerCallError):
        def __init__(self, one, two):  # which cannot be unpickled
            super().__init__(one)

    maps = ["network", Measurement("tail", ["0", "1"]), Measurement("kernel", "1")]
    shared = monitor("failures", maps=maps, max_overhead=None, bounds=True)
    weight = model[2].weight.data
    assert len(shared.step(0)) == 4
    expected, step = [], 0
    memory = torch.OutOfMemoryError("no memory here")
    cases = [
        (diagnostics.networks.measuring, "build_maps", 1, LayerCallError("never called here"), 0, {"network", "tail"}),
        (diagnostics.networks.measuring, "build_maps", 0, memory, 1, {"tail"}),
        (diagnostics.jacobians.exact, "svdvals", 1, memory, 0, {"network", "tail"}),
        (diagnostics.jacobians.exact, "svdvals", 0, np.linalg.LinAlgError("did not converge"), 2, {"tail"}),
        (diagnostics.kernel.engine, "part_kernel", 1, memory, 0, {"kernel"}),
        # Between two messages, when the other process waits for the next one already.
        (diagnostics.kernel.spectra, "tangent_kernel", 0, memory, 0, {"kernel"}),
        (diagnostics.kernel.engine, "_parts", 1, memory, 0, {"kernel"}),
        (diagnostics.kernel.batch, "PartSignals", 0, memory, 1, {"kernel", "bounds"}),
        (diagnostics.networks.first_process, "buffer_copies", 1, memory, 1, {"tail", "kernel"}),
        (diagnostics.measure, "measuring", 0, memory, 1, {"tail"}),
        (diagnostics.jacobians.exact, "_require_finite", 1, memory, 0, {"network", "tail"}),
        (diagnostics.monitoring.probe_measurements, "rayleigh_quotients", 0, InputError("no quotient"), 0, {"kernel"}),
        (diagnostics.monitoring.bounds_log, "pl_chain", 0, InputError("no chain"), 0, {"bounds"}),
    ]
    for *case, failed in cases:
        mend, step = broken(*case), step + 1
        found = shared.step(step)
        mend()
        alive = {"network", "tail", "kernel"} - failed
        assert {key.split(":")[0] for key in found} == alive, (case, sorted(found))
        assert gathered(sorted(found)) == [sorted(found)] * 2
        expected += [(step, name, str(case[3])) for name in sorted(failed)]
    mend = broken(diagnostics.networks.measuring, "build_maps", 1, Odd("odd", 0))
    with warnings.catch_warnings(record=True) as caught:  # no failure of training's, which goes on in both
        warnings.simplefilter("always")
        shared.step(step + 1)
    assert any("goes on: RuntimeError: Odd: odd" in str(warning.message) for warning in caught)
    mend()
    weight[0, 0] = float("nan")
    assert shared.step(step + 2) == {}
    weight[0, 0] = 1.0
    assert len(shared.step(step + 3)) == 4
    shared.close()
    distributed.barrier()
    tables = read_experiment(folder / "failures")
    skipped = tables.skipped[tables.skipped.step <= step].sort_values(["step", "map"])
    assert list(zip(skipped.step, skipped["map"], skipped.reason)) == expected
    assert len(tables.skipped[tables.skipped.step == step + 2]) == 4
    measured = tables.spectra.groupby("step")["map"].unique().map(set).to_dict()
    names = {"network", "tail", "kernel"}
    assert [names - measured.get(one + 1, set()) for one in range(len(cases))] == [
        failed & names for *_, failed in cases
    ]

    (folder / "file").touch()
    distributed.barrier()
    for name, options, kind in (("new", {"maps": "tail", "layers": "fc"}, UnknownLayerError), ("file", {}, InputError)):
        try:
            monitor(name, **options)
        except kind:
            pass
        else:
            raise AssertionError("no error")
    with monitor("new", maps="network", max_overhead=None) as shared:  # both go on together
        assert list(shared.step(0)) == ["network"]


def nested():
    # Two calls deep, an error at each place of either process, before, between and after the messages of the other.
    places = ["start", "first", "between", "second", "dealt", "end"]

    def inner(failing):
        def at(place):
            if place == failing.get(rank):
                raise ValueError(place, rank)

        at("start")
        try:
            run_in_all(lambda: at("first"), group)
            at("between")
            found = torch.ones(1)
            run_in_all(lambda: at("second"), group)
            summed(found, group)
            assert found == 2
            assert distribute(range(3), lambda index: at("dealt") or index, group) == [0, 1, 2]
        except ValueError as error:
            if failing.get("caught"):
                return "caught"
            raise
        at("end")

    def run(failing):
        try:
            return run_in_all(lambda: run_in_all(lambda: inner(failing), group), group)
        except ValueError as error:
            return error.args

    for place in places:
        for process in (0, 1):
            assert run({process: place}) == (place, process), (place, process)
    # What is caught is an error of the call itself; one that happens outside of a call ends more than that call.
    for place in ("first", "second", "dealt"):
        assert run({1: place, "caught": True}) == "caught"
    for place in ("start", "end"):
        assert run({1: place, "caught": True}) == (place, 1)
    # The outermost of two errors counts, and the first process's of two in one call.
    assert run({0: "first", 1: "start"}) == ("start", 1)
    assert run({0: "second", 1: "between"}) == ("between", 1)
    assert run({0: "dealt", 1: "dealt"}) == ("dealt", 0)
    assert run({}) is None


nested()
same()
failures()
clocks()  # last, as no clock of these processes is a real one any more
distributed.barrier()
distributed.destroy_process_group()
print("both agree", flush=True)
os._exit(0)  # all is checked: gloo's threads have been seen to abort while the interpreter ends
"""


def test_two_processes_share_a_monitor(agree_in_two_processes):
    agree_in_two_processes(PROGRAM)
