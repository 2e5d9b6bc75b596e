"""Claims about the theory, decided by the statements that ``experiments.theory`` checks on training networks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pandas as pd

from skip_conditioning.diagnostics.tables import write_table
from skip_conditioning.diagnostics.theory.statement import Statement
from skip_conditioning.experiments.claims.verdict.claim import ClaimInputs, Plan, Size
from skip_conditioning.experiments.claims.verdict.outcome import Finding, Judgement, Reason, Verdict, combine
from skip_conditioning.experiments.claims.verdict.wording import number
from skip_conditioning.experiments.processes.machine import one_thread
from skip_conditioning.experiments.theory.along_training import check_pl_chain, check_regularity
from skip_conditioning.experiments.theory.convergence import check_convergence, kind_of
from skip_conditioning.experiments.theory.curvature_growth import (
    ACTIVATIONS,
    HIDDEN,
    LAST,
    NORMALISERS,
    check_curvature,
    statement_name,
)
from skip_conditioning.experiments.theory.curvature_growth import kind_of as normaliser_kind
from skip_conditioning.experiments.theory.experiment import (
    FIGURES,
    CheckedStatement,
    TheoryExperiment,
    TheoryOptions,
    statement_rows,
)
from skip_conditioning.experiments.theory.networks import SMOOTH
from skip_conditioning.figures.drawing.saving import save_drawable

#: A statement is vacuous on networks of a kind if more than this share of its checks is. One that may come out either
#: way is reversed if at least this share of its other checks fails.
_SHARE: Final = 0.5
_STATEMENTS: Final = "statements.parquet"


@dataclass
class TheoryClaim:
    """A claim decided by statements of the theory, each checked on several networks and steps.

    Attributes:
        id: Its name on the command line.
        statement: What is claimed.
        source: Where it is claimed.
        predicted: What is expected if it is true.
        controls: What is varied.
        check: Checks the statements; an experiment of ``experiments.theory``.
        kinds: Of the networks that the claim is about, all if empty; findings on others are secondary.
        statements: Names of the statements that the claim consists of, all if empty; findings on others, such as steps
            of proofs, are secondary.
        quantity: What the left sides of the statements are, whose range the answer tells; empty if they differ in kind.
        figure: The experiment of ``experiments.theory`` whose figure is shown; empty without one.
    """

    id: str
    statement: str
    source: str
    predicted: str
    controls: tuple[str, ...]
    check: TheoryExperiment
    kinds: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    quantity: str = ""
    figure: str = ""

    def plans(self, size: Size) -> dict[str, Plan]:
        """No experiments: the check itself trains its networks."""
        return {}

    def registered(self, size: Size) -> dict[str, Any]:
        """The check, the networks and statements that count, and the rule."""
        return {
            "check": f"{self.check.__module__}.{self.check.__name__}",
            "quick": size == "demo",
            "seed": 0,
            "networks that count": self.kinds or "all",
            "statements that count": self.statements or "all",
            "rule": {
                "a theorem": "reversed where any check is violated",
                "a statement that may come out either way": f"reversed where at least {_SHARE:g} of the checks that "
                "are not vacuous fail, supported where all hold, undecided otherwise",
                "either of them": f"vacuous where more than {_SHARE:g} of the checks are vacuous and none fails",
            },
            "combined": "reversed where a statement that counts is on networks of any kind, supported where all are; "
            "vacuous or not tested where all are; undecided otherwise",
        }

    def judge(self, inputs: ClaimInputs, size: Size) -> Judgement:
        """The verdict from the statements, which are checked now; their table is written into the claim's folder.

        Raises:
            InputError: The table cannot be written.
        """
        table = self._checked(inputs, size)
        write_table(table, inputs.directory / _STATEMENTS)
        counts = pd.Series(True, index=table.index)
        for column, wanted in (("kind", self.kinds), ("statement", self.statements)):
            if wanted:
                counts &= table[column].isin(wanted)
        findings = [*_findings(table[counts]), *self._missing(table[counts])]
        others = [replace(finding, decides=False) for finding in _findings(table[~counts])]
        verdict = combine([finding.verdict for finding in findings])
        makers = {}
        if self.figure:
            name, make = FIGURES[self.figure]
            makers[name] = lambda: make(inputs.directory)
        figures = save_drawable(inputs.directory, makers)
        return Judgement(
            verdict, (*findings, *others), _answer(findings, self.quantity), _change(verdict, size), figures
        )

    def _missing(self, table: pd.DataFrame) -> Iterator[Finding]:
        """The statements that were checked on no network that counts."""
        for name in self.statements:
            if name not in set(table["statement"]):
                yield Finding(name, Verdict.NOT_TESTED, dict.fromkeys(("holds", "violated", "vacuous"), 0))

    def _checked(self, inputs: ClaimInputs, size: Size) -> pd.DataFrame:
        """A row for each check of a statement; at size demo on the bundled digits only."""
        options = TheoryOptions(
            out=inputs.directory,
            quick=size == "demo",
            seed=inputs.seed,
            data_dir=None if size == "demo" else inputs.data_dir,
        )
        with one_thread():
            rows = statement_rows({self.id: list(self.check(options))})
        return pd.DataFrame(rows).astype({"step": "Int64"})


def decide_statement(holds: int, violated: int, vacuous: int, *, is_claim: bool) -> Verdict:
    """The verdict on one statement.

    Args:
        holds: Number of checks in which it holds.
        violated: Number of checks in which it is violated.
        vacuous: Number of checks in which it is vacuous.
        is_claim: Whether it may come out either way; otherwise it is a theorem.
    """
    decided = holds + violated
    if violated and (not is_claim or violated >= _SHARE * decided):
        return Verdict.REVERSED
    if violated:
        return Verdict.UNDECIDED
    return Verdict.VACUOUS if vacuous > _SHARE * (decided + vacuous) or not decided else Verdict.SUPPORTED


def _findings(table: pd.DataFrame) -> Iterator[Finding]:
    """One finding for each statement and kind of network."""
    for (name, kind), rows in table.groupby(["statement", "kind"], sort=False):
        counts = {verdict: int((rows["verdict"] == verdict).sum()) for verdict in ("holds", "violated", "vacuous")}
        decided = counts["holds"] + counts["violated"]
        share = counts["holds"] / decided if decided else float("nan")
        is_claim = bool(rows["is_claim"].all())
        verdict = decide_statement(**counts, is_claim=is_claim)
        causes = [cause for cause in rows["cause"] if cause]
        failed = rows[rows["verdict"] == "violated"]
        note = rows["formula"].iloc[0]
        note += f"; vacuous: {causes[0]}" if causes else ""
        if len(failed):
            note += f"; fails: {number(failed['left'].iloc[0])} against {number(failed['right'].iloc[0])}"
        telling = rows.loc[rows["verdict"] != "vacuous", "left"]
        numbers = {"share_holding": share, "checks": len(rows), **counts, "median_tightness": _tightness(rows)}
        yield Finding(
            what=f"{name}: {kind}" if kind else str(name),
            verdict=verdict,
            numbers=numbers | {"smallest_left": telling.min(), "largest_left": telling.max()},
            reason=Reason.VIOLATED if verdict is Verdict.REVERSED and not is_claim else None,
            note=note,
        )


def _tightness(rows: pd.DataFrame) -> float:
    """Median of the smaller side over the larger, of inequalities that hold between positive numbers; 1 is equality."""
    positive = rows[(rows["verdict"] == "holds") & (rows["left"] > 0) & (rows["right"] > 0)]
    sides = positive[["left", "right"]]
    return float((sides.min(axis=1) / sides.max(axis=1)).median()) if len(positive) else float("nan")


def _answer(findings: Sequence[Finding], quantity: str) -> str:
    total = {name: int(sum(each.numbers[name] for each in findings)) for name in ("holds", "violated", "vacuous")}
    checked = sum(total.values())
    text = f"It holds in {total['holds']} of {checked} checks"
    text += f", and {total['vacuous']} say nothing" if total["vacuous"] else ""
    failing = [finding.what for finding in findings if finding.numbers["violated"]]
    text += f"; it fails in {total['violated']}: {'; '.join(failing[:3])}" if failing else ""
    ranges = [
        f"{number(finding.numbers['smallest_left'])} to {number(finding.numbers['largest_left'])} ({finding.what})"
        for finding in findings
        if finding.numbers["holds"] + finding.numbers["violated"]
    ]
    return f"{text}. {quantity}: {'; '.join(ranges)}." if quantity and ranges else f"{text}."


def _change(verdict: Verdict, size: Size) -> str:
    if verdict is Verdict.REVERSED:
        return (
            "Only an error in the check: a counterexample remains one. skip-conditioning theory prints all its digits."
        )
    more = "--size mnist checks larger networks for longer" if size == "demo" else "Other networks, or longer training"
    return f"{more}; a single failing check of a theorem would reverse it."


_LOSS_TENDS: Final = "loss tends to 0"


def _convergence(options: TheoryOptions) -> Iterator[CheckedStatement]:
    """The statements of ``experiments.theory.convergence``, and that the loss still falls as a power at the end."""
    yield from check_convergence(options)
    fits = pd.read_parquet(options.out / "convergence_fits.parquet")
    for fit in fits[fits["cost"] == "cross-entropy"].to_dict("records"):
        network = f"{fit['dataset']}, cross-entropy, {fit['arm']}, γ = {fit['gain']:.3g}"
        statement = Statement(
            name=_LOSS_TENDS,
            formula="p − 2 standard errors ≥ 0 where ℓ ~ t^−p over the last decade of steps",
            left=fit["exponent"] - 2 * fit["exponent_se"],
            relation=">=",
            right=0.0,
            error=0.0,
            note=f"p = {fit['exponent']:.3g}, last loss {fit['loss']:.3g}",
            is_claim=True,
        )
        kind = kind_of("cross-entropy", str(fit["arm"]))
        yield CheckedStatement(network, statement, int(fit["last_step"]), str(fit["initialisation"]), kind)


REGULARITY_BOUND = TheoryClaim(
    id="regularity-bound",
    statement="λ(DF) is at least the sum over layers of the products of their λ (inequality 2).",
    source="MacDonald et al. 2023, theorem on regularity; docs/paper.md §2",
    predicted="holds at every step, and is not vacuous, on smooth, width-preserving, weight-normalised networks",
    controls=("with and without skips", "batch norm, weight norm and none", "restricted to the data's subspaces"),
    check=check_regularity,
    kinds=(SMOOTH,),
    figure="regularity",
)

PL_ALONG_TRAINING = TheoryClaim(
    id="pl-along-training",
    statement="λ(DF)|∇c|² ≤ |∇ℓ|² ≤ ‖DF‖²|∇c|² along the trajectory (inequality 3).",
    source="MacDonald et al. 2023, the Polyak–Łojasiewicz inequality; docs/paper.md §2",
    predicted="holds at every step, and is not vacuous",
    controls=("with and without skips", "batch norm, weight norm and none"),
    check=check_pl_chain,
    statements=("PŁ floor", "PŁ floor, centred", "PŁ ceiling"),
    figure="pl",
)

_NORMALISED = tuple(
    normaliser_kind(normaliser, activation)
    for normaliser in NORMALISERS
    for activation in ACTIVATIONS
    if normaliser is not None
)

NORMALISATION_BOUNDS_CURVATURE = TheoryClaim(
    id="normalisation-bounds-curvature",
    statement="The curvature of the loss is bounded while the weights that batch or weight norm acts on grow, and "
    "grows without bound with neither.",
    source="MacDonald et al. 2023, section 4; docs/paper.md §2.5",
    predicted="exponent p of ‖∇²ℓ‖ ~ |w|^p in the hidden weights at most 0 with a normaliser, above 0 without",
    controls=(
        "the hidden weights alone are scaled; the last layer, and all parameters, beside it",
        "also with the length of scale-invariant weights divided out",
        "cross-entropy and mean square; tanh and (full size) ReLU",
    ),
    check=check_curvature,
    statements=(statement_name(HIDDEN, bounded=True), statement_name(HIDDEN, bounded=False)),
    quantity="Exponents p",
    figure="curvature",
)

#: Its figure is the right column of that of ``NORMALISATION_BOUNDS_CURVATURE``.
LAST_LAYER_UNBOUNDS_CURVATURE = TheoryClaim(
    id="last-layer-unbounds-curvature",
    statement="The last layer, which no normaliser acts on, leaves the curvature unbounded also with batch or weight "
    "norm.",
    source="MacDonald et al. 2023, section 5, whose class leaves the last layer free; docs/paper.md §2.7",
    predicted="exponent p of ‖∇²ℓ‖ ~ |w|^p in the last layer above 0 with a normaliser",
    controls=NORMALISATION_BOUNDS_CURVATURE.controls,
    check=check_curvature,
    kinds=_NORMALISED,
    statements=(statement_name(LAST, bounded=False),),
    quantity="Exponents p",
)

CONVERGES_AT_INFINITY = TheoryClaim(
    id="converges-at-infinity",
    statement="From any initialisation gradient descent takes cross-entropy to 0 on the normalised residual class, "
    "with |θ| → ∞ and λ(DF) bounded below.",
    source="MacDonald et al. 2023, theorem on convergence; docs/paper.md §2.7",
    predicted="the loss still falls as a power of the steps at the end, |θ − θ₀| is largest at the end, λ along the "
    "path stays above 0, and every step lowers the loss by what is guaranteed",
    controls=("six initialisations, bad ones among them", "chain and unnormalised arms", "mean square cost"),
    check=_convergence,
    kinds=(kind_of("cross-entropy", "residual"),),
    statements=(
        *(_LOSS_TENDS, "optimum at infinity", "regularity along the path"),
        *("decrease per step", "cumulative guarantee"),
    ),
    figure="convergence",
)
