"""A batch is read as its user means it, or refused by name with the call that would work."""

import re
from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from skip_conditioning import Probe, TangentKernelOperator, jacobian, spectra, tangent_kernel
from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.loss.probe_loss import probe_metrics, rayleigh_quotients


class Masked(nn.Module):
    """A language model with a mask, as small as can be; returns what Hugging Face's do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        h = self.embed(input_ids)
        if attention_mask is not None:
            h = h * attention_mask[..., None]
        return {"hidden": h, "logits": self.head(torch.tanh(self.mix(h)))}


class Added(nn.Module):
    """Of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.first(x) * self.second(t))


IDS, MASK = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
X, T, Y = torch.randn(5, 3), torch.randn(5, 2), torch.tensor([0, 1, 2, 3, 0])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "batch",
    [(X, T), [X, T], {"x": X, "t": T}, UserDict(x=X, t=T), ((X, T), Y), {"x": X, "t": T, "labels": Y}, Probe((X, T))],
    ids=["pair", "list", "dictionary", "mapping", "targets", "labels", "probe"],
)
@pytest.mark.parametrize("mode", ["batch", "sample"])
def test_inputs_are_positional_or_by_name_with_targets_or_without(batch: Any, mode: str) -> None:
    model = Added().double()
    J = jacobian(model, batch, map="network", batch_mode=mode, dtype=torch.float64)
    x, t = X.double(), T.double()
    rows = slice(0, 5) if mode == "batch" else slice(4, 5)
    parts = torch.autograd.functional.jacobian(model, (x[rows], t[rows]))
    expected = torch.cat([part.reshape(4 * len(x[rows]), -1) for part in parts], dim=1)
    torch.testing.assert_close(J if mode == "batch" else J[-1], expected)


def test_a_call_of_ones_own() -> None:
    model = Added()
    called = spectra(model, {"image": X, "time": T}, forward=lambda model, batch: model(batch["image"], batch["time"]))
    assert called["first"].sigma_max == spectra(model, (X, T))["first"].sigma_max


@pytest.mark.parametrize(
    ("output", "expected"), [(None, 7), ("hidden", 4), (0, 4), (lambda returned: returned["logits"], 7)]
)
def test_the_output_that_counts(output: Any, expected: int) -> None:
    J = jacobian(Masked(), {"input_ids": IDS}, map="tail", layer="embed", output=output)
    assert J.shape == (2 * 3 * expected, 2 * 3 * 4)


def test_outputs_that_count() -> None:
    model, batch = Masked(), {"input_ids": IDS, "attention_mask": MASK, "labels": IDS}
    whole = jacobian(model, batch, map="tail", layer="embed").view(2, 3, 7, -1)

    def part(outputs: Any) -> Tensor:
        return jacobian(model, batch, map="tail", layer="embed", outputs=outputs)

    torch.testing.assert_close(part(slice(2, 5)), whole[:, :, 2:5].flatten(0, 2))
    torch.testing.assert_close(part([0, 6]), whole[:, :, [0, 6]].flatten(0, 2))
    torch.testing.assert_close(part(3), whole[:, :, 3].flatten(0, 1))
    torch.testing.assert_close(part("last_token"), whole[[0, 1], [2, 1]].flatten(0, 1))
    at_targets = whole.gather(2, IDS[..., None, None].expand(-1, -1, 1, whole.shape[-1]))
    torch.testing.assert_close(part("targets"), at_targets.flatten(0, 2))
    one_each = torch.tensor([[True, False, False], [False, False, True]])
    torch.testing.assert_close(part(one_each), whole[[0, 1], [0, 2]].flatten(0, 1))
    torch.testing.assert_close(part(lambda output: output.sum(-1)), whole.sum(2).flatten(0, 1))
    kernel = tangent_kernel(model, batch, outputs="last_token", dtype=torch.float64)
    assert kernel.total.shape == TangentKernelOperator(model, batch, outputs="last_token").shape == (14, 14)
    alone = jacobian(model, batch, map="tail", layer="embed", outputs=one_each, batch_mode="sample")
    torch.testing.assert_close(alone[1], part(one_each).view(2, 7, 2, -1)[1, :, 1])


