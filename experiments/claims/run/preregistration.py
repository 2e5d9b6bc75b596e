"""What is written down before the first training step, and cannot be changed unnoticed afterwards.

``DIR/preregistration.json`` is a list of entries. The first holds all that decides the verdicts; each later one is an
amendment, which may only raise the number of trials. The SHA-256 of an entry covers its content and the hash before it,
so that it shows if an entry is edited, dropped or inserted by hand.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import clear_disk_errors, read_json, write_json
from skip_conditioning.diagnostics.tables.files import shortened
from skip_conditioning.experiments.claims.verdict.claim import Claim, Size
from skip_conditioning.experiments.claims.verdict.wording import some
from skip_conditioning.experiments.processes.machine import git_revision, versions
from skip_conditioning.experiments.records.directory import locked

FILE = "preregistration.json"
#: Fields of a registration in which an amendment may differ.
_AMENDABLE = ("written", "trials")


@dataclass(frozen=True)
class Entry:
    """One entry of a registration.

    Attributes:
        content: Plain JSON values: claims, size, trials, code.
        sha256: Of the content and the hash before it, in hexadecimal digits.
    """

    content: dict[str, Any]
    sha256: str


@dataclass(frozen=True)
class Registration:
    """What is registered in a directory.

    Attributes:
        entries: The registration, then its amendments.
    """

    entries: tuple[Entry, ...]

    @property
    def content(self) -> dict[str, Any]:
        """The content of the last entry, which is in force."""
        return self.entries[-1].content

    @property
    def sha256(self) -> str:
        """Hash of the last entry, which covers all entries."""
        return self.entries[-1].sha256

    @property
    def looks(self) -> int:
        """Number of looks at the verdicts, this one included: one for each entry."""
        return len(self.entries)

    @property
    def trials(self) -> int | None:
        """The number of trials registered; None for each plan's own."""
        trials = self.content["trials"]
        return None if trials is None else int(trials)


@dataclass(frozen=True)
class Request:
    """What is to be registered, or compared with the registration.

    Attributes:
        claims: In the order of the report.
        size: Of the experiments.
        trials: Their number of trials; None for the one registered, or else each plan's own.
        reused: Directories of finished experiments that are reused, by their number.
    """

    claims: Sequence[Claim]
    size: Size
    trials: int | None = None
    reused: Mapping[str, str] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """All that decides the verdicts, as plain JSON values."""
        content = {
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "size": self.size,
            "trials": self.trials,
            "git_revision": git_revision(),
            "versions": versions(),
            "reused": dict(self.reused),
            "claims": {
                claim.id: {
                    **{name: getattr(claim, name) for name in ("statement", "source", "predicted", "controls")},
                    "registered": claim.registered(self.size),
                }
                for claim in self.claims
            },
        }
        return dict(json.loads(json.dumps(content)))  # tuples to lists, as they are read back


def register(directory: Path, request: Request) -> Registration:
    """Write a registration, or check that the one written before is the same; more trials become an amendment.

    Args:
        directory: Where the verdicts go; made if missing.
        request: What is to be registered.

    Raises:
        InputError: The directory holds a registration that was edited by hand, cannot be read, differs, or has more
            trials; or it holds something else, or cannot be written.
    """
    with locked(directory):
        path = directory / FILE
        if not path.exists():
            others = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
            if others:
                raise InputError(
                    f"{directory} holds {others[0]} but no {FILE}, so it was not registered; choose another --out"
                )
            return _write(path, [], request.content())
        registration = read(directory)
        content = request.content()
        _check_same(directory, registration.content, content)
        if content["trials"] is None or content["trials"] == registration.trials:
            return registration
        planned = [plan.trials for claim in request.claims for plan in claim.plans(request.size).values()]
        smallest = registration.trials or max(planned, default=0)
        if content["trials"] < smallest:
            raise InputError(
                f"--trials {content['trials']} is fewer than the {smallest} registered in {path}: runs are not dropped "
                "afterwards; give more, leave --trials out, or choose another --out"
            )
        return _write(path, list(registration.entries), content)


def read(directory: Path) -> Registration:
    """The registration of a directory.

    Raises:
        InputError: There is none, it cannot be read, or it was changed after it was written.
    """
    path = directory / FILE
    try:
        entries = [Entry(dict(entry["content"]), str(entry["sha256"])) for entry in read_json(path)["entries"]]
    except (InputError, ValueError, TypeError, KeyError) as error:
        why = shortened(str(error).removeprefix(f"{path} "))
        raise InputError(f"{path} cannot be read ({why}); restore it, or choose another --out") from error
    if not entries:
        raise InputError(f"{path} has no entries; restore it, or choose another --out")
    before = ""
    for number, entry in enumerate(entries, 1):
        if entry.sha256 != _hash(entry.content, before):
            raise InputError(
                f"{path} was changed after it was written: the hash of entry {number} is not that of its content; "
                "restore it, or start anew with another --out"
            )
        before = entry.sha256
    return Registration(tuple(entries))


def _write(path: Path, before: list[Entry], content: dict[str, Any]) -> Registration:
    entries = [*before, Entry(content, _hash(content, before[-1].sha256 if before else ""))]
    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json({"entries": [{"content": entry.content, "sha256": entry.sha256} for entry in entries]}, path)
    return Registration(tuple(entries))


def _hash(content: Mapping[str, Any], before: str) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()


def _check_same(directory: Path, registered: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    claims, now = registered.get("claims", {}), content["claims"]
    if not isinstance(claims, Mapping):
        raise InputError(f"{directory / FILE} names no claims; restore it, or choose another --out")
    if set(claims) != set(now):
        raise InputError(
            f"{directory} is registered for {shortened(' '.join(claims))}, not for {' '.join(now)}; name the same "
            "claims "
            "(none may be added or left out once there are results), or choose another --out"
        )
    before, after = (
        {".".join(path): leaf for path, leaf in leaves(entry) if path[0] not in _AMENDABLE}
        for entry in (registered, content)
    )
    changed = [name for name in dict.fromkeys((*before, *after)) if before.get(name) != after.get(name)]
    if changed:
        ends = {name: [shortened(side.get(name, "none"), 20) for side in (before, after)] for name in changed}
        differences = [
            f"{name if len(name) < 50 else f'…{name[-48:]}'} {' → '.join(own)}" for name, own in ends.items()
        ]
        raise InputError(
            f"{directory / FILE} differs from what this command would register ({some(differences, 3)}); give the "
            "options and use the code registered there, or choose another --out"
        )


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Plain JSON values with their paths; a list of plain values is one of them."""
    if isinstance(value, Mapping) and (value or not path):
        for name, inner in value.items():
            yield from leaves(inner, (*path, str(name)))
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping | list | tuple) for inner in value):
        for number, inner in enumerate(value, 1):
            yield from leaves(inner, (*path, str(number)))
    else:
        yield path, value
