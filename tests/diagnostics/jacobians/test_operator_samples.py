"""PyTorch's own samples of its operators: every measurement is right against plain autograd, or refused by name."""

import collections
import warnings

import pytest
import torch
from torch import nn

from skip_conditioning import InputError, JacobianOperator, jacobian

#: What a sample's Jacobian may differ by, in units of its largest entry, or of 1 where all of it is rounding.
_TOLERANCE = 1e-7
#: Operators that round to a narrower precision, by which their results differ.
_NARROW = {"bfloat16": 1e-2, "half": 1e-3}
#: Samples of each operator, and entries of the largest.
_SAMPLES, _ENTRIES = 3, 150


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def first_floating(output):
    parts = [output] if isinstance(output, torch.Tensor) else output if isinstance(output, tuple | list) else []
    return next((part for part in parts if isinstance(part, torch.Tensor) and part.is_floating_point()), None)


def samples(operator):
    """Some networks of one operator, each with its input and its Jacobian by plain autograd, row by row."""
    taken = 0
    for sample in operator.sample_inputs("cpu", torch.float64, requires_grad=False):
        x = sample.input
        if taken == _SAMPLES or not isinstance(x, torch.Tensor) or x.layout is not torch.strided:
            continue
        if not 0 < x.numel() <= _ENTRIES or x.dim() == 0 or not x.is_floating_point():
            continue

        def function(x, sample=sample):
            return first_floating(operator(x, *sample.args, **sample.kwargs))

        point = x.clone().requires_grad_()
        try:
            output = function(point)
            rows = [torch.autograd.grad(y, point, retain_graph=True)[0].flatten() for y in output.flatten()]
        except (RuntimeError, AttributeError):  # not differentiable
            continue
        if rows and len(rows) <= 2 * _ENTRIES and torch.isfinite(torch.stack([*rows, *rows])).all():
            taken += 1
            yield Applied(function), x, torch.stack(rows)


def outcome(operator, measure, expected):
    try:
        error = float((measure() - expected).abs().max())
    except InputError:
        return "refused"
    return (
        "right" if error <= _NARROW.get(operator.name, _TOLERANCE) * max(float(expected.abs().max()), 1.0) else "wrong"
    )


@pytest.mark.slow
def test_every_operator_is_right_or_refused():
    pytest.importorskip("expecttest", reason="torch.testing._internal asks for it")
    from torch.testing._internal.common_methods_invocations import op_db

    counts, wrong = collections.Counter(), []
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for operator in op_db:
            if not operator.supports_autograd or torch.float64 not in operator.supported_dtypes("cpu"):
                continue
            for model, x, expected in samples(operator):
                v = torch.randn(expected.shape[1], 2, generator=generator, dtype=torch.float64)
                for kind, measure, truth in (
                    ("exact", lambda: jacobian(model, x, map="network"), expected),  # noqa: B023
                    ("products", lambda: JacobianOperator(model, x, map="network").matmat(v), expected @ v),  # noqa: B023
                ):
                    result = outcome(operator, measure, truth)
                    counts[kind, result] += 1
                    if result == "wrong":
                        wrong.append((operator.name, kind, tuple(expected.shape)))
    print(dict(counts))
    assert not wrong
    assert counts["exact", "right"] > 1000
    assert counts["exact", "refused"] + counts["products", "refused"] < 40
