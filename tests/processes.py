"""Programs in several processes, forked from one that has imported what takes long."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Forks a process for each of the programs' arguments; each runs the program as its main module.
FORK = """
import importlib, json, os, sys

program, imports, processes = json.loads(sys.argv[1])
for module in imports:
    importlib.import_module(module)
children = []
for arguments, variables, *outputs in processes:
    children.append(os.fork())
    if not children[-1]:
        for stream, path in enumerate(outputs, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        sys.argv[1:] = arguments
        os.environ.update(variables)
        exec(compile(program, "program", "exec"), globals())
        sys.exit()
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""


def run_forked(
    program: str,
    arguments: Sequence[Sequence[str]],
    folder: Path,
    *,
    imports: Sequence[str] = ("torch",),
    variables: Sequence[Mapping[str, str]] | None = None,
    directory: Path = ROOT,
    timeout: float = 300,
) -> list[tuple[int | str, str, str]]:
    """Run a program in one process for each list of arguments.

    Args:
        program: Source code.
        arguments: Those of each process.
        folder: Where the processes' outputs are kept.
        imports: Modules that are imported once for all.
        variables: Environment variables of each process, beside this one's.
        directory: The working directory.
        timeout: Seconds for all.

    Returns:
        Exit code, or that there is none in time; standard output and standard error of each.
    """
    variables = variables or [{}] * len(arguments)
    outputs = [[str(folder / f"{name}-{rank}.txt") for name in ("out", "err")] for rank in range(len(arguments))]
    processes = [[*parts, *paths] for *parts, paths in zip(arguments, variables, outputs, strict=True)]
    plan = json.dumps([program, imports, processes])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(directory)])}
    command = [sys.executable, "-c", FORK, plan]
    with subprocess.Popen(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        try:
            codes = json.loads(parent.communicate(timeout=timeout)[0])
        except subprocess.TimeoutExpired:
            codes = ["it was not over in time"] * len(arguments)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)
    texts = [[Path(path).read_text(errors="replace") for path in paths] for paths in outputs]
    return [(code, *said) for code, said in zip(codes, texts, strict=True)]
