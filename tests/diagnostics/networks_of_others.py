"""Networks as other people train them, small and with random weights, each with a batch as their loop has it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Case:
    """A network, a batch, and a layer to measure.

    Attributes:
        model: The network.
        inputs: A tensor, a tuple of positional inputs or a dictionary of keyword inputs.
        layer: The layer.
        targets: Those apart from the inputs.
        part: Which of the layer's output tensors the rest of the network reads.
        refused: The maps that are refused, by what the message says.
        exact: Whether the network computes in float64 throughout.
        reading: How the probe is read.
    """

    model: nn.Module
    inputs: Any
    layer: str
    targets: Any = None
    part: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    exact: bool = True
    reading: dict[str, Any] = field(default_factory=dict)

    @property
    def probe(self) -> Any:
        """As a training loop has it."""
        return self.inputs if self.targets is None else (self.inputs, self.targets)

    def call(self, inputs: Any) -> Tensor:
        """The outputs, as a user would compute them."""
        if "forward" in self.reading:
            return self.reading["forward"](self.model, inputs)
        if isinstance(inputs, dict):
            returned = self.model(**inputs)
        else:
            returned = self.model(*inputs) if isinstance(inputs, tuple) else self.model(inputs)
        if isinstance(returned, dict):
            return returned["noise"] if "noise" in returned else returned["logits"]
        return returned


IDS = {"network": "no derivative"}


CASES: dict[str, Callable[[], Case]] = {}


def _case(make: Callable[[], Case]) -> Callable[[], Case]:
    def seeded() -> Case:
        torch.manual_seed(0)
        case = make()
        case.model.double().eval()
        return case

    CASES[make.__name__.strip("_").replace("_", "-")] = seeded
    return seeded


def _ids(rows: int = 2, length: int = 5, words: int = 11) -> Tensor:
    return torch.randint(words, (rows, length))


def _transformers() -> Any:
    import transformers

    return transformers


@_case
def gpt2() -> Case:
    hf = _transformers()
    config = hf.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    return Case(hf.GPT2LMHeadModel(config), {"input_ids": _ids()}, "transformer.h.1", refused=IDS)


@_case
def llama() -> Case:
    hf = _transformers()
    config = hf.LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2
    )
    ids = _ids()
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    return Case(hf.LlamaForCausalLM(config), batch, "model.layers.1", refused=IDS, exact=False)


@_case
def bert_with_mask() -> Case:
    hf = _transformers()
    config = hf.BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, num_labels=3
    )
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    batch = {"input_ids": _ids(), "attention_mask": mask, "labels": torch.tensor([0, 2])}
    return Case(hf.BertForSequenceClassification(config), batch, "bert.encoder.layer.1", refused=IDS)


@_case
def t5() -> Case:
    hf = _transformers()
    config = hf.T5Config(
        vocab_size=11, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    batch = {"input_ids": _ids(), "labels": _ids(2, 3)}
    return Case(hf.T5ForConditionalGeneration(config), batch, "encoder.block.1", refused=IDS, exact=False)


@_case
def vit() -> Case:
    hf = _transformers()
    config = hf.ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12
    )
    images = torch.randn(2, 3, 8, 8).double()
    return Case(hf.ViTForImageClassification(config), {"pixel_values": images}, "vit.layers.1")


@_case
def hf_resnet() -> Case:
    hf = _transformers()
    config = hf.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    return Case(
        hf.ResNetForImageClassification(config),
        torch.randn(2, 3, 16, 16).double(),
        "resnet.encoder.stages.1",
        torch.tensor([0, 1]),
    )


@_case
def convnext() -> Case:
    hf = _transformers()
    config = hf.ConvNextConfig(num_channels=3, patch_size=2, num_stages=2, hidden_sizes=[4, 8], depths=[1, 1])
    images = torch.randn(2, 3, 16, 16).double()
    return Case(hf.ConvNextForImageClassification(config), {"pixel_values": images}, "convnext.encoder.stages.1")


class _LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.rnn(x)
        return self.head(h[-1])


@_case
def lstm_reading_h() -> Case:
    return Case(_LSTM(), torch.randn(3, 4, 3).double(), "rnn", torch.tensor([0, 1, 2]), part=1)


class _UNet(nn.Module):
    """A denoiser with one level and a time embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.up = (
            nn.Conv2d(2, 4, 3, 2, 1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(6, 2, 3, padding=1),
        )
        self.time = nn.Linear(2, 4)

    def forward(self, sample: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        t = timestep.to(sample.dtype)[:, None]
        h = functional.silu(self.down(sample)) + self.time(torch.cat([t.sin(), t.cos()], 1))[..., None, None]
        h = functional.interpolate(functional.silu(self.middle(h)), scale_factor=2)
        return {"noise": self.up(torch.cat([sample, h], 1))}


@_case
def unet_with_time() -> Case:
    images, times = torch.randn(2, 2, 4, 4).double(), torch.tensor([1, 7])
    return Case(_UNet(), (images, times), "middle", images, reading={"loss": "mse"})


class _Experts(nn.Module):
    """Each sample goes to the best of three experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        best = weights.argmax(-1)
        mixed = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            chosen = best == index
            mixed[chosen] = expert(x[chosen]) * weights[chosen, index, None]
        return self.head(x + mixed)


@_case
def mixture_of_experts() -> Case:
    return Case(_Experts(), torch.randn(5, 4).double(), "head")


class _Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return torch.sparse.mm(adjacency, self.second(torch.relu(torch.sparse.mm(adjacency, self.first(x)))))


@_case
def graph_with_sparse_adjacency() -> Case:
    adjacency = (torch.eye(4) + torch.rand(4, 4).gt(0.5)).double().to_sparse()
    return Case(_Graph(), (torch.randn(4, 3).double(), adjacency), "first", refused={"sample": "sparse"})


class _Equilibrium(nn.Module):
    """A deep equilibrium network: twenty steps towards a fixed point."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.inject, self.head = nn.Linear(4, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.zeros(len(x), 4, dtype=x.dtype)
        for _ in range(20):
            z = torch.tanh(0.5 * self.inner(z) + self.inject(x))
        return self.head(z)


@_case
def equilibrium() -> Case:
    return Case(_Equilibrium(), torch.randn(3, 3).double(), "inject#20")


class _Physics(nn.Module):
    """A physics-informed network: returns u and its derivative in the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            u = self.net(x)
            (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return torch.cat([u, slope], 1)


@_case
def physics_informed() -> Case:
    return Case(_Physics(), torch.randn(3, 2).double(), "net.2", refused={"tail": "cannot be differentiated"})


@_case
def generator_through_discriminator() -> Case:
    model = nn.ModuleDict(
        {
            "generator": nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)),
            "discriminator": nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(), nn.Linear(5, 1)),
        }
    )

    def forward(model: Any, z: Tensor) -> Tensor:
        return model["discriminator"](model["generator"](z))

    return Case(model, torch.randn(3, 3).double(), "generator.0", reading={"forward": forward})
