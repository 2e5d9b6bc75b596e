"""Code of the user's own, by name: ``package.module:NAME`` or ``path/to/file.py:NAME``."""

import importlib
import importlib.util
import sys
import traceback
from importlib.machinery import PathFinder
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from skip_conditioning.models.errors import near_matches

#: Of what a user's code raises a message quotes the beginning.
_QUOTED = 200


def load_attribute(name: str) -> Any:
    """Import a module of the user's and get one of its names.

    The current folder comes first on the import path: ``models.mynet:factory`` is in ``./models/mynet.py``, with or
    without an ``__init__.py`` beside it. A file below the current folder is imported under its dotted name, a file
    elsewhere under its own name with its folder first on the path, so that each finds the modules it imports.

    Args:
        name: ``package.module:NAME``, or a relative or absolute path, ``path/to/file.py:NAME``.

    Raises:
        ImportError: The module cannot be imported, or has no such name; the message is one line and says why, and
            offers the near matches.
    """
    module_name, _, attribute = name.rpartition(":")
    module = _load_file(Path(module_name)) if module_name.endswith(".py") else _load_module(module_name)
    if not hasattr(module, attribute):
        own = _own_names(module)
        hint = near_matches(attribute, own)
        raise ImportError(f"{module_name} has no {attribute!r}{hint}; it defines {', '.join(own) or 'nothing'}")
    return getattr(module, attribute)


def _load_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise ImportError(f"there is no file {file}")
    folder, path = Path.cwd(), file.resolve()
    path = path.parent if path.name == "__init__.py" else path.with_suffix("")
    parts = path.relative_to(folder).parts if path.is_relative_to(folder) else ()
    if not parts or any("." in part for part in parts):
        parts = (path.name,)
    if "." in parts[-1]:
        raise ImportError(f"a module's name has no dot in it; rename {file}")
    return _import(".".join(parts), path.parents[len(parts) - 1])


def _load_module(name: str) -> ModuleType:
    if not all(name.split(".")):
        raise ImportError(f"{name!r} is not the name of a module")
    return _import(name, Path.cwd())


def _import(name: str, folder: Path) -> ModuleType:
    """A module by its dotted name, looked for in a folder before anywhere else."""
    if str(folder) != sys.path[0]:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    if _lies_in(folder, name):
        _claim_package(name.partition(".")[0], folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise ImportError(f"there is no module {name!r}, neither in {folder} nor installed") from error
        raise _failed(name, error) from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise _failed(name, error) from error


def _lies_in(folder: Path, name: str) -> bool:
    path = folder.joinpath(*name.split("."))
    return path.is_dir() or path.with_name(f"{path.name}.py").is_file()


def _claim_package(name: str, folder: Path) -> None:
    """Make a top-level name mean the one in a folder.

    Python prefers any package with an ``__init__.py`` on its path to a folder without one.
    """
    own = PathFinder.find_spec(name, [str(folder)])
    if own is None:
        return
    if name in sys.modules:
        present = getattr(sys.modules[name], "__spec__", None)
        if present is not None and present.origin != own.origin:
            raise ImportError(f"the name {name!r} is taken by {present.origin}; rename yours, in {folder}")
    elif own.loader is None:
        sys.modules[name] = importlib.util.module_from_spec(own)


def _failed(name: str, error: BaseException) -> ImportError:
    return ImportError(f"importing {name!r} {raised(error)}")


def raised(error: BaseException) -> str:
    """What a user's code raised and where, in a line to be read after the code's name."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    location = "" if isinstance(error, SyntaxError) else f" ({where.filename}, line {where.lineno})"
    line = " ".join(str(error).split())
    reason = f": {line[:_QUOTED]}{'…' if len(line) > _QUOTED else ''}" if line else ""
    return f"raised {type(error).__name__}{reason}{location}"


def _own_names(module: ModuleType) -> list[str]:
    """Public names that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and not (isinstance(value, type | FunctionType) and value.__module__ != module.__name__)
    ]
