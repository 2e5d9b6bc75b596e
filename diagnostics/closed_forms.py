"""All singular values of linear maps whose structure is known: convolutions, pooling, padding, disjoint patches.

Each function is about one image of ``size = (H, W)`` pixels; a batch of N of them has every value N times. Values come
in descending order, float64, shape ``(min(rows, cols),)``, exact zeros included, where the matrix of the map is
``rows × cols``, as `diagnostics.jacobian` would give it. They are exact to float64 rounding. No map is ever built
whole unless it has no structure to use.

A strided 1×1 convolution is `zero_padded_convolution` of a 1×1 weight; whatever else acts on disjoint patches, such as
a sum of strided convolutions and pools, is `patchwise`.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from diagnostics.errors import InputError, MemoryBudgetError, NonFiniteError, readable

Pair = int | tuple[int, int]
"""One number for both directions, or ``(vertical, horizontal)``."""

#: A kernel is taken to be a product of factors if what is left over is so many units in the last place at most.
_ROUNDING_UNITS = 16

#: Copies of a matrix held while its singular values are computed.
_COPIES = 3

#: Entries of the blocks of a circular convolution that are held at a time.
_BLOCK_ENTRIES = 2**22


def patchwise(matrix: Tensor, patches: int, *, rows: int | None = None, cols: int | None = None) -> np.ndarray:
    """Singular values of a map that applies one matrix to each of several disjoint patches.

    The map is block-diagonal up to the order of coordinates: the values of the matrix, each as often as there are
    patches.

    Args:
        matrix: Shape ``(outputs, inputs)`` of one patch.
        patches: How many there are.
        rows: Outputs of the whole map, if some belong to no patch (they are zero).
        cols: Inputs of the whole map, if some belong to no patch (they are not read).

    Raises:
        NonFiniteError: The matrix holds NaN or infinity.
    """
    outputs, inputs = matrix.shape
    values = np.tile(_matrix_values(_checked(matrix)), patches)
    return _padded([values], patches * outputs if rows is None else rows, patches * inputs if cols is None else cols)


def circular_convolution(
    weight: Tensor, size: tuple[int, int], *, stride: Pair = 1, dilation: Pair = 1, groups: int = 1
) -> np.ndarray:
    r"""Singular values of a convolution that wraps around the image, whatever the size of its kernel.

    The Fourier transform makes it block-diagonal. At stride 1 the block of frequency ``ω`` is the transform of the
    kernel there, ``K̂(ω)``, shape ``(C_out, C_in)``. Keeping one pixel in ``s`` folds the frequencies ``ω + k·H/s`` upon
    one another: the block is ``[K̂(ω), K̂(ω + H/s), …] / √(s_v s_h)``, shape ``(C_out, C_in · s_v s_h)``.

    Where the kernel starts does not matter, as a circular shift is orthogonal. In PyTorch this is
    ``padding_mode="circular"`` with a padding that makes ``H/s × W/s`` pixels out of ``H × W``.

    Source: Sedghi, Gupta & Long 2019, *The singular values of convolutional layers*, theorem 6 (stride 1).

    Args:
        weight: Shape ``(C_out, C_in / groups, k_v, k_h)``, real.
        size: ``(H, W)`` of the input.
        stride: Divides the size.
        dilation: Pixels from one tap to the next.
        groups: Groups of channels that do not mix.

    Raises:
        InputError: The stride does not divide the size, or the groups do not divide the channels.
        NonFiniteError: The weight holds NaN or infinity.
    """
    (H, W), (s_v, s_h), (d_v, d_h) = size, _pair(stride), _pair(dilation)
    if H % s_v or W % s_h:
        raise InputError(f"a circular convolution of stride {s_v}×{s_h} needs a size it divides, not {H}×{W}")
    out_channels, in_channels, k_v, k_h = weight.shape
    down, across = _fourier(H, k_v, d_v), _fourier(W, k_h, d_h).reshape(s_h, W // s_h, k_h)
    at_a_time = max(_BLOCK_ENTRIES // (out_channels // groups * in_channels * s_v * s_h), 1)
    found = []
    for kernel in _groups(weight, groups):
        kernel = kernel.to(torch.complex128) / math.sqrt(s_v * s_h)
        for u in range(H // s_v // 2 + 1):
            # Of a real kernel, the frequencies (u, v) and (−u, −v) have the same values.
            times = 1 if 2 * u % (H // s_v) == 0 else 2
            half = torch.einsum("oiyx,py->poix", kernel, down[u :: H // s_v])
            for some in across.split(at_a_time, dim=1):
                blocks = torch.einsum("poix,qvx->vopqi", half, some).flatten(2)
                found += times * [torch.linalg.svdvals(blocks).flatten().numpy()]
    return _padded(found, out_channels * (H // s_v) * (W // s_h), groups * in_channels * H * W)


def zero_padded_convolution(
    weight: Tensor,
    size: tuple[int, int],
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    memory_budget: int = 2**28,
) -> np.ndarray:
    r"""Singular values of ``nn.Conv2d`` with zero padding.

    Two structures are used, separately for every group of channels:

    - A kernel that is a product, ``K[o, i, y, x] = M[o, i] · u[y] · v[x]`` (1×1, delta-orthogonal, depthwise and
      separable ones), makes the map a Kronecker product: values ``σ(M) ⊗ σ(T_u) ⊗ σ(T_v)``, with ``T`` the matrices of
      the two convolutions in one dimension.
    - Rows of output pixels that share no row of the input, however indirectly (and so for columns), are blocks of
      their own: disjoint patches (kernel ≤ stride), or the interleaved images of a dilated kernel. Equal blocks are
      decomposed once.

    An ordinary 3×3 convolution of stride 1 has neither: it is one block, ``C_out·H'·W' × C_in·H·W``, whose SVD takes
    cubic time. The default budget admits a square block of about 3300, which takes tens of seconds.

    Args:
        weight: Shape ``(C_out, C_in / groups, k_v, k_h)``.
        size: ``(H, W)`` of the input.
        stride: As for ``nn.Conv2d``.
        padding: As for ``nn.Conv2d``; numbers only.
        dilation: As for ``nn.Conv2d``.
        groups: As for ``nn.Conv2d``.
        memory_budget: Bytes that the decomposition of one block may take.

    Raises:
        MemoryBudgetError: A block is too large.
        InputError: The kernel is larger than the padded image, or the groups do not divide the channels.
        NonFiniteError: The weight holds NaN or infinity.
    """
    steps = [_pair(option) for option in (stride, padding, dilation)]
    vertical, horizontal = (
        _taps(side, k, *(step[i] for step in steps))
        for i, (side, k) in enumerate(zip(size, weight.shape[2:], strict=True))
    )
    found = []
    for kernel in _groups(weight, groups):
        factors = _factors(kernel)
        if factors is not None:
            mix, u, v = factors
            parts = (mix, _with_zero(u)[vertical], _with_zero(v)[horizontal])
            found.append(functools.reduce(np.kron, map(_matrix_values, parts)))
            continue
        for rows, repeated in _blocks(vertical).items():
            for columns, times in _blocks(horizontal).items():
                matrix = _block_matrix(kernel, np.array(rows), np.array(columns), memory_budget)
                found.append(np.tile(_matrix_values(matrix), repeated * times))
    outputs, inputs = (vertical.shape[i] * horizontal.shape[i] for i in (0, 1))
    return _padded(found, weight.shape[0] * outputs, groups * weight.shape[1] * inputs)


def average_pooling(
    size: tuple[int, int], kernel: Pair, *, stride: Pair | None = None, padding: Pair = 0, channels: int = 1
) -> np.ndarray:
    """Singular values of ``nn.AvgPool2d``, whose patches may overlap.

    The map is a Kronecker product of two averages in one dimension. Over disjoint patches of ``s × s`` pixels, all
    values are ``1/s``.

    Args:
        size: ``(H, W)`` of the input.
        kernel: Sides of the patches.
        stride: By default the kernel, as for ``nn.AvgPool2d``.
        padding: Zeros around the image, which count in the averages.
        channels: Channels, each pooled by itself.

    Raises:
        InputError: The kernel is larger than the padded image.
    """
    shape = _pair(kernel)
    weight = torch.full((1, 1, *shape), 1 / math.prod(shape), dtype=torch.float64)
    stride = kernel if stride is None else stride
    one = zero_padded_convolution(weight, size, stride=stride, padding=padding)
    return np.repeat(one, channels)


def channel_padding(size: tuple[int, int], channels: int, padding: tuple[int, int]) -> np.ndarray:
    """Singular values of zero padding on channels: an isometry, so each is 1.

    Args:
        size: ``(H, W)``.
        channels: Channels of the input.
        padding: Zero channels ``(before, after)``.

    Raises:
        InputError: The padding is negative.
    """
    if min(padding) < 0:
        raise InputError(f"{padding} is no padding of channels; both numbers are 0 or more")
    return np.ones(channels * math.prod(size))


def _checked(weight: Tensor) -> Tensor:
    """The weight in float64 on the CPU, every entry finite."""
    weight = weight.detach().to("cpu", torch.float64)
    if not bool(weight.isfinite().all()):
        raise NonFiniteError("the weight holds NaN or infinity; its map has no singular values")
    return weight


def _matrix_values(matrix: Tensor) -> np.ndarray:
    """All singular values of a matrix, descending; a triangular factor first, as that is faster and as accurate."""
    short = min(matrix.shape)
    matrix = matrix[matrix.any(dim=1)][:, matrix.any(dim=0)]  # what is not read has zeros, exactly
    if matrix.numel() == 0:
        return np.zeros(short)
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    return _padded([torch.linalg.svdvals(torch.linalg.qr(matrix, mode="r").R).numpy()], short, short)


def _padded(parts: Iterable[np.ndarray], rows: int, cols: int) -> np.ndarray:
    """The values of all blocks, descending, with the zeros that a map of ``rows × cols`` has beside them."""
    values = np.concatenate([*parts, np.zeros(0)])
    values = np.concatenate([values, np.zeros(min(rows, cols) - len(values))])
    return np.sort(values)[::-1]


def _pair(option: Pair) -> tuple[int, int]:
    return (option, option) if isinstance(option, int) else option


def _groups(weight: Tensor, groups: int) -> tuple[Tensor, ...]:
    """The kernels of the groups, float64."""
    if groups < 1 or weight.shape[0] % groups:
        raise InputError(f"{groups} groups do not divide {weight.shape[0]} output channels")
    return _checked(weight).chunk(groups)


def _fourier(length: int, taps: int, dilation: int) -> Tensor:
    """``exp(−2πi · f · a · dilation / length)`` for frequencies f and taps a, shape ``(length, taps)``."""
    turns = torch.outer(torch.arange(length), torch.arange(taps) * dilation) % length  # so that angles are small
    return torch.exp(-2j * math.pi * turns.double() / length)


def _taps(length: int, taps: int, stride: int, padding: int, dilation: int) -> np.ndarray:
    """Which tap of a kernel output i applies to input y, −1 for none; shape ``(outputs, length)``.

    Raises:
        InputError: The kernel is larger than the padded input.
    """
    reach = dilation * (taps - 1) + 1
    if reach > length + 2 * padding:
        raise InputError(f"a kernel over {reach} pixels is larger than the padded image, {length + 2 * padding}")
    outputs = (length + 2 * padding - reach) // stride + 1
    offset = np.arange(length) + padding - stride * np.arange(outputs)[:, None]
    return np.where((offset >= 0) & (offset < reach) & (offset % dilation == 0), offset // dilation, -1)


def _with_zero(kernel: Tensor) -> Tensor:
    """The kernel with a zero at the end, which index −1 picks."""
    return nn.functional.pad(kernel, (0, 1))


def _factors(kernel: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """``M, u, v`` with ``K[o, i, y, x] = M[o, i] · u[y] · v[x]`` to rounding, or None if there are none."""
    outer = _rank_one(kernel.flatten(2).flatten(0, 1))
    inner = None if outer is None else _rank_one(outer[1].reshape(kernel.shape[2:]))
    return None if outer is None or inner is None else (outer[0].reshape(kernel.shape[:2]), *inner)


def _rank_one(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """``a, b`` with ``matrix = a·bᵀ`` to rounding, or None."""
    U, sigma, Vh = torch.linalg.svd(matrix, full_matrices=False)
    if bool((sigma[1:] > _ROUNDING_UNITS * torch.finfo(sigma.dtype).eps * sigma[0]).any()):
        return None
    return sigma[0] * U[:, 0], Vh[0]


def _blocks(taps: np.ndarray) -> Counter[tuple[tuple[int, ...], ...]]:
    """The blocks of a banded matrix of taps (its connected components), and how often each occurs."""
    outputs, inputs = np.nonzero(taps >= 0)
    nodes = sum(taps.shape)
    edges = csr_array((np.ones(len(inputs)), (outputs, taps.shape[0] + inputs)), shape=(nodes, nodes))
    _, label = connected_components(edges, directed=False)
    of_output, of_input = np.split(label, [taps.shape[0]])
    # Components of one node alone are outputs that read padding only and inputs that are not read: zeros.
    both = np.intersect1d(of_output, of_input)
    blocks = (taps[np.ix_(of_output == one, of_input == one)] for one in both)
    return Counter(tuple(map(tuple, block.tolist())) for block in blocks)


def _block_matrix(kernel: Tensor, rows: np.ndarray, columns: np.ndarray, memory_budget: int) -> Tensor:
    """The dense matrix of one block, shape ``(C_out · outputs, C_in · inputs)``.

    Raises:
        MemoryBudgetError: It does not fit the budget.
    """
    shape = [kernel.shape[i] * rows.shape[i] * columns.shape[i] for i in (0, 1)]
    need = _COPIES * 8 * math.prod(shape)
    if need > memory_budget:
        raise MemoryBudgetError(
            f"this convolution has a block of {shape[0]}×{shape[1]} without structure, which takes {readable(need)} "
            f"of a memory_budget of {readable(memory_budget)}; raise it, or use "
            "diagnostics.spectra(..., map='layer', method='lanczos'), which needs no matrix"
        )
    padded = nn.functional.pad(kernel, (0, 1, 0, 1))
    dense = padded[:, :, rows[:, :, None, None], columns[None, None]]  # (C_out, C_in, y', y, x', x)
    return dense.permute(0, 2, 4, 1, 3, 5).reshape(shape)
