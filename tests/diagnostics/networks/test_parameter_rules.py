"""The tangent kernel of every kind of layer against plain autograd on a second copy of the network."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from skip_conditioning import tangent_kernel
from tests.diagnostics.kernel.structures import assert_near, autograd_jacobian

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """A network and its input.

    Attributes:
        build: Makes the layers, after the random stream was seeded.
        shape: Shape of the input.
        by_autograd: Blocks whose parameters have no rule.
        tokens: Size of the vocabulary of an integer input; 0 for a real one.
    """

    id: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    by_autograd: tuple[str, ...] = ()
    tokens: int = 0

    def make(self):
        """The network and its input, in float64; gains, biases and running statistics are not the usual 1 and 0."""
        torch.manual_seed(sum(map(ord, self.id)))
        model = self.build().double()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and not name.endswith(("_u", "_v")):
                tensor.data.add_(torch.rand_like(tensor) / 3)
        return model, torch.randint(self.tokens, self.shape) if self.tokens else torch.randn(self.shape, dtype=F64)


def assert_agrees(case, **options):
    model, x = case.make()
    measured = tangent_kernel(model, x, **options)
    for block in [*measured.blocks, "total"]:
        rows = autograd_jacobian(*case.make(), block)
        assert_near(measured.block(block), rows @ rows.T)
    assert {name for name, method in measured.methods.items() if "autograd" in method} == set(case.by_autograd)
    return measured


def net(*layers):
    """The layers, and their output as a vector."""
    return nn.Sequential(*layers, nn.Flatten())


def frozen(module, *names):
    for name in names:
        getattr(module, name).requires_grad_(False)
    return module


def without_warnings(build):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build()


class Attends(nn.Module):
    """Attention and a head, as a layer of its own."""

    def __init__(self, cross=False, mask=None, need_weights=False, first=True, **options):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=first, **options), nn.Linear(4, 2)
        self.key = nn.Linear(4, options.get("kdim") or 4) if cross else None
        self.mask, self.need_weights, self.first = mask, need_weights, first

    def forward(self, x):
        x = x if self.first else x.transpose(0, 1)
        key = x if self.key is None else self.key(x)
        masks = {}
        if self.mask == "causal":
            masks = {"attn_mask": torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)}
        if self.mask == "padding":
            masks = {"key_padding_mask": (x[..., 0] > 0).logical_and(torch.arange(x.shape[1]) > 0)}
        mixed, weights = self.attention(x, key, key, need_weights=self.need_weights, **masks)
        mixed = self.head(mixed) * (1 if weights is None else 1 + weights.square().sum())
        return (mixed if self.first else mixed.transpose(0, 1)).tanh()[:, :2]


class Recurrent(nn.Module):
    """The first output of a recurrent layer."""

    def __init__(self, kind, **options):
        super().__init__()
        self.cells = kind(2, 3, batch_first=True, **options)

    def forward(self, x):
        return self.cells(x)[0][:, -1]


class BilinearForm(nn.Bilinear):
    """Of the input with itself."""

    def forward(self, x):
        return super().forward(x, x.tanh())


class Scaled(nn.Module):
    """A bare parameter."""

    def __init__(self):
        super().__init__()
        self.linear, self.scale = nn.Linear(3, 3), nn.Parameter(torch.randn(3))

    def forward(self, x):
        return (self.linear(x) * self.scale).sin() + self.scale**2


def conv(spatial, channels=(2, 3), kernel=3, **options):
    """A convolution between an elementwise function and a sum, so that cotangents differ from pixel to pixel."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[spatial - 1]
    return net(kind(*channels, kernel, **options), nn.Tanh(), pool((1,) * spatial if spatial > 1 else 1))


def linear(**options):
    return nn.Sequential(nn.Linear(4, 5, **options), nn.Tanh(), nn.Linear(5, 2, **options))


def tokens(**options):
    return net(nn.Embedding(5, 3, **options), nn.Tanh(), nn.Linear(3, 2))


def norm(module, before=None):
    return net(before or nn.Identity(), module, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))


def lazy(build, shape):
    """A network with lazy layers, made ready."""

    def ready():
        model = build()
        model.eval()(torch.zeros(shape))
        return model.train()

    return ready


