"""The derivative of a function at a point as a program: forward mode runs once, and its operators are repeated.

``torch.func.jvp`` evaluates the function anew at every product. Here one such evaluation is watched, operator by
operator; those that touch the tangent are kept with everything else they used, and a product repeats only them. It
costs about what the function itself does. (``torch.func.linearize`` does the same by tracing, which takes several
times longer to set up and keeps needless copies that PyTorch's formulas make.)
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from skip_conditioning.diagnostics.jacobians.batch_norm_tangent import ShortBatchNorm

_aten = torch.ops.aten

#: Operators that forward-mode formulas call and ``vmap`` has no rule for, each with an equal one that has a rule.
_BATCHED = {torch.ops.prims.add.default: _aten.add.Tensor}

#: Operators that use only a tensor's shape, so that its values may change.
_SHAPES_ONLY = {_aten._new_zeros_with_same_feature_meta.default, _aten.zeros_like.default}


class NotLinearizableError(Exception):
    """The function's forward mode cannot be recorded; but the function may still have a double backward."""


@dataclass(frozen=True)
class _Slot:
    """Stands for a tensor that depends on the tangent and differs at each product."""

    index: int


@dataclass(frozen=True)
class _Operation:
    """One operator of the program.

    Attributes:
        operator: Called with the arguments.
        args: Positional arguments; tensors that depend on the tangent are slots, also within lists.
        kwargs: Keyword arguments, likewise.
        results: The slot of each of its results; None for a result that is no tensor.
        written: Slots of the arguments that it writes into.
        is_copy: Whether its result is its first argument: a copy, an expansion to the same shape, a sum with zeros.
    """

    operator: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[int | None]
    written: list[int]
    is_copy: bool

    def slots(self) -> set[int]:
        """The slots among its arguments."""
        return {leaf.index for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, _Slot)}

    def signature(self) -> Any:
        """Equal for two operations that compute the same."""
        leaves, structure = tree_flatten((self.args, self.kwargs))
        keys = [id(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return self.operator, str(structure), tuple((type(leaf), key) for leaf, key in zip(leaves, keys, strict=True))

    def run(self, values: dict[int, Tensor]) -> None:
        """Call the operator on the tensors in the slots and put its results in theirs."""
        args = [_filled(argument, values) for argument in self.args]
        kwargs = {name: _filled(argument, values) for name, argument in self.kwargs.items()}
        for slot, value in zip(self.results, tree_leaves(self.operator(*args, **kwargs)), strict=True):
            if slot is not None:
                values[slot] = value


def linearize(function: Callable[[Tensor], Tensor], point: Tensor) -> Callable[[Tensor], Tensor]:
    """The linear map ``v ↦ ∂function(point) · v``, for any number of ``v``; ``vmap`` can map it.

    Args:
        function: Differentiable in forward mode.
        point: Where the derivative is taken; not to be changed afterwards.

    Returns:
        A function of tensors shaped like ``point``. It draws nothing from the random streams: a dropout mask is part of
        the program.

    Raises:
        NotLinearizableError: An operator has no forward derivative, or tensors that the program needs were overwritten
            while it was recorded.
    """
    tangent = torch.zeros(point.shape, dtype=point.dtype, device=point.device)  # row-major, as later ones will be
    recorder = _Recorder(tangent)
    try:
        with torch.no_grad(), recorder, ShortBatchNorm():
            derivative = jvp(function, (point,), (tangent,))[1]
    except (RuntimeError, NotImplementedError) as error:
        raise NotLinearizableError(str(error).strip().splitlines()[0]) from error
    if recorder.overwritten():
        raise NotLinearizableError("tensors that the derivative needs are overwritten in place")
    return recorder.program(derivative)


class _Recorder(TorchDispatchMode):
    """Watches a forward-mode evaluation and keeps the operators that touch the tangent."""

    def __init__(self, tangent: Tensor) -> None:
        super().__init__()
        self._operations: list[_Operation] = []
        # Weak, so that what the evaluation no longer needs takes no memory.
        self._slots = WeakIdKeyDictionary({tangent: 0})
        self._count = 1
        self._constants: dict[int, tuple[Tensor, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        before = {} if func in _SHAPES_ONLY else self._constants_among((args, kwargs))
        result = func(*args, **kwargs)
        has_tensors = any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
        if has_tensors and any(self._is_slot(leaf) for leaf in tree_leaves((args, kwargs))):
            self._constants |= before
            self._keep(func, args, kwargs, result)
        return result

    def _constants_among(self, values: Any) -> dict[int, tuple[Tensor, int]]:
        """The tensors that do not depend on the tangent, and how often each has been written to."""
        leaves = [leaf for leaf in tree_leaves(values) if self._is_constant(leaf)]
        return {id(leaf): self._constants.get(id(leaf), (leaf, leaf._version)) for leaf in leaves}

    def _is_slot(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value in self._slots

    def _is_constant(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value not in self._slots

    def _is_copy(self, func: torch._ops.OpOverload, args: tuple[Any, ...], result: Any) -> bool:
        """Whether an operator is a copy, an expansion or a sum whose result is its first argument."""
        if not isinstance(result, Tensor) or not self._is_slot(first := args[0]):
            return False
        if (first.shape, first.dtype, first.device) != (result.shape, result.dtype, result.device):
            return False
        # Copied to another layout, as a later view may need it.
        if first.stride() != result.stride():
            return False
        if func in (_aten._to_copy.default, _aten.expand.default, _aten.clone.default):
            return True
        # Biases have tangents of zeros.
        return func is _aten.add.Tensor and self._is_constant(args[1]) and not bool(args[1].any())

    def _keep(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        is_copy = self._is_copy(func, args, result)
        to_slot = lambda leaf: _Slot(self._slots[leaf]) if self._is_slot(leaf) else leaf  # noqa: E731
        args, kwargs = tree_map(to_slot, args), tree_map(to_slot, kwargs)
        written = _written_slots(func, args, kwargs)
        results: list[int | None] = []
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                # An operator that works in place returns its argument, whose slot stays the same.
                results.append(self._slots.setdefault(value, self._count))
                self._count += 1
            else:
                results.append(None)
        self._operations.append(_Operation(_BATCHED.get(func, func), args, kwargs, results, written, is_copy))

    def overwritten(self) -> bool:
        """Whether a constant was written into after it was used.

        The program itself may not write into one either: a second product would use the changed constant.
        """
        return any(tensor._version != version for tensor, version in self._constants.values())

    def program(self, derivative: Tensor) -> Callable[[Tensor], Tensor]:
        """A function that repeats the recorded operators and returns what ``derivative`` stands for."""
        output = self._slots.get(derivative)
        if output is None:  # the function does not depend on its argument
            return lambda tangent: torch.zeros_like(derivative)
        memory = _Memory(self._operations)
        operations, output = memory.condensed(self._operations, output)
        takes_copy, gives_copy = memory.is_written(0), memory.is_shared(0, output)
        steps: list[tuple[_Operation, list[int]]] = []
        needed = {0, output}
        for operation in reversed(operations):
            if not operation.written and needed.isdisjoint(operation.results):
                continue  # such as the checks of shapes that operators make on the meta device
            used = operation.slots()
            steps.append((operation, sorted(used - needed)))
            needed |= used
        steps.reverse()

        def product(tangent: Tensor) -> Tensor:
            # The caller's own vector is neither written into nor handed back.
            values = {0: tangent.clone() if takes_copy else tangent}
            for operation, last_used in steps:
                operation.run(values)
                for slot in last_used:
                    del values[slot]
            return values[output].clone() if gives_copy else values[output]

        return product


class _Memory:
    """Which slots share memory, being views of one another, and which memory is written into.

    Args:
        operations: The program.
    """

    def __init__(self, operations: list[_Operation]) -> None:
        self._owners: dict[int, int] = {0: 0}
        for operation in operations:
            is_view = operation.operator.is_view  # type: ignore[attr-defined]
            viewed = next(iter(operation.slots()), None) if is_view else None
            for slot in operation.results:
                if slot is not None:
                    self._owners.setdefault(slot, slot if viewed is None else self._owners[viewed])
        self._written = {self._owners[slot] for operation in operations for slot in operation.written}

    def is_written(self, slot: int) -> bool:
        """Whether some operator writes into the slot's memory."""
        return self._owners[slot] in self._written

    def is_shared(self, slot: int, other: int) -> bool:
        """Whether two slots have memory in common."""
        return self._owners[slot] == self._owners[other]

    def condensed(self, operations: list[_Operation], output: int) -> tuple[list[_Operation], int]:
        """The program without needless copies and repetitions, and the slot of its result.

        An operation stays where the memory of an argument or of a result of it is written into.
        """
        same: dict[int, int] = {}
        by_signature: dict[Any, int] = {}
        renamed = lambda leaf: _Slot(same.get(leaf.index, leaf.index)) if isinstance(leaf, _Slot) else leaf  # noqa: E731
        kept = []
        for original in operations:
            args, kwargs = tree_map(renamed, original.args), tree_map(renamed, original.kwargs)
            operation = dataclasses.replace(original, args=args, kwargs=kwargs)
            slots = [slot for slot in (*operation.slots(), *operation.results) if slot is not None]
            result = operation.results[0]
            if result is None or len(operation.results) > 1 or any(map(self.is_written, slots)):
                kept.append(operation)
            elif operation.is_copy:
                same[result] = args[0].index
            elif (earlier := by_signature.setdefault(operation.signature(), result)) != result:
                same[result] = earlier
            else:
                kept.append(operation)
        return kept, same.get(output, output)


def _written_slots(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """Slots among the arguments that an operator writes into, by its schema."""
    written = []
    for position, kind in enumerate(func._schema.arguments):
        if kind.is_write:
            value = args[position] if position < len(args) else kwargs.get(kind.name)
            written += [leaf.index for leaf in tree_leaves(value) if isinstance(leaf, _Slot)]
    return written


def _filled(argument: Any, values: dict[int, Tensor]) -> Any:
    """An argument with the tensors in place of the slots."""
    if isinstance(argument, _Slot):
        return values[argument.index]
    if isinstance(argument, list | tuple):
        return [_filled(part, values) for part in argument]
    return argument
