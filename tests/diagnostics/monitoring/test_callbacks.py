"""Trainers with a callback: what is logged, and a training that is bit for bit the one without it."""

import copy
import random
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from skip_conditioning import SpectrumMonitor, read_experiment
from skip_conditioning.callbacks import HuggingFaceCallback, LightningCallback
from skip_conditioning.diagnostics.errors import InputError

pytestmark = pytest.mark.filterwarnings(r"ignore:::(pytorch_)?lightning")

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 0, 1, 1, 0] * 4)
PROBE = (X[:6], Y[:6])
ALWAYS = {"max_overhead": None, "schedule": 1, "maps": "tail"}


def small_network() -> nn.Module:
    """With dropout and batch norm: random streams and buffers that a measurement could change."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))


def seed() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)


def state_after(model, *optimizers):
    """What training leaves behind: weights, buffers, gradients, optimisers, random streams, flags."""
    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
            "optimisers": [optimizer.state_dict() for optimizer in optimizers],
            "streams": [torch.get_rng_state(), random.getstate(), np.random.get_state()],
            "flags": [module.training for module in model.modules()],
        }
    )


def assert_same(first, second):
    """Bit for bit, in whatever containers."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert list(first) == list(second)
        first, second = list(first.values()), list(second.values())
    if isinstance(first, list | tuple):
        assert len(first) == len(second)
        for pair in zip(first, second, strict=True):
            assert_same(*pair)
    elif isinstance(first, torch.Tensor | np.ndarray):
        np.testing.assert_array_equal(first, second)
    else:
        assert first == second


def steps_of(out, split="train"):
    tables = read_experiment(out)
    metrics = tables.metrics[tables.metrics.split == split].sort_values("step")
    return sorted(set(tables.spectra.step)), metrics


# Lightning


