"""Tangent kernels as other code computes them: the peers of ``benchmarks.tangent_kernel``.

Each takes a model and a batch and returns the kernel, ``(N·O, N·O)`` in the model's dtype, rows by (sample, output).
The libraries are imported where they are called, so that this module loads without them.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from skip_conditioning.models.shortcuts import ConvolutionShortcut

#: Vectors that a product with the Jacobian of a whole batch takes at once.
_VECTORS_AT_ONCE = 16

Kernel = Callable[[nn.Module, Tensor], Tensor]


class UnsupportedError(Exception):
    """A peer cannot do a network; the message says why, in the words of the table."""


@dataclass(frozen=True)
class Peer:
    """A way to compute the tangent kernel.

    Attributes:
        kernel: The function.
        keeps_jacobian: Whether it holds the ``N·O × P`` Jacobian, so that its memory is known beforehand.
    """

    kernel: Kernel
    keeps_jacobian: bool


def library_versions() -> str:
    """The libraries' versions, for the line on the environment."""
    measured = []
    for library in LIBRARIES:
        try:
            measured.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            measured.append(f"{library} not installed")
    return ", ".join(measured)


def couples(model: nn.Module) -> bool:
    """Whether batch norm in train mode makes the samples of a batch interact."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in model.modules())


def jacobian_contraction(model: nn.Module, x: Tensor) -> Tensor:
    """The first method of PyTorch's tutorial: Jacobians of single samples (or of the whole batch), then products.

    Where the samples interact, ``jacrev`` differentiates the map of the whole batch in chunks of rows.
    """
    parameters = _detached(model)
    if couples(model):
        jacobians = jacrev(lambda given: _call(model, given, x), chunk_size=_VECTORS_AT_ONCE)(parameters)
    else:
        one = jacrev(lambda given, sample: _call(model, given, sample[None])[0])
        jacobians = vmap(one, (None, 0))(parameters, x)
    return _contracted(jacobians.values())


def vector_products(model: nn.Module, x: Tensor) -> Tensor:
    """The tutorial's second method: ``J₂ (J₁ᵀ e)`` for every pair of samples and every basis vector ``e``.

    The first sample of a pair is taken one at a time, so that 64 samples fit in memory. In trials that took half the
    time of the tutorial's single ``vmap`` on its 20 samples, and a quarter more than four at a time on the MLP. Where
    the samples interact there is one pair, the batch with itself.
    """
    parameters = _detached(model)

    def products(first: Tensor, second: Tensor, chunk: int | None = None) -> Tensor:
        output, pullback = vjp(lambda given: _call(model, given, first), parameters)

        def product(vector: Tensor) -> Tensor:
            return jvp(lambda given: _call(model, given, second), (parameters,), pullback(vector))[1].flatten()

        basis = torch.eye(output.numel(), dtype=output.dtype).view(-1, *output.shape)
        return vmap(product, chunk_size=chunk)(basis)

    if couples(model):
        return products(x, x, _VECTORS_AT_ONCE)
    singles = x.unsqueeze(1)
    pairs = vmap(vmap(products, (None, 0)), (0, None), chunk_size=1)(singles, singles)
    return pairs.transpose(1, 2).flatten(2).flatten(0, 1)


def nngeometry_gram(model: nn.Module, x: Tensor) -> Tensor:
    """The ``GramMatrix`` of nngeometry: ``O²`` backward passes, kernels of samples layer by layer, no Jacobian."""
    from nngeometry.gram import GramMatrix

    _refuse_interaction(model)
    return _samples_first(GramMatrix(plain_convolutions(model), [x.clone()]).to_torch())


def nngeometry_jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """The ``Jacobian`` of nngeometry, ``O`` backward passes, then one product."""
    from nngeometry.jacobian import Jacobian

    _refuse_interaction(model)
    jacobian = Jacobian(plain_convolutions(model), [x.clone()]).to_torch()
    rows = jacobian.flatten(0, 1)
    return _samples_first((rows @ rows.T).view(*jacobian.shape[:2], *jacobian.shape[:2]))


def curvlinops_products(model: nn.Module, x: Tensor) -> Tensor:
    """The Jacobian of curvlinops and its transpose, applied to the identity a few columns at a time."""
    from curvlinops import JacobianLinearOperator

    model = without_updates(model)
    with torch.no_grad():
        targets = torch.zeros_like(model(x))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    jacobian = JacobianLinearOperator(model, parameters, [(x, targets)], check_deterministic=False, num_data=len(x))
    identity = torch.eye(targets.numel(), dtype=x.dtype)
    transpose = jacobian.adjoint()
    return torch.cat([jacobian @ (transpose @ columns) for columns in identity.split(_VECTORS_AT_ONCE, 1)], 1)


def backpack_gradients(model: nn.Module, x: Tensor) -> Tensor:
    """BackPACK's gradients of single samples, one backward pass for each output, then products."""
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    _refuse_interaction(model)
    model = extend(plain_convolutions(model))
    outputs, rows = model(x).sum(0), []
    for output in outputs:
        with backpack(BatchGrad(), retain_graph=True):
            output.backward(retain_graph=True)
        rows.append([_taken(parameter) for parameter in model.parameters() if hasattr(parameter, "grad_batch")])
    return _contracted(torch.stack(gradients, 1) for gradients in zip(*rows, strict=True))


