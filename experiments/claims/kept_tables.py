"""Tables that a claim makes once and reads again, each with its SHA-256 beside it, so that an edit by hand shows."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from diagnostics.errors import InputError
from diagnostics.tables import clear_disk_errors
from experiments.theory.setting import write_table


def kept_table(path: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table of a Parquet file, which is made if there is none.

    ``sha256sum --check`` reads the file with the hash.

    Args:
        path: The file; its hash is in ``path.sha256``.
        make: Makes the table; called only if the file is missing.

    Raises:
        InputError: The file is not the one that was written, or its hash is missing, or either cannot be written.
    """
    digest = path.with_name(f"{path.name}.sha256")
    if not path.exists():
        # The hash comes first: whenever an interruption falls, a table that is there has one.
        temporary = path.with_name(f".{path.name}.new")
        write_table(make(), temporary)
        with clear_disk_errors(path):
            digest.write_text(f"{_sha256(temporary)}  {path.name}\n")
            temporary.replace(path)
    elif not digest.exists():
        raise InputError(f"{path} has no {digest.name} beside it, so that an edit would not show; {_way_out(path)}")
    elif digest.read_text().split()[:1] != [_sha256(path)]:
        raise InputError(f"{path} was changed after it was written: {digest.name} names another hash; {_way_out(path)}")
    return pd.read_parquet(path)


def _way_out(path: Path) -> str:
    return f"remove {path.name} and repeat the command, which then measures anew"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
