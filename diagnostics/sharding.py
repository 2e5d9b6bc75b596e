"""Work shared among the processes of a ``torch.distributed`` group; every one gets the whole result."""

import pickle
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

Result = TypeVar("Result")


def gathered_rows(rows: Callable[[int, int], Tensor], start: int, stop: int, group: ProcessGroup) -> Tensor:
    """Rows ``start`` to ``stop`` of a matrix, each process computing an equal share of them.

    Args:
        rows: Computes a range of rows, shape ``(count, cols)``.
        start: The first row.
        stop: The row after the last.
        group: All its processes have to call, with the same range.
    """
    rank, size = distributed.get_rank(group), distributed.get_world_size(group)
    share = -(-(stop - start) // size)
    first = min(start + rank * share, stop)
    own = together(lambda: rows(first, min(first + share, stop)), group)
    padded = own.new_zeros(share, own.shape[1])  # gathering needs equal sizes
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(size)]
    distributed.all_gather(parts, padded, group=group)
    return torch.cat(parts)[: stop - start]


def summed(tensor: Tensor, group: ProcessGroup | None) -> None:
    """Replace a tensor by its sum over the processes of a group, in place; a lone process has the sum."""
    if group is not None:
        distributed.all_reduce(tensor, group=group)


def together(work: Callable[[], Result], group: ProcessGroup | None) -> Result:
    """This process's result of some work that every process of a group does.

    Raises:
        Exception: What the work raised in any of them, in all of them: none goes on alone.
    """
    if group is None:
        return work()
    results, error = _attempt([0], lambda _: work())
    errors: list[Exception | None] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(errors, error, group=group)
    for failure in errors:
        if failure is not None:
            raise failure
    return results[0]


def deal(indices: Sequence[int], work: Callable[[int], Result], group: ProcessGroup | None) -> list[Result]:
    """The results of some work for each index, in order, the indices dealt to the processes in turn.

    Args:
        indices: The same in every process.
        work: Its result, and any exception, is pickled and sent to all processes.
        group: All its processes have to call; None for this process alone.

    Raises:
        Exception: What ``work`` raised for the first index at which it failed, in every process: none waits for one
            that has gone.
    """
    if group is None:
        return [work(index) for index in indices]
    rank, size = distributed.get_rank(group), distributed.get_world_size(group)
    outcomes: list[tuple[list[Result], Exception | None]] = [([], None)] * size
    distributed.all_gather_object(outcomes, _attempt(indices[rank::size], work), group=group)
    failures = [(len(results) * size + owner, error) for owner, (results, error) in enumerate(outcomes) if error]
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]
    return [outcomes[position % size][0][position // size] for position in range(len(indices))]


def _attempt(indices: Sequence[int], work: Callable[[int], Result]) -> tuple[list[Result], Exception | None]:
    """The results up to the first failure, and that, as something that can be sent."""
    results: list[Result] = []
    for index in indices:
        try:
            results.append(work(index))
        except Exception as error:
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:  # an exception whose arguments do not fit its constructor, say
                return results, RuntimeError(f"{type(error).__name__}: {error}")
            return results, error
    return results, None
