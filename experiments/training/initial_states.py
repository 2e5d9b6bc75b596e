"""What every arm's network is like at its initialisation, on its first training batch: ``OUT/initial_states.parquet``.

One row for each arm and trial, as neither the learning rate nor anything later bears on it. The columns are those of
``StateColumns``; batch norm is in train mode, as the run begins.
"""

import multiprocessing
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.kernel.result import TangentKernel
from skip_conditioning.diagnostics.kernel.tangent_kernel import tangent_kernel
from skip_conditioning.diagnostics.loss.hessian import HessianOperator, spectral_norm
from skip_conditioning.diagnostics.measure import spectra
from skip_conditioning.diagnostics.tables.files import read_parquet, write_parquet
from skip_conditioning.experiments.config.train_config import TrainConfig
from skip_conditioning.experiments.data.training_data import TrainingData, open_data
from skip_conditioning.experiments.processes.machine import choose_device, one_thread, usable_cores
from skip_conditioning.experiments.processes.ranks import Ranks
from skip_conditioning.experiments.training.runs import Run, RunFactory, all_runs

INITIAL_STATES: Final = "initial_states.parquet"
#: Seconds between two writes of the table.
_WRITE_EVERY: Final = 10.0
#: Processes by default, where there are more cores.
_MOST: Final = 16
_REMEDY: Final = "remove it, and repeat the command"


@dataclass(frozen=True)
class StateColumns:
    """The measures of one initial state, all on the first training batch.

    Attributes:
        loss: The training loss.
        grad_norm: Norm of its gradient in all parameters.
        grad_norm_first: The same in the first third of the parameter tensors, in the network's order.
        grad_norm_middle: In the second third.
        grad_norm_last: In the last third.
        sharpness: Norm of the loss's Hessian, its largest eigenvalue in size.
        effective_rank: Of the Jacobian of the logits in the output of the network's first module, as are the next four.
        condition_number: A lower bound where not resolved.
        condition_number_resolved: Whether its smallest singular value is above the floor.
        isometry_cosine: Mean over root mean square of the singular values: 1 for a multiple of an isometry.
        jacobian_norm: ‖J‖_F.
        kernel_effective_rank: Of the tangent kernel, all parameters and outputs, as are the next three.
        kernel_condition_number: A lower bound where not resolved.
        kernel_condition_number_resolved: Whether its smallest eigenvalue is above the floor.
        kernel_norm: Its largest eigenvalue.
        gauss_newton_condition_number: Of the Gauss–Newton matrix ``JᵀSJ``, S the Hessian of cross-entropy in the
            logits, without the directions in which S is zero; a lower bound where not resolved.
        gauss_newton_condition_number_resolved: Whether its smallest eigenvalue is above rounding.
        seconds: That the measurement took.
    """

    loss: float
    grad_norm: float
    grad_norm_first: float
    grad_norm_middle: float
    grad_norm_last: float
    sharpness: float
    effective_rank: float
    condition_number: float
    condition_number_resolved: bool
    isometry_cosine: float
    jacobian_norm: float
    kernel_effective_rank: float
    kernel_condition_number: float
    kernel_condition_number_resolved: bool
    kernel_norm: float
    gauss_newton_condition_number: float
    gauss_newton_condition_number_resolved: bool
    seconds: float


_SCHEMA: Final = pa.schema(
    [("arm", pa.string()), ("trial", pa.int64())]
    + [(name, pa.bool_() if name.endswith("resolved") else pa.float64()) for name in StateColumns.__annotations__]
)


