"""The tangent kernel's spectra, one for each layer and the whole, from one kernel."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.distributed import ProcessGroup

from skip_conditioning.diagnostics.kernel.tangent_kernel import tangent_kernel
from skip_conditioning.diagnostics.networks.layer_names import split_call
from skip_conditioning.diagnostics.networks.maps import TOTAL
from skip_conditioning.diagnostics.networks.probe import Probe
from skip_conditioning.diagnostics.spectrum import Spectrum


def kernel_spectra(
    model: nn.Module,
    probe: Probe,
    *,
    layers: Sequence[str] | str | None,
    batch_mode: str,
    dtype: torch.dtype | None,
    memory_budget: int,
    progress: bool,
    group: ProcessGroup | None,
) -> list[Spectrum]:
    """Eigenvalues of the kernel's blocks, and of the whole kernel where it is named or no layers are.

    Arguments and errors as for ``tangent_kernel.tangent_kernel``. In ``sample`` mode the kernels of each sample with
    itself, one after the other.

    Returns:
        In the model's order, the whole last.
    """
    requested = [layers] if isinstance(layers, str) else layers
    with_total = requested is None or TOTAL in {split_call(layer)[0] for layer in requested}
    batches = [(None, probe)] if batch_mode == "batch" else [*enumerate(probe.split())]
    spectra = []
    for sample, batch in batches:
        kernel = tangent_kernel(
            model,
            batch,
            layers=layers,
            batch_mode=batch_mode,
            memory_budget=memory_budget,
            dtype=dtype,
            floors=True,
            progress=progress,
            group=group,
        )
        names = [*kernel.blocks, TOTAL] if with_total else [*kernel.blocks]
        spectra += [replace(kernel.spectrum(name), sample=sample) for name in names]
    return spectra