def normal(id, build, shape, **more):
    return Case(id, lazy(lambda: norm(build()), shape), shape, **more)


CASES = [
    Case("linear", linear, (3, 4)),
    Case("linear-one-sample", linear, (1, 4)),
    Case("linear-no-bias", lambda: linear(bias=False), (3, 4)),
    Case("linear-3d", lambda: net(*linear()), (3, 2, 4)),
    Case("linear-3d-many-positions", lambda: nn.Sequential(linear(), nn.Flatten(), nn.Linear(18, 2)), (2, 9, 4)),
    Case("linear-4d", lambda: net(*linear()), (2, 2, 2, 4)),
    Case("linear-frozen-weight", lambda: nn.Sequential(frozen(nn.Linear(4, 3), "weight"), nn.Tanh()), (3, 4)),
    Case("linear-frozen-bias", lambda: nn.Sequential(frozen(nn.Linear(4, 3), "bias"), nn.Tanh()), (3, 4)),
    Case("conv1d", lambda: conv(1), (3, 2, 7)),
    Case("conv1d-grouped", lambda: conv(1, (4, 6), groups=2, stride=2, bias=False), (3, 4, 9)),
    Case("conv1d-circular", lambda: conv(1, padding=2, padding_mode="circular"), (3, 2, 6)),
    Case("conv1d-one-output-pixel", lambda: conv(1, kernel=5), (3, 2, 5)),
    Case("conv1d-as-many-channels-as-samples", lambda: conv(1, (2, 4)), (4, 2, 6)),
    Case("conv2d", lambda: conv(2), (3, 2, 5, 4)),
    Case("conv2d-few-pixels", lambda: net(nn.Conv2d(6, 6, 3), nn.Tanh()), (2, 6, 4, 3)),
    Case("conv2d-pointwise", lambda: conv(2, kernel=1), (3, 2, 3, 3)),
    Case("conv2d-grouped", lambda: conv(2, (4, 6), groups=2), (2, 4, 5, 5)),
    Case("conv2d-depthwise", lambda: conv(2, (3, 3), groups=3), (2, 3, 5, 5)),
    Case("conv2d-depthwise-multiplied", lambda: conv(2, (3, 6), groups=3, bias=False), (2, 3, 5, 5)),
    Case("conv2d-strided", lambda: conv(2, stride=(2, 1), padding=(0, 2)), (2, 2, 6, 5)),
    Case("conv2d-dilated", lambda: conv(2, dilation=(1, 2), padding=1), (2, 2, 5, 6)),
    Case("conv2d-same", lambda: conv(2, kernel=(2, 3), padding="same", dilation=(1, 2)), (2, 2, 5, 6)),
    Case("conv2d-same-even", lambda: conv(2, kernel=(2, 4), padding="same"), (2, 2, 3, 4)),
    Case("conv2d-valid", lambda: conv(2, padding="valid"), (2, 2, 5, 5)),
    Case("conv2d-reflect", lambda: conv(2, padding=(1, 2), padding_mode="reflect"), (2, 2, 4, 5)),
    Case("conv2d-replicate-same", lambda: conv(2, padding="same", padding_mode="replicate"), (2, 2, 4, 4)),
    Case(
        "conv2d-frozen-weight",
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1), frozen(conv(2)[0], "weight"), nn.Flatten()),
        (2, 2, 4, 4),
    ),
    Case("conv2d-frozen-bias", lambda: nn.Sequential(frozen(conv(2)[0], "bias"), nn.Flatten()), (2, 2, 4, 4)),
    Case("conv3d", lambda: conv(3, kernel=2, padding=(1, 0, 1), stride=(1, 2, 1)), (2, 2, 3, 4, 3)),
    Case("conv3d-grouped-same", lambda: conv(3, (2, 4), groups=2, padding="same", kernel=(1, 2, 3)), (2, 2, 3, 2, 3)),
    Case("conv-transpose", lambda: net(nn.ConvTranspose2d(2, 3, 2, stride=2), nn.Tanh()), (2, 2, 2, 2), ("0",)),
    normal("batch-norm-1d", lambda: nn.BatchNorm1d(4), (5, 4)),
    normal("batch-norm-1d-eval", lambda: nn.BatchNorm1d(4).eval(), (5, 4)),
    normal("batch-norm-1d-of-signals", lambda: nn.BatchNorm1d(4, eps=0.1), (3, 4, 3)),
    normal("batch-norm-2d", lambda: nn.BatchNorm2d(3), (3, 3, 2, 2)),
    normal("batch-norm-frozen-bias", lambda: frozen(nn.BatchNorm2d(3), "bias"), (3, 3, 2, 2)),
    normal("batch-norm-no-statistics", lambda: nn.BatchNorm2d(3, track_running_stats=False), (3, 3, 2, 2)),
    normal("group-norm", lambda: nn.GroupNorm(2, 4, eps=0.1), (3, 4, 3)),
    normal("group-norm-2d", lambda: nn.GroupNorm(1, 4), (2, 4, 2, 3)),
    normal("instance-norm", lambda: nn.InstanceNorm2d(3, affine=True), (2, 3, 3, 2), by_autograd=("1",)),
    normal("layer-norm", lambda: nn.LayerNorm(4, eps=0.1), (3, 4)),
    normal("layer-norm-of-tokens", lambda: nn.LayerNorm(4), (3, 2, 4)),
    normal("layer-norm-of-two-dimensions", lambda: nn.LayerNorm((3, 4)), (3, 2, 3, 4)),
    normal("layer-norm-of-all", lambda: nn.LayerNorm((2, 3)), (4, 2, 3)),
    normal("layer-norm-no-bias", lambda: nn.LayerNorm(4, bias=False), (3, 2, 4)),
    normal("layer-norm-frozen-weight", lambda: frozen(nn.LayerNorm(4), "weight"), (3, 2, 4)),
    normal("rms-norm", lambda: nn.RMSNorm(4), (3, 2, 4)),
    normal("rms-norm-eps", lambda: nn.RMSNorm((2, 4), eps=0.1), (3, 2, 4)),
    Case("embedding", tokens, (3, 4), tokens=5),
    Case("embedding-repeated", tokens, (3, 6), tokens=2),
    Case("embedding-one-token", tokens, (4,), tokens=5),
    Case("embedding-padding", lambda: tokens(padding_idx=1), (3, 4), tokens=3),
    Case("embedding-padding-from-the-end", lambda: tokens(padding_idx=-4), (3, 4), tokens=3),
    Case("embedding-max-norm", lambda: tokens(max_norm=0.5), (3, 4), ("0", "2"), tokens=5),
    Case("embedding-by-frequency", lambda: tokens(scale_grad_by_freq=True), (3, 4), ("0",), tokens=3),
    Case("embedding-sparse", lambda: tokens(sparse=True), (3, 4), tokens=5),
    Case("embedding-bag", lambda: net(nn.EmbeddingBag(5, 3), nn.Tanh()), (3, 4), ("0",), tokens=5),
    Case("attention", Attends, (3, 4, 4)),
    Case("attention-no-bias", lambda: Attends(bias=False), (3, 2, 4)),
    Case("attention-as-many-tokens-as-samples", Attends, (3, 3, 4)),
    Case("attention-tokens-first", lambda: Attends(first=False), (3, 4, 4)),
    Case("attention-tokens-first-as-many", lambda: Attends(first=False), (3, 3, 4)),
    Case("attention-causal", lambda: Attends(mask="causal"), (2, 3, 4)),
    Case("attention-padding", lambda: Attends(mask="padding"), (2, 4, 4)),
    Case("attention-weights-bias-kv", lambda: Attends(need_weights=True, add_bias_kv=True), (1, 2, 4), ("attention",)),
    Case("attention-cross", lambda: Attends(cross=True), (3, 2, 4), ("attention",)),
    Case("attention-cross-other-width", lambda: Attends(cross=True, kdim=3, vdim=3), (2, 2, 4), ("attention",)),
    Case("encoder-layer", lambda: net(nn.TransformerEncoderLayer(4, 2, 5, dropout=0, batch_first=True)), (2, 2, 4)),
    Case(
        "encoder-layer-norm-first",
        lambda: net(nn.TransformerEncoderLayer(4, 1, 3, dropout=0, batch_first=True, norm_first=True)),
        (2, 2, 4),
    ),
    Case("lstm", lambda: Recurrent(nn.LSTM), (3, 3, 2), ("cells",)),
    Case("gru", lambda: Recurrent(nn.GRU, bidirectional=True), (2, 3, 2), ("cells",)),
    Case(
        "weight-norm-by-hooks",
        lambda: without_warnings(lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)), nn.Tanh())),
        (3, 4),
        ("0",),
    ),
    Case(
        "weight-norm", lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh()), (3, 4), ("0",)
    ),
    Case(
        "weight-norm-of-conv",
        lambda: net(parametrizations.weight_norm(nn.Conv2d(2, 3, 2)), nn.Tanh()),
        (2, 2, 3, 3),
        ("0",),
    ),
    Case(
        "spectral-norm",
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 3)), nn.Tanh()),
        (3, 4),
        ("0",),
    ),
    Case(
        "spectral-norm-by-hooks",
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 3)), nn.Tanh()),
        (3, 4),
        ("0",),
    ),
    Case("prelu", lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU(3), nn.Linear(3, 2)), (3, 4), ("1",)),
    Case("bare-parameter", Scaled, (3, 3), ("scale",)),
    Case("bilinear", lambda: nn.Sequential(BilinearForm(3, 3, 2), nn.Tanh()), (3, 3), ("0",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_layers_against_autograd(case):
    assert_agrees(case)


#: One case or two for each rule and for each kind without one, with the sizes at which a rule could mistake an axis.
KINDS = (
    "linear",
    "linear-3d",
    "linear-frozen-weight",
    "conv1d-one-output-pixel",
    "conv2d-grouped",
    "conv2d-depthwise",
    "conv2d-dilated",
    "conv2d-same-even",
    "conv2d-reflect",
    "conv3d",
    "conv-transpose",
    "batch-norm-2d",
    "batch-norm-1d-eval",
    "batch-norm-no-statistics",
    "group-norm-2d",
    "instance-norm",
    "layer-norm-of-tokens",
    "rms-norm",
    "embedding-repeated",
    "embedding-one-token",
    "embedding-padding",
    "embedding-by-frequency",
    "attention-as-many-tokens-as-samples",
    "attention-tokens-first-as-many",
    "attention-causal",
    "attention-weights-bias-kv",
    "encoder-layer",
    "lstm",
    "weight-norm",
    "spectral-norm",
    "bare-parameter",
    "bilinear",
)
BY_KIND = [case for case in CASES if case.id in KINDS]


@pytest.mark.parametrize("case", BY_KIND, ids=lambda case: case.id)
def test_layers_between_two_batches(case):
    model, x = case.make()
    other = torch.cat([x.flip(0), x[:1]]) if case.tokens else torch.randn(len(x) + 1, *x.shape[1:], dtype=F64)
    measured = tangent_kernel(model, x, other)
    for block in [*measured.blocks, "total"]:
        rows, columns = (autograd_jacobian(case.make()[0], batch, block) for batch in (x, other))
        assert_near(measured.block(block), rows @ columns.T)


INTERACT = ("batch-norm-no-statistics", "attention-weights-bias-kv", "embedding-by-frequency")


@pytest.mark.parametrize("case", [case for case in BY_KIND if case.id not in INTERACT], ids=lambda case: case.id)
def test_layers_by_sample(case):
    model, x = case.make()
    measured = tangent_kernel(model.train(), x, batch_mode="sample")
    for block in [*measured.blocks, "total"]:
        rows = torch.cat([autograd_jacobian(case.make()[0].eval(), one, block) for one in x.split(1)])
        assert_near(measured.block(block), rows @ rows.T)


class Mixes(nn.Sequential):
    """Makes the samples interact."""

    def forward(self, x):
        x = super().forward(x)
        return x * (2 + x.mean(0).sin())


@pytest.mark.parametrize("case", BY_KIND, ids=lambda case: case.id)
def test_layers_of_samples_that_interact(case):
    (model, x), (copy, _) = case.make(), case.make()
    measured = tangent_kernel(Mixes(model), x)
    rows = autograd_jacobian(Mixes(copy), x)
    assert_near(measured.total, rows @ rows.T)
    assert any("autograd" in method for method in measured.methods.values()) == bool(case.by_autograd)