def initial_state(model: nn.Module, x: Tensor, y: Tensor, *, kernels: bool = True) -> StateColumns:
    """Measure a network on a batch.

    Args:
        model: A network in train mode whose first module gives the features behind which the Jacobian is taken.
        x: Inputs, shape ``(N, …)``.
        y: Class indices, shape ``(N,)``.
        kernels: Whether to measure the tangent kernel, which costs the most; otherwise its columns are NaN.

    Raises:
        InputError: The network cannot be measured, or the batch is too large for exact spectra.
    """
    start = time.perf_counter()
    layer = next(name for name, _ in model.named_children())
    (spectrum,) = spectra(model, (x, y), map="tail", layers=[layer], method="exact", dtype=torch.float64).values()
    loss, norms = _gradients(model, x, y)
    third = -(-len(norms) // 3)
    first, middle, last = (float(norms[start : start + third].norm()) for start in (0, third, 2 * third))
    kernel = _kernel_columns(tangent_kernel(model, x, dtype=torch.float64), model, x) if kernels else _NO_KERNEL
    return StateColumns(
        loss=loss,
        grad_norm=float(norms.norm()),
        grad_norm_first=first,
        grad_norm_middle=middle,
        grad_norm_last=last,
        sharpness=float(spectral_norm(HessianOperator(model, x, y)).value),
        effective_rank=float(spectrum.effective_rank),
        condition_number=float(spectrum.condition_number),
        condition_number_resolved=bool(spectrum.resolved),
        isometry_cosine=float(spectrum.sigma_mean / spectrum.sigma_rms),
        jacobian_norm=float(spectrum.sigma_rms * np.sqrt(min(spectrum.rows, spectrum.cols))),
        **kernel,
        seconds=time.perf_counter() - start,
    )


_NO_KERNEL: Final = {
    "kernel_effective_rank": np.nan,
    "kernel_condition_number": np.nan,
    "kernel_condition_number_resolved": False,
    "kernel_norm": np.nan,
    "gauss_newton_condition_number": np.nan,
    "gauss_newton_condition_number_resolved": False,
}


def measure_initial_states(
    config: TrainConfig, out: Path, processes: int | None = None, *, kernels: bool = True
) -> None:
    """Measure every arm in every trial of an experiment, and write the table; rows that are there are kept.

    Args:
        config: The experiment's options.
        out: Its directory.
        processes: Processes that measure at once; None for one a core.
        kernels: Whether to measure tangent kernels, which cost the most; otherwise their columns are NaN.

    Raises:
        InputError: A network cannot be measured, or the table cannot be read or written.
    """
    path = out / INITIAL_STATES
    kept = read_initial_states(out).to_dict("records") if path.exists() else []
    rows = [{str(name): value for name, value in row.items()} for row in kept]
    there = {(row["arm"], row["trial"]) for row in rows}
    first = {(run.arm, run.trial): run for run in reversed(list(all_runs(config)))}
    runs = [run for key, run in sorted(first.items(), key=lambda item: item[0][1]) if key not in there]
    written = time.monotonic()
    with tqdm(
        _measured(config, runs, processes, kernels), total=len(runs), desc="initial states", unit="network"
    ) as bar:
        for row in bar:
            rows.append(row)
            if time.monotonic() > written + _WRITE_EVERY:
                _write(rows, path)
                written = time.monotonic()
    if runs:
        _write(rows, path)


def read_initial_states(out: Path) -> pd.DataFrame:
    """The table of an experiment: ``arm``, ``trial`` and the columns of ``StateColumns``.

    Raises:
        InputError: It cannot be read.
    """
    return read_parquet(out / INITIAL_STATES, _SCHEMA, _REMEDY)


def _measured(
    config: TrainConfig, runs: list[Run], processes: int | None, kernels: bool
) -> Iterator[dict[str, object]]:
    count = min(min(usable_cores(), _MOST) if processes is None else processes, len(runs))
    if count < 2 or choose_device(config.optimisation.device).type != "cpu":
        with one_thread():
            factory, data = _factory(config)
            yield from (_row(factory, data, run, kernels) for run in runs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=(config,)) as pool:
        for future in as_completed([pool.submit(_row_in_process, run, kernels) for run in runs]):
            yield future.result()


def _start(config: TrainConfig) -> None:
    """Make what all measurements of a process share; Ctrl-C is left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _SHARED.append(_factory(config))


#: Of a process of ``_measured``.
_SHARED: Final[list[tuple[RunFactory, TrainingData]]] = []


def _row_in_process(run: Run, kernels: bool) -> dict[str, object]:
    return _row(*_SHARED[0], run, kernels)


def _factory(config: TrainConfig) -> tuple[RunFactory, TrainingData]:
    device = choose_device(config.optimisation.device)
    data = open_data(config, device, Ranks())
    probe = data.probe(torch.arange(1))
    return RunFactory(config, data, probe, device, Ranks()), data


def _row(factory: RunFactory, data: TrainingData, run: Run, kernels: bool) -> dict[str, object]:
    network = factory.initial_network(run)
    x, y = data.batches(run.seed).at(0)
    try:
        return {"arm": run.arm, "trial": run.trial, **asdict(initial_state(network, x, y, kernels=kernels))}
    except InputError as error:
        raise InputError(f"the initial state of arm {run.arm!r}, trial {run.trial}: {error}") from error


def _write(rows: list[dict[str, object]], path: Path) -> None:
    ordered = sorted(rows, key=lambda row: (str(row["arm"]), str(row["trial"]).zfill(6)))
    write_parquet(pa.Table.from_pylist(ordered, schema=_SCHEMA), path)


def _gradients(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """Loss, and the norm of its gradient in each parameter; buffers are as they were."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    loss = cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)
    norms = [torch.zeros(()) if gradient is None else gradient.norm() for gradient in gradients]
    return float(loss.detach()), torch.stack([norm.double().cpu() for norm in norms])


def _kernel_columns(kernel: TangentKernel, model: nn.Module, x: Tensor) -> dict[str, float | bool]:
    spectrum = kernel.spectrum()
    eigenvalues = _gauss_newton_eigenvalues(kernel.total.cpu().numpy(), _softmax(model, x))
    rounding = len(eigenvalues) * np.finfo(float).eps * eigenvalues[0]
    return {
        "kernel_effective_rank": float(spectrum.effective_rank),
        "kernel_condition_number": float(spectrum.condition_number),
        "kernel_condition_number_resolved": bool(spectrum.resolved),
        "kernel_norm": float(spectrum.sigma_max),
        "gauss_newton_condition_number": float(eigenvalues[0] / max(eigenvalues[-1], rounding)),
        "gauss_newton_condition_number_resolved": bool(eigenvalues[-1] > rounding),
    }


def _softmax(model: nn.Module, x: Tensor) -> np.ndarray:
    buffers = [buffer.clone() for buffer in model.buffers()]
    with torch.no_grad():
        chances = model(x).double().softmax(dim=1).cpu().numpy()
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)
    return np.asarray(chances)


def _gauss_newton_eigenvalues(kernel: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """Eigenvalues of ``JᵀSJ`` that S does not make zero, descending: those of ``√S K √S``, N fewer than its rows."""
    samples, outputs = chances.shape
    roots = []
    for p in chances:
        values, vectors = np.linalg.eigh(np.diag(p) - np.outer(p, p))
        roots.append(vectors * np.sqrt(values.clip(min=0)) @ vectors.T)
    blocks = kernel.reshape(samples, outputs, samples, outputs)
    product = np.einsum("nij,njmk,mkl->niml", np.stack(roots), blocks, np.stack(roots), optimize=True)
    eigenvalues = np.linalg.eigvalsh(product.reshape(kernel.shape) / samples)[::-1]
    return np.asarray(eigenvalues[: samples * (outputs - 1)])
