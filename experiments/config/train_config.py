"""The configuration of a training experiment: its options in groups."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import tyro

from skip_conditioning.diagnostics.errors import InputError, near_matches
from skip_conditioning.diagnostics.monitoring.monitor import Measurement
from skip_conditioning.diagnostics.monitoring.schedule import log_spaced, until
from skip_conditioning.experiments.config.options import (
    DataOptions,
    DiagnosticsOptions,
    NetworkOptions,
    OptimisationOptions,
    OutputOptions,
)
from skip_conditioning.models import arms, default_arm, has_arm


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One experiment: every arm, learning rate and trial of it is a run.

    Runs of one trial share their initialisation and data order, so that arms are compared in pairs.
    """

    data: tyro.conf.OmitArgPrefixes[DataOptions]
    network: tyro.conf.OmitArgPrefixes[NetworkOptions]
    optimisation: tyro.conf.OmitArgPrefixes[OptimisationOptions] = field(default_factory=OptimisationOptions)
    diagnostics: tyro.conf.OmitArgPrefixes[DiagnosticsOptions] = field(default_factory=DiagnosticsOptions)
    output: tyro.conf.OmitArgPrefixes[OutputOptions]

    def changed(self, **options: Any) -> "TrainConfig":
        """This configuration with other values of some options, each given by its own name, without its group.

        As on the command line, the length of runs in steps replaces that in epochs, and the other way round; and
        another model has none of the options of the model before, and its own arms and layers unless it has all arms
        that were to be compared.

        Args:
            options: Values by the options' names, such as ``lr=(0.1, 0.2), steps=10``; one value by itself, as in
                ``lr=0.1``, stands for a tuple of it.

        Raises:
            InputError: There is no such option; near matches are offered.
        """
        changed = _with_values(self, options)
        return _with_values(changed, _implied(changed, options))

    def check(self) -> None:
        """Raise ``InputError`` for options that are out of range or contradict each other."""
        options = option_values(self)
        if self.output.out is tyro.MISSING:
            raise InputError("give --out, the directory to make for the experiment")
        if (options["steps"] is None) == (options["epochs"] is None):
            raise InputError("give either --steps or --epochs; the length of a run is set by one of them")
        for names, allowed, demand in _DEMANDS:
            for name in names:
                for value in options[name] if name in _TUPLES else (options[name],):
                    if value is not None and not (isinstance(value, int | float) and allowed(value)):
                        raise InputError(f"{flag(name)} must be {demand}; it is {value!r}")
        for name in ("arms", "lr"):
            values = [str(value) for value in options[name]]
            if not values or len(set(values)) < len(values):
                named = " ".join(values) or "empty"
                raise InputError(f"{flag(name)} must name at least one value, and each only once; it is {named}")
        rates_by_arm(self)
        if self.data.data is not None:
            for name in ("limit_train", "limit_test", "normalise", "skip_corrupt"):
                if options[name]:
                    raise InputError(f"{flag(name)} is for images; with --data, do it in your function")
            if self.data.augment != "none" or self.data.dataset != self.data.data:
                other = "--augment" if self.data.augment != "none" else "--dataset"
                raise InputError(f"{other} is for the built-in data sets; leave it or --data out")
        if self.network.sync_batch_norm and self.network.batch_norm == "frozen":
            raise InputError("--sync-batch-norm has nothing to synchronise with --batch-norm frozen; give one of them")


def rates_by_arm(config: TrainConfig) -> dict[str, tuple[float, ...]]:
    """The learning rates at which each arm is trained: its own of ``--arm-lr``, or those of ``--lr``.

    Raises:
        InputError: An entry of ``--arm-lr`` is not ``arm=rate``, names an arm that is not compared, or is there twice.
    """
    arms = config.network.arms
    own: dict[str, list[float]] = {}
    for entry in config.optimisation.arm_lr:
        arm, _, text = entry.rpartition("=")
        if arm not in arms:
            raise InputError(f"--arm-lr {entry!r} names none of the arms {' '.join(arms)}; give arm=rate")
        try:
            rate = float(text)
        except ValueError:
            rate = math.nan
        if not 0 < rate < math.inf or rate in own.setdefault(arm, []):
            raise InputError(f"--arm-lr {entry!r} must end in a positive number, each once for an arm")
        own[arm].append(rate)
    return {arm: tuple(own.get(arm, config.optimisation.lr)) for arm in arms}


#: The arm of a user's factory that declares none.
ONLY_ARM = "default"

_KINDS: dict[str, type] = {
    "data": DataOptions,
    "network": NetworkOptions,
    "optimisation": OptimisationOptions,
    "diagnostics": DiagnosticsOptions,
    "output": OutputOptions,
}

#: The group that each option is in.
_GROUP = {option.name: group for group, kind in _KINDS.items() for option in dataclasses.fields(kind)}

#: Options that have several values.
_TUPLES = frozenset(
    option.name for kind in _KINDS.values() for option in dataclasses.fields(kind) if "tuple[" in str(option.type)
)

