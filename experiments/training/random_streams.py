"""The global random streams that a network may draw from: torch's, NumPy's and Python's own."""

import random
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor


def seed_streams(seed: int) -> None:
    """Seed all of them; torch's as ``torch.manual_seed`` does."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def rng_states() -> dict[str, Tensor]:
    """The states of all: ``cpu``, ``numpy``, ``python`` and, where CUDA is in use, ``cuda:0`` and so on.

    Returns:
        Tensors of dtype uint8, each of the same length at any time.
    """
    _, keys, position, has_spare, spare = cast(
        tuple[str, np.ndarray, int, int, float], np.random.get_state(legacy=True)
    )
    _, words, gauss = random.getstate()
    states = {
        "cpu": torch.get_rng_state(),
        "numpy": _packed([*keys, position, has_spare], spare),
        "python": _packed(words, np.nan if gauss is None else gauss),
    }
    if torch.cuda.is_initialized():
        states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_rng_states(states: Mapping[str, Tensor]) -> None:
    """Restore saved states; names that are not from ``rng_states`` are ignored."""
    for name, state in states.items():
        if name == "cpu":
            torch.set_rng_state(state)
        elif name == "numpy":
            (*keys, position, has_spare), spare = _unpacked(state)
            np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_spare, spare))
        elif name == "python":
            words, gauss = _unpacked(state)
            random.setstate((_PYTHON_VERSION, tuple(words), None if np.isnan(gauss) else gauss))
        elif name.startswith("cuda:"):
            torch.cuda.set_rng_state(state, name)


#: Version of the layout of ``random.getstate()``.
_PYTHON_VERSION = 3


def _packed(words: Sequence[int], spare: float) -> Tensor:
    """The words of a Mersenne twister and the normal number that it keeps for the next call, as bytes."""
    content = np.array(words, np.uint32).tobytes() + np.float64(spare).tobytes()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _unpacked(state: Tensor) -> tuple[list[int], float]:
    content = bytes(state.tolist())
    return np.frombuffer(content[:-8], np.uint32).tolist(), float(np.frombuffer(content[-8:], np.float64)[0])
