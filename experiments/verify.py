"""Test the claims of the paper: ``skip-conditioning verify [CLAIM…] --out DIR --size demo|mnist|reduced|cifar``.

Writes down what is decided and how, trains the experiments needed, judges, and writes ``DIR/report.html``. Repeat the
command after an interruption: runs that are over are kept. ``--help`` lists the claims.
"""

import platform
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from skip_conditioning.diagnostics.errors import InputError
from skip_conditioning.diagnostics.tables import clear_disk_errors
from skip_conditioning.experiments.claims.paper.registry import CLAIMS, chosen_claims
from skip_conditioning.experiments.claims.run.experiments import (
    SharedExperiment,
    claim_inputs,
    shared_experiments,
    train,
    with_reused,
)
from skip_conditioning.experiments.claims.run.preregistration import FILE, Registration, Request, register
from skip_conditioning.experiments.claims.run.report import write_report
from skip_conditioning.experiments.claims.run.untrained_claims import untrained_judgements
from skip_conditioning.experiments.claims.run.verdict_table import ClaimResult, counts
from skip_conditioning.experiments.claims.verdict.claim import Claim, Size, TrainedClaim
from skip_conditioning.experiments.claims.verdict.outcome import Judgement
from skip_conditioning.experiments.claims.verdict.paired_claim import PairedClaim
from skip_conditioning.experiments.claims.verdict.plan_check import plan_lines
from skip_conditioning.experiments.claims.verdict.wording import SYMBOLS, in_words, parts_in_words, printable
from skip_conditioning.experiments.config.command_line import parse_options, run_command
from skip_conditioning.experiments.config.options import default_data_dir
from skip_conditioning.experiments.data.sources import check_present
from skip_conditioning.experiments.processes.machine import choose_device, device_name, git_revision, versions


@dataclass(frozen=True)
class VerifyOptions:
    """Test the paper's claims: each gets a verdict by a rule that is fixed before anything is trained."""

    out: Path
    """Directory for the registration, the experiments, the tables and the report."""

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[CLAIM ...]")] = ()
    """Claims to test, by default all; your own as package.module:NAME or file.py:NAME."""

    size: Size = "demo"
    """demo (digits, 2 min), mnist (real, half an hour), reduced (small CIFAR and ImageNet) or cifar (for a GPU)."""

    trials: int | None = None
    """Trials of every experiment; by default each claim's own number. Repeat with a larger number to add trials."""

    plan: bool = False
    """Check the claims and print what would be trained and compared; nothing is written."""

    reuse: tuple[Path, ...] = ()
    """Directories of finished experiments (of the train command), read instead of training them again."""

    data_dir: Path | None = field(default_factory=default_data_dir)
    """Folder of the data sets, by default $SKIP_DATA_DIR; without it they are fetched."""

    device: str = "auto"
    """cpu, cuda, cuda:1 and so on; auto for a GPU if there is one."""

    processes: int | None = None
    """Processes that train at once on a CPU, each with one thread; by default one a core. On a GPU there is one."""


#: More are a slip.
_MOST_TRIALS = 10**5