LIBRARIES = ("nngeometry", "curvlinops-for-pytorch", "backpack-for-pytorch")
"""Distributions that the peers come from."""

PEERS: dict[str, Peer] = {
    "torch.func, Jacobian contraction": Peer(jacobian_contraction, keeps_jacobian=True),
    "torch.func, NTK-vector products": Peer(vector_products, keeps_jacobian=False),
    "nngeometry, GramMatrix": Peer(nngeometry_gram, keeps_jacobian=False),
    "nngeometry, Jacobian": Peer(nngeometry_jacobian, keeps_jacobian=True),
    "curvlinops, J (Jᵀ I)": Peer(curvlinops_products, keeps_jacobian=False),
    "BackPACK, BatchGrad": Peer(backpack_gradients, keeps_jacobian=True),
}
"""By the name in the table."""


def plain_convolutions(model: nn.Module) -> nn.Module:
    """The model with its convolution shortcuts as ``nn.Conv2d``, the same map in modules that every library knows.

    Raises:
        UnsupportedError: A shortcut has a gain, which ``nn.Conv2d`` has not.
    """
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, ConvolutionShortcut):
            if module.gain != 1:
                raise UnsupportedError("a convolution times a gain")
            plain = nn.Conv2d(
                module.in_channels, module.out_channels, 1, stride=module.stride, bias=module.bias is not None
            )
            plain.weight, plain.bias = module.weight, module.bias
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, plain)
    return model


def without_updates(model: nn.Module) -> nn.Module:
    """The model with batch norm in train mode leaving its running statistics alone, which function transforms need."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            module.track_running_stats = False
    return model


def _refuse_interaction(model: nn.Module) -> None:
    if couples(model):
        raise UnsupportedError("samples one by one only, no batch norm in train mode")


def _detached(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def _call(model: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """The model's outputs; buffers are cloned, as batch norm in train mode writes to them."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return functional_call(model, {**parameters, **buffers}, (x,))


def _samples_first(kernel: Tensor) -> Tensor:
    """Rows by (sample, output), from the ``(O, N, O, N)`` of nngeometry."""
    return kernel.permute(1, 0, 3, 2).flatten(2).flatten(0, 1)


def _taken(parameter: nn.Parameter) -> Tensor:
    """BackPACK's gradients of the samples, ``(N, *shape)``, removed from the parameter."""
    gradients = parameter.grad_batch
    parameter.grad = None
    del parameter.grad_batch
    return gradients


def _contracted(jacobians: Iterable[Tensor]) -> Tensor:
    """Sum over parameters of the products of their Jacobians, each ``(N, O, *shape)``."""
    total: Tensor | int = 0
    for jacobian in jacobians:
        rows = jacobian.flatten(2)
        total = total + torch.einsum("Naf,Mbf->NaMb", rows, rows)
    samples, outputs = total.shape[:2]
    return total.reshape(samples * outputs, samples * outputs)
