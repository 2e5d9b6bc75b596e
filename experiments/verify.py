"""Test the claims of the paper: ``python -m experiments.verify [CLAIM…] --out DIR --size demo|mnist|reduced|cifar``.

Writes down what will be decided and how, trains what is needed, decides, and writes ``DIR/report.html``. Repeat the
command after an interruption: nothing that is over is trained again. ``--help`` lists the claims.
"""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import Experiment, clear_disk_errors
from skip_conditioning.experiments.claims.paper.registry import CLAIMS, chosen
from skip_conditioning.experiments.claims.run import experiments as running
from skip_conditioning.experiments.claims.run.preregistration import FILE, Registration, Request, register
from skip_conditioning.experiments.claims.run.report import write_report
from skip_conditioning.experiments.claims.run.untrained import judging_alone
from skip_conditioning.experiments.claims.verdict.claim import Claim, Evidence, Judgement, Size
from skip_conditioning.experiments.claims.verdict.presentation import Result, print_verdicts
from skip_conditioning.experiments.claims.verdict.repeated_looks import Repeatable
from skip_conditioning.experiments.config.command_line import parse_options, run_command
from skip_conditioning.experiments.processes.group import choose_device
from skip_conditioning.experiments.records.provenance import device_name, git_revision, versions


@dataclass(frozen=True)
class VerifyOptions:
    """Test the paper's claims: each is supported, contradicted, inconclusive or vacuous, by a rule fixed beforehand."""

    out: Path
    """Directory for the registration, the experiments, the tables and the report."""

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[CLAIM ...]")] = ()
    """Claims to test; by default all."""

    size: Size = "demo"
    """demo (digits, 2 min), mnist (real, half an hour), reduced (small CIFAR and ImageNet) or cifar (for a GPU)."""

    seeds: int | None = None
    """Seeds of every experiment that is trained; by default each claim's own number. Repeat with more to add some."""

    reuse: tuple[Path, ...] = ()
    """Finished experiments of experiments.train that are read instead of being trained again."""

    data_dir: Path | None = field(
        default_factory=lambda: Path(os.environ["SKIP_DATA_DIR"]) if os.environ.get("SKIP_DATA_DIR") else None
    )
    """Folder of the data sets, by default $SKIP_DATA_DIR; without it they are fetched."""

    device: str = "auto"
    """cpu, cuda, cuda:1 and so on; auto for a GPU if there is one."""

    processes: int | None = None
    """Processes that train runs at once on a CPU, each on one thread; by default one a core. On a GPU it is one."""


