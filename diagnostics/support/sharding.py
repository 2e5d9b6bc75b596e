"""Work shared among the processes of a ``torch.distributed`` group; each process gets the whole result.

Calls may be nested. What fails in one process, within a call's work, is an error in all of them. The process that
failed leaves the work of the innermost call around it and sends its error at that call's end. The others may be waiting
in a call further in by then: they leave everything up to that same call, and no ``except`` in between sees the error.
This works because the messages of all calls have the same form. Tensors are sent without such a message, so
``run_in_all`` has to come right before, with everything that may fail, allocations too, in its work.
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

#: The groups of the calls in whose work this code runs, the outermost first.
_enclosing: ContextVar[tuple[ProcessGroup, ...]] = ContextVar("_enclosing", default=())


@dataclass(frozen=True)
class _Outcome:
    """What a process sends to the others at the end of a call.

    Attributes:
        depth: In how many calls for the same group this call lies.
        done: Number of indices before the first failure.
        error: That failure, in a form that can be sent; None without one.
        results: Results of the indices before it.
    """

    depth: int
    done: int
    error: Exception | None
    results: list[Any]


class _FailedFurtherOutError(BaseException):
    """Another process failed in an outer call; raised here until this process has left everything within that call."""

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
        block = rows(first, min(first + share, stop))
        padded = block.new_zeros(share, block.shape[1])  # gathering needs equal sizes
        padded[: len(block)] = block
        return padded, [torch.empty_like(padded) for _ in range(size)]

    padded, parts = run_in_all(compute, group)
    distributed.all_gather(parts, padded, group=group)
    return torch.cat(parts)[: stop - start]


def summed(tensor: Tensor, group: ProcessGroup | None) -> None:
    """Replace a tensor by its sum over the processes of a group, in place; without a group nothing changes."""
    if group is not None:
        distributed.all_reduce(tensor, group=group)


def run_in_all(work: Callable[[], Result], group: ProcessGroup | None) -> Result:
    """Do some work in every process of a group and return this process's result; without a group, just do it.

    Raises:
        Exception: What the work raised in one process, raised in all: none goes on alone.
    """
    if group is None:
        return work()
    results: list[Result] = []
    _call([0], lambda _: results.append(work()), group)
    return results[0]


def fails_together(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function with a ``group`` argument: what it raises in one process of the group, it raises in all."""

    @functools.wraps(function)
    def call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        group: Any = options.get("group")
        return run_in_all(lambda: function(*args, **options), group)

    return call


def distribute(indices: Sequence[int], work: Callable[[int], Result], group: ProcessGroup | None) -> list[Result]:
    """The results of some work for each index, in order; the processes take the indices in turn.

    Args:
        indices: The same in every process.
        work: Its result, and any exception, is pickled and sent to all processes.
        group: All its processes have to call; None for this process alone.

    Raises:
        Exception: What ``work`` raised for the first index at which it failed, raised in every process.
    """
    if group is None:
        return [work(index) for index in indices]
    rank, size = distributed.get_rank(group), distributed.get_world_size(group)
    outcomes = _call(indices[rank::size], work, group)
    return [outcomes[position % size][position // size] for position in range(len(indices))]


def _call(indices: Sequence[int], work: Callable[[int], Result], group: ProcessGroup) -> list[list[Result]]:
    """Do this process's work, and return all processes' results.

    Raises:
        Exception: Of the failures in all processes, that of the outermost call; of several there, the first by index.
    """
    depth = _enclosing.get().count(group)
    token = _enclosing.set((*_enclosing.get(), group))
    try:
        results, error = _attempt(indices, work)
    except _FailedFurtherOutError as failure:
        if failure.call == (group, depth):
            raise failure.error from None
        raise
    finally:
        _enclosing.reset(token)
    outcome = _Outcome(depth, len(results), error, results)
    size = distributed.get_world_size(group)
    outcomes = [outcome] * size
    distributed.all_gather_object(outcomes, outcome, group=group)
    outcomes[distributed.get_rank(group)] = outcome  # the error in it has a traceback, which a received one has not
    errors = {
        (outcome.depth, outcome.done * size + rank): outcome.error
        for rank, outcome in enumerate(outcomes)
        if outcome.error
    }
    if errors:
        outermost, first = min(errors)
        if outermost < depth:
            raise _FailedFurtherOutError(group, outermost, errors[outermost, first])
        raise errors[outermost, first]
    return [outcome.results for outcome in outcomes]


def _attempt(indices: Sequence[int], work: Callable[[int], Result]) -> tuple[list[Result], Exception | None]:
    """The results up to the first failure, and that failure in a form that can be sent; None without one."""
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
