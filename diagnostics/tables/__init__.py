"""Tables on disk: small Parquet parts, readable at any moment, and an experiment read as pandas frames.

A run directory holds ``config.json``, ``status.json``, ``metrics/``, ``spectra/``, ``skipped/`` and ``checkpoints/``;
an experiment holds its runs under ``runs/``, or itself. A part is written under a temporary name (which
``pandas.read_parquet`` ignores, as it begins with a dot) and then renamed, so a reader never sees half of one. Rows
that no part holds yet are in a journal beside the parts, which ``read_experiment`` reads too.

This package does not import torch, so that figures can be drawn without it.
"""

from skip_conditioning.diagnostics.tables.experiment import Experiment as Experiment
from skip_conditioning.diagnostics.tables.experiment import empty_frame as empty_frame
from skip_conditioning.diagnostics.tables.experiment import read_experiment as read_experiment
from skip_conditioning.diagnostics.tables.experiment import run_directories as run_directories
from skip_conditioning.diagnostics.tables.experiment import spectra_frame as spectra_frame
from skip_conditioning.diagnostics.tables.files import clear_disk_errors as clear_disk_errors
from skip_conditioning.diagnostics.tables.files import read_json as read_json
from skip_conditioning.diagnostics.tables.files import write_json as write_json
from skip_conditioning.diagnostics.tables.files import write_parquet as write_parquet
from skip_conditioning.diagnostics.tables.files import write_table as write_table
from skip_conditioning.diagnostics.tables.schemas import BOUNDS as BOUNDS
from skip_conditioning.diagnostics.tables.schemas import KEYS as KEYS
from skip_conditioning.diagnostics.tables.schemas import METRICS as METRICS
from skip_conditioning.diagnostics.tables.schemas import RUN_COLUMNS as RUN_COLUMNS
from skip_conditioning.diagnostics.tables.schemas import SCHEMAS as SCHEMAS
from skip_conditioning.diagnostics.tables.schemas import SKIPPED as SKIPPED
from skip_conditioning.diagnostics.tables.schemas import SPECTRA as SPECTRA
from skip_conditioning.diagnostics.tables.schemas import STATISTICS as STATISTICS
from skip_conditioning.diagnostics.tables.writer import TableWriter as TableWriter