#: More than anybody trains: what is larger is a slip, and a list of so many runs would fill the memory.
_MOST, _MOST_RUNS = 10**12, 10**5

_COUNTS = (
    *("trials", "steps", "epochs", "batch_size", "subset", "limit_train", "limit_test", "probe_size", "processes"),
    *("decay_epochs", "evaluate_epochs", "loss_window", "checkpoints", "keep_epochs"),
)

#: Numeric options, the values they may have, and these in words; None is for an option's type to allow.
_DEMANDS: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (_COUNTS, lambda value: value >= 1, "at least 1"),
    (_COUNTS, lambda value: value <= _MOST, f"at most {_MOST:,}"),
    (("trials", "processes"), lambda value: value <= _MOST_RUNS, f"at most {_MOST_RUNS:,}"),
    (("lr", "decay_factor", "max_overhead"), lambda value: 0 < value < math.inf, "a positive number"),
    (
        ("momentum", "weight_decay", "seed", "workers", "measure_until"),
        lambda value: 0 <= value < math.inf,
        "a number from 0",
    ),
    (("loss_threshold",), math.isfinite, "a finite number"),
)


def make_config(**options: Any) -> TrainConfig:
    """A configuration from options by their own names; others have their defaults.

    Raises:
        InputError: There is no such option; near matches are offered.
    """
    values = _by_group(options)
    return TrainConfig(**{group: kind(**values[group]) for group, kind in _KINDS.items()})


def option_values(config: TrainConfig) -> dict[str, Any]:
    """The value of every option, by its own name."""
    return {option: getattr(getattr(config, group), option) for option, group in _GROUP.items()}


def flag(option: str) -> str:
    """An option as it is given on the command line, such as ``--batch-size``."""
    return f"--{option.replace('_', '-')}"


def with_given(config: TrainConfig, args: Sequence[str]) -> TrainConfig:
    """A preset's options with those that the command line gives, which may set others aside as in ``changed``."""
    flags = (word.partition("=")[0] for word in args if word.startswith("--"))
    return _with_values(config, _implied(config, {name.removeprefix("--").replace("-", "_") for name in flags}))


def _implied(config: TrainConfig, given: Collection[str]) -> dict[str, Any]:
    """Options that are set aside because others are given: their values, by their own names.

    Args:
        config: With the values given.
        given: Names of the options that are given.

    Raises:
        ModelOptionError: There is no such model.
    """
    implied: dict[str, Any] = {}
    if "steps" in given:
        implied["epochs"] = None
    if "epochs" in given:
        implied["steps"] = None
    if "model" in given:
        implied |= {"model_options": (), **_own_arms_and_layers(config.network)}
    if "data" in given and config.data.data is not None:
        # A preset's options of its own images; those that are given stay, to be refused.
        implied |= {"dataset": config.data.data, "subset": None, "normalise": False, "augment": "none"}
    return {option: value for option, value in implied.items() if option not in given}


def _own_arms_and_layers(network: NetworkOptions) -> dict[str, Any]:
    """The arms of a network, and its own layers, where a preset's are those of another network."""
    own = arms(network.model)
    if ":" not in network.model and all(has_arm(network.model, arm) for arm in network.arms):
        return {}
    chosen = (default_arm(network.model),) if ":" not in network.model else own or (ONLY_ARM,)
    return {"arms": chosen, "layers": ()}


def _with_values(config: TrainConfig, options: Mapping[str, Any]) -> TrainConfig:
    changes = {group: values for group, values in _by_group(options).items() if values}
    return replace(config, **{group: replace(getattr(config, group), **values) for group, values in changes.items()})


def _as_tuple(value: Any) -> Any:
    """Several values as a tuple, also where one is given by itself, as in ``lr=0.1``; None stays None."""
    return value if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)


def _by_group(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    grouped: dict[str, dict[str, Any]] = {group: {} for group in _KINDS}
    for option, value in options.items():
        if option not in _GROUP:
            raise InputError(f"there is no option {option!r} of an experiment.{near_matches(option, _GROUP)}")
        grouped[_GROUP[option]][option] = _as_tuple(value) if option in _TUPLES else value
    return grouped


def measurements(config: TrainConfig) -> tuple[Measurement, ...]:
    """The measurements of each run; none without diagnostics."""
    options = config.diagnostics
    chosen = options.measurements if options.diagnostics else ()
    if options.layers:
        chosen = tuple(replace(measurement, layers=options.layers) for measurement in chosen)
    elif options.layers is not None:  # of any network there is the kernel of all layers together
        chosen = tuple(
            measurement if measurement.layers == ("total",) else replace(measurement, layers=None)
            for measurement in chosen
        )
    last = options.measure_until
    if last is not None:
        chosen = tuple(
            replace(measurement, schedule=until(last, measurement.schedule or log_spaced())) for measurement in chosen
        )
    return chosen


def spectra_dtype(config: TrainConfig) -> torch.dtype | None:
    """Precision of the Jacobians by the option ``--spectra-dtype``; None for the model's own."""
    return torch.float64 if config.diagnostics.spectra_dtype == "float64" else None