def verify(options: VerifyOptions) -> list[Result]:
    """Register, train, judge, and write the report.

    Raises:
        InputError: Whatever is wrong with the options, the registration, the data or the tables.
    """
    claims = chosen(options.names)
    if options.seeds is not None and options.seeds < 1:
        raise InputError(f"--seeds is {options.seeds}; it must be at least 1")
    if options.processes is not None and options.processes < 1:
        raise InputError(f"--processes is {options.processes}; it must be at least 1")
    place = running.Place(options.out, options.data_dir, options.device, options.processes)
    running.reusing(running.jobs(claims, options.size, options.seeds, place), options.reuse)  # refused before anything
    request = Request(claims, options.size, options.seeds, {f"{n}": str(d) for n, d in enumerate(options.reuse)})
    _check_seeds(claims, options.size, options.seeds, place, 1)
    with clear_disk_errors(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    registration = register(options.out, request)
    print(f"registered in {options.out / FILE}, SHA-256 {registration.sha256}")
    claims = [at_look(claim, registration.looks) for claim in claims]
    seeds = options.seeds if options.seeds is not None else registration.seeds
    _check_seeds(claims, options.size, seeds, place, registration.looks)
    jobs = running.reusing(running.jobs(claims, options.size, seeds, place), options.reuse)
    with judging_alone(claims, options.size, options.out, options.data_dir, options.processes) as judgements_alone:
        for number, job in enumerate(jobs, 1):
            used_by = " ".join(sorted({user[0] for user in job.users}))
            print(f"experiment {number} of {len(jobs)}: {job.name}, for {used_by}")
            running.run(job)
        judgements = judgements_alone()
    found = {user: tables for job in jobs for user, tables in running.read(job).items()}
    results = []
    try:
        for claim in tqdm(claims, desc="judging", unit="claim", dynamic_ncols=True, leave=False):
            results.append(_result(claim, options, registration, found, judgements.get(claim.id)))
    finally:
        write_report(options.out, results)  # of what was decided, should one of them fail
    print()
    print_verdicts(results)
    print(f"report: {options.out / 'report.html'}")
    return results


def at_look(claim: Claim, look: int) -> Claim:
    """The claim at a later look at its verdict, which spends less of the level."""
    return claim.at_look(look) if isinstance(claim, Repeatable) else claim


def _check_seeds(claims: Sequence[Claim], size: Size, seeds: int | None, place: running.Place, look: int) -> None:
    """Refuse so few seeds that nothing could come of them, before anything is trained."""
    for job in running.jobs(claims, size, seeds, place):
        for (claim_id, name), plan in job.users.items():
            claim = next(one for one in claims if one.id == claim_id)
            if not isinstance(claim, Repeatable):
                continue
            fewest = claim.at_look(look).fewest_seeds(name, size, len(job.config.optimisation.lr))
            if plan.seeds < fewest:
                raise InputError(
                    f"{plan.seeds} seeds are too few for {claim_id}: even if all agreed nothing could be decided; give "
                    f"--seeds {fewest} or more"
                )


def _result(
    claim: Claim,
    options: VerifyOptions,
    registration: Registration,
    found: dict[tuple[str, str], Experiment],
    judgement: Judgement | None,
) -> Result:
    directory = options.out / claim.id
    with clear_disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    if judgement is None:
        own = {name: found[claim.id, name] for name in claim.plans(options.size)}
        judgement = claim.judge(Evidence(own, directory, data_dir=options.data_dir), options.size)
    return Result(
        id=claim.id,
        statement=claim.statement,
        source=claim.source,
        predicted=claim.predicted,
        controls=(*claim.controls, *_reused(options)),
        registered=registration.content["claims"][claim.id]["registered"],
        hash=registration.sha256,
        judgement=judgement,
        figures=judgement.figures,
        command=_command(options),
        hardware=f"{device_name(choose_device(options.device))}, {platform.system()}",
        versions=versions(),
        commit=git_revision(),
        size=options.size,
    )


def _reused(options: VerifyOptions) -> list[str]:
    """What a reader must know of experiments that had been seen before their verdict was registered."""
    return [f"read from {directory}, an experiment run before this registration" for directory in options.reuse]


def _command(options: VerifyOptions) -> str:
    """What repeats the whole, so that all claims registered together are judged together."""
    words = ["python", "-m", "experiments.verify", *options.names, "--out", str(options.out), "--size", options.size]
    words += ["--seeds", str(options.seeds)] if options.seeds is not None else []
    words += ["--reuse", *map(str, options.reuse)] if options.reuse else []
    return shlex.join(words)


def _help() -> str:
    width = max(map(len, CLAIMS))
    return "\n".join(["claims:", *(f"  {name.ljust(width)}  {claim.statement}" for name, claim in CLAIMS.items())])


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 for bad input."""
    given = list(sys.argv[1:] if args is None else args)
    if {"-h", "--help"}.intersection(given):
        print(_help(), end="\n\n")

    def run(options: VerifyOptions) -> None:
        try:
            verify(options)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("to go on, repeat the command: runs that are over are kept") from None

    return run_command(run, lambda: parse_options(VerifyOptions, "python -m experiments.verify", given))


if __name__ == "__main__":
    sys.exit(main())
