"""Columns and types of the tables, and which columns identify a row."""

import pyarrow as pa

_TEXT, _INT, _REAL, _FLAG, _LIST = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.list_(pa.float64())

#: Statistics of a spectrum, in the order in which tables and printed summaries show them.
STATISTICS = (
    "sigma_max",
    "sigma_min",
    "sigma_mean",
    "sigma_gmean",
    "sigma_median",
    "sigma_rms",
    "condition_number",
    "rank",
    "effective_rank",
    "stable_rank",
)

SPECTRA = pa.schema(
    [
        ("run_id", _TEXT),
        ("step", _INT),
        ("map", _TEXT),
        ("layer", _TEXT),
        ("batch_mode", _TEXT),
        ("sample", _INT),
        *((name, _REAL) for name in STATISTICS),
        ("resolved", _FLAG),
        ("trace", _REAL),
        ("rayleigh", _REAL),
        ("rows", _INT),
        ("cols", _INT),
        ("method", _TEXT),
        ("dtype", _TEXT),
        ("floor", _REAL),
        ("witness", _REAL),
        *((f"{name}_se", _REAL) for name in STATISTICS),
        ("seconds", _REAL),
        ("peak_bytes", _INT),
        ("note", _TEXT),
        ("values", _LIST),
        ("nodes", _LIST),
        ("weights", _LIST),
    ]
)

#: The Polyak–Łojasiewicz chain of the loss on the probe, and how far one step lowered the loss: ``grad_squared`` is
#: ``|∇ℓ|²``, ``pl_floor`` and ``pl_ceiling`` bound it, and ``pl_verdict`` is ``holds``, ``violated: <statements>`` or
#: ``vacuous: <statements and causes>`` (``theory.pl_inequality``); the decreases are those of ``loss.descent``.
BOUNDS = (
    "grad_squared",
    "cost_grad_squared",
    "pl_floor",
    "pl_floor_centred",
    "rayleigh",
    "pl_ceiling",
    "predicted_decrease",
    "observed_decrease",
    "pl_verdict",
)

METRICS = pa.schema(
    [
        ("run_id", _TEXT),
        ("step", _INT),
        ("epoch", _REAL),
        ("split", _TEXT),
        ("loss", _REAL),
        ("accuracy", _REAL),
        ("lr", _REAL),
        ("grad_norm", _REAL),
        ("seconds", _REAL),
        *((name, _REAL) for name in BOUNDS[:-1]),
        (BOUNDS[-1], _TEXT),
    ]
)

#: Scheduled measurements that were not made, and why.
SKIPPED = pa.schema(
    [
        ("run_id", _TEXT),
        ("step", _INT),
        ("map", _TEXT),
        ("layers", _TEXT),
        ("batch_mode", _TEXT),
        ("reason", _TEXT),
        ("estimated_seconds", _REAL),
    ]
)

#: How fast each run trained (``skip-conditioning speed``); it also has columns ``loss_at_step_…``.
SPEED = pa.schema(
    [
        ("run_id", _TEXT),
        ("loss_threshold", _REAL),
        ("steps_to_threshold", _INT),
        ("censored", pa.bool_()),
        ("diverged", pa.bool_()),
        ("auc_log_loss", _REAL),
        ("final_loss", _REAL),
        ("speed_rank", _REAL),
    ]
)

RUN_COLUMNS = (
    "run_id", "experiment", "dataset", "model", "arm", "trial", "seed", "lr",
    "status", "device", "versions", "git_revision",
)  # fmt: skip

#: Columns that identify a row within each table; of two rows with the same key the one written later counts.
KEYS = {
    "metrics": ("run_id", "step", "split"),
    "spectra": ("run_id", "step", "map", "layer", "batch_mode", "sample"),
    "skipped": ("run_id", "step", "map", "layers", "batch_mode"),
}
SCHEMAS = {"metrics": METRICS, "spectra": SPECTRA, "skipped": SKIPPED}