def lightning_module(package):
    class Classifier(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = small_network()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            x, y = batch
            return nn.functional.cross_entropy(self(x), y)

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Classifier()


def lightning_trainer(package, folder, callbacks=(), **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    options = {"max_steps": 4, "accumulate_grad_batches": 2, **quiet, **options}
    return package.Trainer(default_root_dir=folder, callbacks=[*callbacks], **options)


def lightning_data():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=6, shuffle=True)


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def lightning(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip(request.param)
        yield package


def test_lightning_trains_alike_and_logs_optimiser_steps(lightning, tmp_path):
    states, written = [], []
    for name in ("without", "with"):
        callbacks = [LightningCallback(PROBE, tmp_path / "run", **ALWAYS)] if name == "with" else []
        seed()
        model = lightning_module(lightning)
        trainer = lightning_trainer(lightning, tmp_path / name, callbacks, precision="bf16-mixed")
        trainer.fit(model, lightning_data())
        states.append(state_after(model, *trainer.optimizers))
        (checkpoint,) = (tmp_path / name).rglob("*.ckpt")
        written.append(torch.load(checkpoint, weights_only=False))
    assert_same(*states)
    assert written[0]["callbacks"].keys() == {key.replace("/with/", "/without/") for key in written[1]["callbacks"]}
    assert not any("LightningCallback" in key for key in written[1]["callbacks"])
    steps, metrics = steps_of(tmp_path / "run")
    assert steps == [0, 1, 2, 3, 4]
    assert list(metrics.step) == [0, 1, 2, 3]
    assert list(metrics.lr) == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    assert list(metrics.epoch) == [0, 0, 1, 1]
    assert metrics.loss.between(0.2, 2).all()


def test_lightning_logs_the_loss_of_the_accumulated_batches(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    model = lightning_module(lightning)
    model.net = small_network().eval()
    expected = nn.functional.cross_entropy(model(X[:12]), Y[:12]).item()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=6)
    callback = LightningCallback(PROBE, tmp_path / "run", **ALWAYS)
    lightning_trainer(lightning, tmp_path, [callback], max_steps=1).fit(model, data)
    (loss,) = steps_of(tmp_path / "run")[1].loss
    assert loss == pytest.approx(expected, rel=1e-6)


def test_lightning_resumes_from_its_checkpoint_and_goes_on_in_a_second_fit(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    out = tmp_path / "run"
    callback = LightningCallback(PROBE, out, **ALWAYS)
    trainer = lightning_trainer(lightning, tmp_path, [callback], max_epochs=1, max_steps=-1)
    trainer.fit(lightning_module(lightning), lightning_data())
    checkpoint = tmp_path / "at-2.ckpt"
    trainer.save_checkpoint(checkpoint)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trainer.lightning_module, lightning_data())
    assert steps_of(out)[0] == [0, 1, 2, 3, 4, 5, 6]
    again = lightning_trainer(lightning, tmp_path, [LightningCallback(PROBE, out, **ALWAYS)], max_steps=4)
    again.fit(lightning_module(lightning), lightning_data(), ckpt_path=checkpoint)
    steps, metrics = steps_of(out)
    assert steps == [0, 1, 2, 3, 4]
    assert list(metrics.step) == [0, 1, 2, 3]


def test_lightning_that_is_interrupted_leaves_the_folder_to_the_next(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Interrupted(lightning.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 2:
                raise RuntimeError("the network is down")

    callback = LightningCallback(PROBE, tmp_path / "run", **ALWAYS)
    with pytest.raises(RuntimeError, match="down"):
        lightning_trainer(lightning, tmp_path, [callback, Interrupted()]).fit(
            lightning_module(lightning), lightning_data()
        )
    assert steps_of(tmp_path / "run")[0] == [0, 1, 2]
    with pytest.raises(InputError, match="holds a run up to step 2 already; give resume=True"):
        lightning_trainer(lightning, tmp_path, [callback]).fit(lightning_module(lightning), lightning_data())
    anew = LightningCallback(PROBE, tmp_path / "run", **ALWAYS, overwrite=True)
    lightning_trainer(lightning, tmp_path, [anew], max_steps=1).fit(lightning_module(lightning), lightning_data())
    assert steps_of(tmp_path / "run")[0] == [0, 1]


def test_lightning_refuses_before_the_first_step(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    callback = LightningCallback(PROBE, tmp_path / "run", **ALWAYS)
    other = LightningCallback(PROBE, tmp_path / "other", **ALWAYS, log_to="trainer")
    wide = LightningCallback((torch.randn(6, 5), Y[:6]), tmp_path / "wide", **ALWAYS)
    for callbacks, reason in (
        ([callback, callback], "the trainer has 2 LightningCallbacks for .*run; give it one"),
        ([other], "log_to='trainer', but the trainer has no logger"),
        ([wide], "shape"),
    ):
        model = lightning_module(lightning)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(InputError, match=reason) as error:
            lightning_trainer(lightning, tmp_path, callbacks).fit(model, lightning_data())
        assert "\n" not in str(error.value)
        assert_same(before, model.state_dict())
    assert not list(tmp_path.rglob("*.parquet"))


def test_lightnings_loggers_get_the_scalars(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    callback = LightningCallback(PROBE, tmp_path / "run", **ALWAYS, log_to="trainer")
    trainer = lightning_trainer(lightning, tmp_path, [callback], max_steps=1, logger=logger)
    trainer.fit(lightning_module(lightning), lightning_data())
    logged = pd.read_csv(Path(logger.log_dir, "metrics.csv"))
    measured = read_experiment(tmp_path / "run").spectra.query("layer == 'net.0'")
    assert list(logged.step) == list(measured.step) == [0, 1]
    assert list(logged["conditioning/tail/net.0/condition_number"]) == list(measured.condition_number)


# Hugging Face


def bert():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, **sizes)
    return transformers.BertForSequenceClassification(config).eval()  # as pretrained ones come


IDS = torch.randint(20, (16, 5), generator=torch.Generator().manual_seed(0))
TEXTS = [{"input_ids": ids, "labels": int(ids[0]) % 2} for ids in IDS]
BATCH = {"input_ids": IDS[:4], "attention_mask": torch.ones_like(IDS[:4]), "labels": IDS[:4, 0] % 2}


def hf_trainer(folder, callbacks=(), **options):
    transformers = pytest.importorskip("transformers")
    each = {"logging_steps": 1, "save_steps": 2, "max_steps": 4, "gradient_accumulation_steps": 2}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
    options = {"per_device_train_batch_size": 2, "learning_rate": 0.01, "bf16": True, **each, **quiet, **options}
    arguments = transformers.TrainingArguments(str(folder), **options)
    return transformers.Trainer(bert(), arguments, train_dataset=TEXTS, callbacks=[*callbacks])


def test_hugging_face_trains_alike_resumes_and_logs_optimiser_steps(tmp_path):
    states, out = {}, tmp_path / "run"
    for name in ("without", "with"):
        callbacks = [HuggingFaceCallback(BATCH, out, **ALWAYS)] if name == "with" else []
        seed()
        trainer = hf_trainer(tmp_path / name, callbacks)
        trainer.train()
        states[name] = state_after(trainer.model, trainer.optimizer)
    assert_same(states["without"], states["with"])
    first, metrics = steps_of(out)
    assert first == [0, 1, 2, 3, 4]
    assert list(metrics.step) == [0, 1, 2, 3]
    history = [row for row in trainer.state.log_history if "loss" in row]
    assert list(metrics.loss) == [row["loss"] for row in history]
    assert list(metrics.lr) == [row["learning_rate"] for row in history]
    tables = read_experiment(out)
    assert set(tables.spectra.dtype) == {"float32"}  # not bfloat16's accuracy: autocast is off
    saved = [{path.name for path in (tmp_path / name / "checkpoint-2").iterdir()} for name in states]
    assert saved[0] == saved[1]
    assert "Callback" not in (tmp_path / "with" / "checkpoint-2" / "trainer_state.json").read_text()

    with pytest.raises(InputError, match="holds a run up to step 4 already"):
        trainer.train()
    resumed = hf_trainer(tmp_path / "with", [HuggingFaceCallback(BATCH, out, **ALWAYS)], max_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "with" / "checkpoint-2"))
    steps, metrics = steps_of(out)
    assert steps == [0, 1, 2, 3]
    assert list(metrics.step) == [0, 1, 2]


def test_hugging_face_refuses_before_the_first_step(tmp_path):
    callback = HuggingFaceCallback(BATCH, tmp_path / "run", **ALWAYS)
    twin = HuggingFaceCallback(BATCH, tmp_path / "run", **ALWAYS)
    wrong = HuggingFaceCallback({"ids": IDS}, tmp_path / "wrong", **ALWAYS)
    logs = HuggingFaceCallback(BATCH, tmp_path / "logs", **ALWAYS, log_to="trainer")
    for callbacks, reason in (
        ([callback, callback], "is given to the trainer twice"),
        ([wrong], "ids"),
        ([logs], "it is 'trainer'"),
        (
            [HuggingFaceCallback(BATCH, tmp_path / "new", **ALWAYS), callback, twin],
            "written by another monitor|holds a",
        ),
    ):
        trainer = hf_trainer(tmp_path, callbacks)
        before = copy.deepcopy(trainer.model.state_dict())
        with pytest.raises(InputError, match=reason) as error:
            trainer.train()
        assert "\n" not in str(error.value)
        assert_same(before, trainer.model.state_dict())


def test_hugging_face_begins_again_with_smaller_batches(tmp_path):
    from transformers import TrainerCallback

    class OutOfMemory(TrainerCallback):
        def on_step_begin(self, args, state, control, **parts):
            if state.global_step == 1 and state.train_batch_size == 2:
                raise RuntimeError("CUDA out of memory.")

    callbacks = [HuggingFaceCallback(BATCH, tmp_path / "run", **ALWAYS), OutOfMemory()]
    trainer = hf_trainer(tmp_path, callbacks, auto_find_batch_size=True, max_steps=2)
    trainer.train()
    assert trainer.state.train_batch_size == 1
    assert not read_experiment(tmp_path / "run").spectra.duplicated(["step", "layer"]).any()
    assert steps_of(tmp_path / "run")[0] == [0, 1, 2]


# Loops of one's own


def test_accelerate_trains_alike_with_the_plain_monitor(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    states = {}
    for name in ("without", "prepared", "unwrapped"):
        accelerate.state.AcceleratorState._reset_state(True)
        accelerator = accelerate.Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2, cpu=True)
        seed()
        model = small_network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        model, optimizer, data, schedule = accelerator.prepare(model, optimizer, lightning_data(), schedule)
        forward, monitor = model.forward, None
        if name != "without":
            watched = accelerator.unwrap_model(model) if name == "unwrapped" else model
            monitor = SpectrumMonitor(watched, PROBE, tmp_path / name, **ALWAYS)
        step = 0
        for _ in range(2):
            for x, y in data:
                with accelerator.accumulate(model):
                    loss = nn.functional.cross_entropy(model(x), y)
                    if monitor is not None and accelerator.sync_gradients:
                        monitor.step(step, loss=loss, lr=schedule.get_last_lr()[0])
                    accelerator.backward(loss)
                    optimizer.step(), schedule.step(), optimizer.zero_grad()
                    step += accelerator.sync_gradients
        assert model.forward == forward
        if monitor is not None:
            monitor.close()
        states[name] = state_after(model, optimizer.optimizer)
    for name in ("prepared", "unwrapped"):
        assert_same(states["without"], states[name])
        steps, metrics = steps_of(tmp_path / name)
        assert steps == list(metrics.step) == [0, 1, 2, 3]
        assert list(metrics.lr) == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    (wrapped,) = read_experiment(tmp_path / "prepared").spectra.query("step == 0 and layer == '0'").sigma_max
    with SpectrumMonitor(small_network(), PROBE, tmp_path / "plain", **ALWAYS) as monitor:
        assert monitor.step(0)["0"].sigma_max == wrapped


def test_a_loop_with_lbfgs_trains_alike(tmp_path):
    states = []
    for monitored in (False, True):
        seed()
        model = small_network()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
        monitor = SpectrumMonitor(model, PROBE, tmp_path / "run", **ALWAYS) if monitored else None

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(X), Y)
            loss.backward()
            return loss

        for step in range(3):
            if monitor is not None:
                monitor.step(step)
            loss = optimizer.step(closure)
            if monitor is not None:
                monitor.log(step, split="train", loss=loss)
        states.append(state_after(model, optimizer))
    assert_same(*states)
    monitor.close()
    steps, metrics = steps_of(tmp_path / "run")
    assert steps == list(metrics.step) == [0, 1, 2]


def test_a_gan_with_two_optimisers_trains_alike(tmp_path):
    states = []
    for monitored in (False, True):
        seed()
        generator = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        critic = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        optimizers = [torch.optim.Adam(net.parameters(), lr=0.01) for net in (generator, critic)]
        noise = torch.randn(6, 4)
        monitors = [
            SpectrumMonitor(net, probe, tmp_path / name, **ALWAYS)
            for net, probe, name in ((generator, noise, "generator"), (critic, X[:6], "critic"))
            if monitored
        ]
        for step in range(3):
            fake = generator(torch.randn(24, 4))
            for index, loss in enumerate((-critic(fake).mean(), critic(fake.detach()).mean() - critic(X).mean())):
                if monitored:
                    monitors[index].step(step, loss=loss)
                optimizers[index].zero_grad()
                loss.backward(inputs=list((generator, critic)[index].parameters()))
            for optimizer in optimizers:
                optimizer.step()
        states.append([state_after(net, *optimizers) for net in (generator, critic)])
        for monitor in monitors:
            monitor.close()
    assert_same(*states)
    for name in ("generator", "critic"):
        steps, metrics = steps_of(tmp_path / name)
        assert steps == list(metrics.step) == [0, 1, 2]
