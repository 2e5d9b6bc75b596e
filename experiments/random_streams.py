"""The global random streams that a network may draw from: torch's, NumPy's and Python's own."""

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_streams(seed: int) -> None:
    """Seed all of them; torch's as ``torch.manual_seed`` does."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def rng_states() -> dict[str, Tensor]:
    """The states of all: ``cpu``, ``numpy``, ``python`` and, where CUDA is in use, ``cuda:0`` and so on; uint8."""
    name, keys, *rest = np.random.get_state(legacy=True)
    states = {
        "cpu": torch.get_rng_state(),
        "numpy": _as_bytes([name, np.asarray(keys).tolist(), *rest]),
        "python": _as_bytes(random.getstate()),
    }
    if torch.cuda.is_initialized():
        states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_rng_states(states: Mapping[str, Tensor]) -> None:
    """Put them into saved states; other names than theirs are left to the caller."""
    for name, state in states.items():
        if name == "cpu":
            torch.set_rng_state(state)
        elif name == "numpy":
            kind, keys, *rest = _from_bytes(state)
            np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
        elif name == "python":
            version, keys, gauss = _from_bytes(state)
            random.setstate((version, tuple(keys), gauss))
        elif name.startswith("cuda:"):
            torch.cuda.set_rng_state(state, name)


def _as_bytes(state: Any) -> Tensor:
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def _from_bytes(state: Tensor) -> Any:
    return json.loads(bytes(state.tolist()))