def test_losses_by_name_and_of_ones_own() -> None:
    model, batch = Masked(), {"input_ids": IDS, "attention_mask": MASK, "labels": IDS}
    logits = model(IDS, MASK)["logits"]
    shifted = functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    assert probe_metrics(model, batch, loss="causal_lm")["loss"] == pytest.approx(float(shifted))
    unpadded = functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten(), ignore_index=0)
    assert probe_metrics(model, batch, loss="causal_lm", ignore_index=0)["loss"] == pytest.approx(float(unpadded))
    module = nn.CrossEntropyLoss()
    pair = Probe({"input_ids": IDS}, IDS, output=lambda returned: returned["logits"].movedim(-1, 1), loss=module)
    expected = functional.cross_entropy(model(IDS)["logits"].flatten(0, 1), IDS.flatten())
    assert probe_metrics(model, pair)["loss"] == pytest.approx(float(expected))

    def squared(returned: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return (returned["logits"] ** 2).mean() + 0 * batch["labels"].sum()

    assert probe_metrics(model, batch, loss=squared)["loss"] == pytest.approx(float((logits**2).mean()))
    gradients = torch.autograd.grad(squared(model(IDS, MASK), batch), [*model.parameters()])
    slope = 2 * logits / logits.numel()
    quotient = sum(float((part**2).sum()) for part in gradients) / float((slope**2).sum())
    assert rayleigh_quotients(model, batch, loss=squared)["total"] == pytest.approx(quotient, rel=1e-4)
    binary = probe_metrics(nn.Linear(3, 1), X, torch.tensor([0, 1, 0, 1, 1]), loss="bce")
    assert 0 <= float(binary["accuracy"]) <= 1


def test_a_part_as_long_as_the_batch_that_is_no_samples() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 2)

        def forward(self, x: Tensor, positions: Tensor) -> Tensor:
            return self.head(x[..., None] * positions[:, None])

    batch = (torch.randn(3, 3), torch.tensor([1.0, 2.0, 3.0]))
    assert len(spectra(Positions(), batch, layers="head")) == 1
    with pytest.raises(InputError, match=r"other outputs by itself.*batch_mode='batch'"):
        spectra(Positions(), batch, layers="head", batch_mode="sample")


def test_half_precision_is_measured_in_float32() -> None:
    spectrum = spectra(nn.Linear(3, 2).bfloat16(), torch.randn(4, 3).bfloat16(), map="network")["network"]
    assert spectrum.dtype == "float32"
    assert "bfloat16 weights, measured in float32" in spectrum.note


@pytest.mark.parametrize(
    ("model", "batch", "reading", "message"),
    [
        (Masked(), (IDS, MASK), {}, r"looks like the 'attention_mask'.*Probe\(\(x, mask\)\)"),
        (Masked(), (IDS, MASK.bool()), {}, r"bool of shape \(2, 3\), looks like the 'attention_mask'"),
        (Masked(), {"attention_mask": MASK}, {}, r"needs 'input_ids', and the probe holds attention_mask"),
        (Masked(), {"input_ids": IDS, "atention_mask": MASK}, {}, r"takes no 'atention_mask'.*attention_mask"),
        (Masked(), {"input_ids": IDS, "attention_mask": MASK[:1, :2]}, {}, r"input_ids \(2, 3\) int64, attention_mask"),
        (Masked(), Probe(IDS), {"output": "logit"}, "output='logit' is no tensor.*hidden, logits"),
        (Masked(), IDS, {"outputs": "first"}, "unknown outputs 'first'; known are last_token"),
        (Masked(), IDS, {"outputs": [7]}, r"outputs \[7\] do not fit outputs of shape"),
        (Masked(), IDS, {"outputs": "targets"}, "needs class indices; give the probe's targets"),
        (Masked(), IDS, {"outputs": MASK.bool()}, "2 to 3 entries a sample"),
        (nn.Linear(3, 2), (X, T, Y), {}, "cannot be applied to a probe with input 0"),
        (nn.Linear(3, 2), (X, Y[:2]), {}, "targets do not fit the inputs: 2 of them for 5"),
        (nn.Linear(3, 2), {}, {}, "needs 'input'"),
        (nn.Linear(3, 2), [], {}, "the probe is empty"),
        (nn.Linear(3, 2), X, {"loss": "crossentropy"}, "unknown loss 'crossentropy'; known are cross_entropy"),
    ],
)
def test_what_cannot_be_read_is_one_line(model: nn.Module, batch: Any, reading: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        spectra(model, batch, map="tail" if isinstance(model, Masked) else "network", **reading)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_no_scalar() -> None:
    with pytest.raises(InputError, match=re.escape("returns a tensor of shape (5, 2); return one real number")):
        probe_metrics(nn.Linear(3, 2), X, loss=lambda output, batch: output)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="'batchmode'"):
        spectra(nn.Linear(3, 2), X, batchmode="sample")  # type: ignore[call-arg]
