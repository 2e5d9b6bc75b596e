"""Networks by name: all arms share one initialisation; errors name the culprit; the listing runs."""

import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from skip_conditioning.models import (
    Arm,
    ModelOptionError,
    NoShortcut,
    arms,
    build_model,
    contractive_mlp,
    default_arm,
    model_names,
    model_options,
    paper_mnist,
    preact_resnet,
)
from skip_conditioning.models.residual_mlp import arms_with_gain

TABLES = {
    "paper-mnist": paper_mnist.ARMS,
    "preact-resnet18": preact_resnet.ARMS,
    "residual-mlp": arms_with_gain(1.0),
    "contractive-mlp": contractive_mlp.ARMS,
}
SMALL = list(TABLES)
SIZE = 3


def narrow(name: str) -> dict[str, int]:
    """Options that make a large network small."""
    return {"width": 8} if name.startswith("preact-resnet") else {}


def images(name: str) -> Tensor:
    return torch.rand(4, *{"paper-mnist": (1, 28, 28), "preact-resnet18": (3, 32, 32)}.get(name, (784,)))


def small_factory(arm: str = "plain", width: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU() if arm == "plain" else nn.Tanh())


def bad_factory():  # type: ignore[no-untyped-def]
    return 3


def harmful(command: str = "") -> str:
    raise AssertionError("it was called")


def test_the_names_are_those_of_the_issue() -> None:
    resnets = tuple(f"preact-resnet{layers}" for layers in (18, 34, 50, 101, 152))
    assert model_names() == ("paper-mnist", *resnets, "residual-mlp", "contractive-mlp")
    assert arms("paper-mnist")[:3] == ("chain", "residual", "modified")
    assert all(arms(name)[:2] == ("original", "modified") for name in resnets)
    assert arms("residual-mlp")[:5] == ("chain", "gain-0.25", "gain-0.5", "residual", "gain-2")
    assert set(model_options("preact-resnet50")) == {"num_classes", "stem", "width"}
    defaults = {name: default_arm(name) for name in ("paper-mnist", "preact-resnet152", "residual-mlp")}
    assert list(defaults.values()) == ["residual", "original", "residual"]


@pytest.mark.parametrize("name", model_names())
def test_all_arms_have_the_same_parameter_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        layouts = [
            [(key, tensor.shape) for key, tensor in build_model(name, arm=arm, **narrow(name)).state_dict().items()]
            for arm in arms(name)
        ]
    assert all(layout == layouts[0] for layout in layouts)


@pytest.mark.parametrize("name", SMALL)
def test_one_seed_gives_every_arm_of_one_initialisation_the_same_parameters_and_leaves_the_same_stream(
    name: str,
) -> None:
    first: dict[str, dict[str, Tensor]] = {}
    for arm in arms(name):
        torch.manual_seed(5)
        drawn = dict(build_model(name, arm=arm, **narrow(name)).named_parameters())
        drawn["stream"] = torch.get_rng_state()
        expected = first.setdefault(TABLES[name][arm].initialisation, drawn)
        assert list(drawn) == list(expected)
        differ = {key for key in drawn if not torch.equal(drawn[key], expected[key])}
        assert all(key.endswith("shortcut.conv.weight") for key in differ)
        assert bool(differ) == (arm == "orthogonal-conv")


@pytest.mark.parametrize("name", SMALL)
def test_the_weights_of_one_arm_load_into_each(name: str) -> None:
    state = build_model(name, arm=arms(name)[0], **narrow(name)).state_dict()
    for arm in arms(name)[1:]:
        model = build_model(name, arm=arm, **narrow(name))
        model.load_state_dict(state, strict=True)
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(("name", "arm"), [(name, arm) for name in SMALL for arm in arms(name)])
def test_every_arm_takes_a_step_of_sgd(name: str, arm: str) -> None:
    torch.manual_seed(0)
    model, x, labels = build_model(name, arm=arm, **narrow(name)), images(name), torch.arange(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(x), labels)
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_arms_differ_and_the_default_is_the_one_named(name: str) -> None:
    x, logits = images(name), {}
    for arm in (*arms(name), None):
        torch.manual_seed(5)
        with torch.no_grad():
            logits[arm] = build_model(name, arm=arm, **narrow(name))(x)
    assert torch.equal(logits.pop(None), logits[default_arm(name)])
    if name == "paper-mnist":  # a null control there
        torch.testing.assert_close(logits.pop("rescaled"), logits["residual"], rtol=1e-3, atol=1e-3)
    values = list(logits.values())
    assert not any(torch.allclose(a, b) for i, a in enumerate(values) for b in values[:i])