def verify(options: VerifyOptions) -> list[ClaimResult]:
    """Register, train, judge, and write the report.

    Raises:
        InputError: The options, the registration, the data or the tables are wrong.
    """
    claims = chosen_claims(options.names)
    choose_device(options.device)  # refused now, and not when the first run begins
    if options.trials is not None and not 1 <= options.trials <= _MOST_TRIALS:
        demand = f"at most {_MOST_TRIALS:,}" if options.trials > 0 else "at least 1"
        raise InputError(f"--trials is {options.trials}; it must be {demand}")
    if options.processes is not None and options.processes < 1:
        raise InputError(f"--processes is {options.processes}; it must be at least 1")
    for claim in claims:
        if isinstance(claim, PairedClaim):
            claim.check(options.size)
    planned = _experiments(
        claims, options, options.trials, look=1
    )  # what is wrong is refused before anything is written
    if options.plan:
        print_plan(claims, planned, options.size)
        return []
    with clear_disk_errors(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    reused = {f"{number}": str(directory) for number, directory in enumerate(options.reuse)}
    registration = register(options.out, Request(claims, options.size, options.trials, reused))
    print(f"registered in {options.out / FILE}, SHA-256 {registration.sha256}")
    trials = options.trials if options.trials is not None else registration.trials
    experiments = _experiments(claims, options, trials, registration.looks)
    claims = [at_look(claim, registration.looks) for claim in claims]
    with untrained_judgements(claims, options.size, options.out, options.data_dir, options.processes) as wait:
        for number, experiment in enumerate(experiments, 1):
            used_by = " ".join(sorted({claim_id for claim_id, _ in experiment.plans}))
            print(f"experiment {number} of {len(experiments)}: {experiment.name}, for {used_by}")
            train(experiment, options.processes)
        judgements = wait()
    results: list[ClaimResult] = []
    try:
        for claim in tqdm(claims, desc="judging", unit="claim", dynamic_ncols=True, leave=False):
            judgement = judgements.get(claim.id) or _judge(claim, options, experiments)
            results.append(_result(claim, options, registration, judgement))
    finally:
        write_report(options.out, results)  # of the claims judged, if one of them fails
    return results


def print_plan(claims: Sequence[Claim], experiments: Sequence[SharedExperiment], size: Size) -> None:
    """Print what would be trained, and what each claim would compare."""
    for experiment in experiments:
        plan = next(iter(experiment.plans.values()))
        print("\n".join(plan_lines(experiment.name, replace(plan, config=experiment.config))))
        print(f"  for {' '.join(sorted({claim_id for claim_id, _ in experiment.plans}))}")
    for claim in claims:
        print(f"{claim.id}: {claim.predicted}")
        if isinstance(claim, PairedClaim) and claim.plans(size):
            print("\n".join(f"  {in_words(comparison)}" for comparison in claim.comparisons))
        elif not claim.plans(size):
            print("  trains nothing at this size")


def at_look(claim: Claim, look: int) -> Claim:
    """The claim at a later look at its verdict, which spends less of the level."""
    return claim.at_look(look) if isinstance(claim, TrainedClaim) else claim


def print_verdicts(results: Sequence[ClaimResult]) -> None:
    """Print a line per claim with its verdict, and what was seen below."""
    width = max((len(result.id) for result in results), default=0)
    columns = shutil.get_terminal_size((120, 24)).columns
    for result in results:
        line = f"{result.id.ljust(width)}  {SYMBOLS[result.judgement.verdict]} {parts_in_words(result.judgement)}"
        print(" ".join(printable(line).splitlines()))
        for paragraph in printable(result.judgement.answer).splitlines():
            print(textwrap.indent(textwrap.fill(paragraph, max(columns - width - 2, 40)), " " * (width + 2)))
    print(counts(results))


def _experiments(
    claims: Sequence[Claim], options: VerifyOptions, trials: int | None, look: int
) -> list[SharedExperiment]:
    """The experiments of the claims; so few trials that nothing could be decided are refused."""
    data_dir = {} if options.data_dir is None else {"data_dir": options.data_dir}
    planned = shared_experiments(claims, options.size, trials, options.out, device=options.device, **data_dir)
    experiments = with_reused(planned, options.reuse)
    by_id = {claim.id: claim for claim in claims}
    if options.data_dir is not None and options.data_dir != default_data_dir() and not options.data_dir.is_dir():
        raise InputError(f"--data-dir {options.data_dir} does not exist or is no folder; give one, or leave it out")
    for experiment in experiments:
        check_present(experiment.config.data.dataset, experiment.config.data.data_dir)
        for (claim_id, name), plan in experiment.plans.items():
            claim = by_id[claim_id]
            if not isinstance(claim, TrainedClaim):
                continue
            fewest = claim.at_look(look).fewest_trials(name, options.size, len(experiment.config.optimisation.lr))
            if plan.trials < fewest:
                raise InputError(
                    f"{plan.trials} trials are too few for {claim_id}: even if all agreed nothing could be decided; "
                    f"give --trials {fewest} or more"
                )
    return experiments


def _judge(claim: Claim, options: VerifyOptions, experiments: Sequence[SharedExperiment]) -> Judgement:
    directory = options.out / claim.id
    with clear_disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    return claim.judge(claim_inputs(claim, experiments, directory, options.size, options.data_dir), options.size)


def _result(claim: Claim, options: VerifyOptions, registration: Registration, judgement: Judgement) -> ClaimResult:
    return ClaimResult(
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
    """What the report says of experiments that could be seen before their claims were registered."""
    return [f"read from {directory}, an experiment trained before this registration" for directory in options.reuse]


def _command(options: VerifyOptions) -> str:
    """The command that repeats this one for all claims registered together."""
    words = ["skip-conditioning", "verify", *options.names, "--out", str(options.out), "--size", options.size]
    words += ["--trials", str(options.trials)] if options.trials is not None else []
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
            results = verify(options)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("to go on, repeat the command: runs that are over are kept") from None
        if options.plan:
            return
        print()
        print_verdicts(results)
        print(f"report: {options.out / 'report.html'}")

    return run_command(run, lambda: parse_options(VerifyOptions, "skip-conditioning verify", given))


if __name__ == "__main__":
    sys.exit(main())
