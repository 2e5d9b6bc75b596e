"""Work shared among the processes of a ``torch.distributed`` group; every one gets the whole result.

Calls may be nested. Whatever fails in one process, in the work of a call or between two calls in it, is an error in
all of them: the process that failed has left the work of the innermost call around it and sends its error at that
call's end; the others, which then may be waiting in a call further in, leave everything up to that same call, and no
``except`` in between sees the error. All it takes is that the messages of all calls have one form. Tensors are sent
without such a message, so ``together`` has to come right before, with all that may fail, allocations too, in its work.
"""

import functools
import pickle
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

#: The groups of the calls that this one is in the work of, from the outermost on.
_around: ContextVar[tuple[ProcessGroup, ...]] = ContextVar("_around", default=())


@dataclass(frozen=True)
class _Outcome:
    """What a process sends to the others at the end of a call.

    Attributes:
        depth: Number of calls for the same group around this one.
        done: Number of indices before the first failure.
        error: That failure, as something that can be sent.
        results: What the others want of the results.
    """

    depth: int
    done: int
    error: Exception | None
    results: list[Any]


class _FailedFurtherOutError(BaseException):
    """Another process failed outside of this call; on its way to the call, in this process, that it failed in."""

    def __init__(self, group: ProcessGroup, depth: int, error: Exception) -> None:
        super().__init__(str(error))
        self.call, self.error = (group, depth), error


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

    def compute() -> tuple[Tensor, list[Tensor]]:
        own = rows(first, min(first + share, stop))
        padded = own.new_zeros(share, own.shape[1])  # gathering needs equal sizes
        padded[: len(own)] = own
        return padded, [torch.empty_like(padded) for _ in range(size)]

    padded, parts = together(compute, group)
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
    results: list[Result] = []
    _call([0], lambda _: results.append(work()), group)
    return results[0]


def fails_together(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function that, given a ``group`` by keyword, raises in all its processes what it raises in one."""

    @functools.wraps(function)
    def call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        group: Any = options.get("group")
        return together(lambda: function(*args, **options), group)

    return call


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
    outcomes = _call(indices[rank::size], work, group)
    return [outcomes[position % size][position // size] for position in range(len(indices))]


def _call(indices: Sequence[int], work: Callable[[int], Result], group: ProcessGroup) -> list[list[Result]]:
    """Do this process's work, and return all processes' results.

    Raises:
        Exception: Of the failures in all processes, that in the outermost call; of those, at the first index.
    """
    depth = _around.get().count(group)
    entered = _around.set((*_around.get(), group))
    try:
        results, error = _attempt(indices, work)
    except _FailedFurtherOutError as failure:
        if failure.call == (group, depth):
            raise failure.error from None
        raise
    finally:
        _around.reset(entered)
    own = _Outcome(depth, len(results), error, results)
    size = distributed.get_world_size(group)
    outcomes = [own] * size
    distributed.all_gather_object(outcomes, own, group=group)
    outcomes[distributed.get_rank(group)] = own  # its error has a traceback
    failed = {
        (outcome.depth, outcome.done * size + owner): outcome.error
        for owner, outcome in enumerate(outcomes)
        if outcome.error
    }
    if failed:
        outermost, first = min(failed)
        if outermost < depth:
            raise _FailedFurtherOutError(group, outermost, failed[outermost, first])
        raise failed[outermost, first]
    return [outcome.results for outcome in outcomes]


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