def test_an_arm_object_is_as_good_as_a_name() -> None:
    x = torch.rand(3, 784)
    torch.manual_seed(0)
    own = build_model("residual-mlp", arm=Arm(NoShortcut))
    torch.manual_seed(0)
    assert torch.equal(own(x), build_model("residual-mlp", arm="chain")(x))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "paper-minst",
            {},
            r"unknown model: 'paper-minst' \(did you mean paper-mnist\?\); valid: paper-mnist, pre",
        ),
        (
            "paper-mnist",
            {"arm": "residul"},
            r"unknown arm of paper-mnist: 'residul' \(did you mean residual or residual-dirac\?\)",
        ),
        ("preact-resnet18", {"arm": "dirac"}, r"arm of preact-resnet18: 'dirac'; valid: original, modified, "),
        (
            "preact-resnet18",
            {"num_clases": 3},
            r"unknown option of preact-resnet18: 'num_clases' \(did you mean num_c",
        ),
        (
            "preact-resnet18",
            {"layers": 50},
            r"unknown option of preact-resnet18: 'layers'; valid: num_classes, stem, width$",
        ),
        (
            "preact-resnet18",
            {"stem": "cifar10"},
            r"unknown stem: 'cifar10' \(did you mean cifar\?\); valid: cifar, im",
        ),
        ("preact-resnet18", {"num_classes": "10"}, r"option num_classes: '10' is not a whole number"),
        ("preact-resnet18", {"width": 0}, r"option width: 0 is not a whole number of at least 1"),
        ("paper-mnist", {"width": 3}, r"unknown option of paper-mnist: 'width'; valid: none$"),
        ("no.such.module:factory", {}, r"there is no module 'no.such.module'"),
        (f"{__name__}:smal_factory", {}, r"'smal_factory' \(did you mean small_factory or bad_factory\?\)"),
        (f"{__name__}:SIZE", {}, r"is of type int and cannot be called; name a factory"),
        ("models/mynet.py", {}, r"names a file, but no factory in it; give models/mynet.py:factory"),
        (f"{__name__}:small_factory", {"depth": 3}, r"unexpected keyword argument 'depth'"),
        (f"{__name__}:bad_factory", {}, r"returned int, not an nn.Module"),
        (f"{__name__}:harmful", {"command": "x"}, r"returns str, not an nn.Module, and is not called"),
        ("pathlib:Path", {}, r"returns Path, not an nn.Module, and is not called"),
    ],
)
def test_errors_are_one_line_that_names_the_culprit(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelOptionError, match=message) as caught:
        build_model(name, **options)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_users_factory_is_as_good_as_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{__name__}:small_factory"
    assert isinstance(build_model(path)[1], nn.ReLU)
    model = build_model(path, arm="other", width=3)
    assert isinstance(model[1], nn.Tanh)
    assert model[0].in_features == 3
    assert arms(path) == ()
    monkeypatch.setattr(small_factory, "arms", ("plain", "other"), raising=False)
    assert arms(path) == ("plain", "other")


def test_python_m_models_lists_every_network_with_its_arms_and_size() -> None:
    run = subprocess.run([sys.executable, "-m", "models"], capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    for name in model_names():
        (row,) = re.findall(rf"^{name} +[\d,]+  (\S.*(?:\n  .*)*)", run.stdout, re.MULTILINE)
        assert [arm.strip().rstrip("*") for arm in row.split(",")] == list(arms(name))
    assert any(re.match(r"preact-resnet18 +11,171,146  original\*, modified, ", line) for line in lines)
    options = [line for line in lines if line.endswith("  num_classes=10, stem=cifar (cifar|imagenet), width=64")]
    assert [line.split()[0] for line in options] == [n for n in model_names() if n.startswith("preact-resnet")]
    assert not any(line != line.rstrip() for line in lines)
