"""Skips and random matrices: the bound ``σ_min(I + A) ≥ 1 − ‖A‖``, and what holds where it says nothing.

The entries of A are uniform on ±1/√n, so that ‖A‖ → 2/√3 > 1 and the bound is vacuous; yet σ(I + A) keeps away from 0,
at the lower edge of its limit law, 1/√12, where σ(A) reaches 0.
"""

import math

import numpy as np
from scipy.stats import ks_1samp

from skip_conditioning.diagnostics.linalg.limit_laws import SingularValueLaw
from skip_conditioning.diagnostics.theory.statement import Relation, Statement
from skip_conditioning.experiments.theory.experiment import CheckedStatement, TheoryOptions

_SCALE = 1 / math.sqrt(3)

#: Norms that matrices are rescaled to for the bound to say something.
_NORMS = (0.25, 0.5, 0.9)

#: Matrices of each size whose distance from the limit law is measured.
_DRAWS = 4


def check_random_matrices(options: TheoryOptions) -> list[CheckedStatement]:
    """The bound and the limit laws for a matrix of 500×500 (quick: 200×200), and the bound where ``‖A‖ < 1``.

    The matrix is that of ``figures.random_matrices`` with the same size and seed.
    """
    size = 200 if options.quick else 500
    random = np.random.default_rng(options.seed)
    matrix = uniform_matrix(size, random)
    name = f"A {size}×{size}"
    checks = [CheckedStatement(name, statement) for statement in (_bound(matrix), _edge(matrix, 1), _edge(matrix, 0))]
    for norm in _NORMS:
        other = uniform_matrix(size, random)
        rescaled = norm / np.linalg.norm(other, 2) * other
        checks.append(CheckedStatement(f"{name}, rescaled to ‖A‖ = {norm}", _bound(rescaled)))
        reflected = -norm * _reflection(size, random)
        checks.append(CheckedStatement(f"A {size}×{size} = −{norm}·reflection", _bound(reflected, "=")))
    return checks + _distances([size // 4, size // 2, size], random)


def uniform_matrix(size: int, random: np.random.Generator) -> np.ndarray:
    """A square matrix of entries uniform on ±1/√size."""
    bound = 1 / np.sqrt(size)
    return random.uniform(-bound, bound, (size, size))


def _reflection(size: int, random: np.random.Generator) -> np.ndarray:
    """A Householder reflection: symmetric, with eigenvalue −1 once and 1 otherwise."""
    normal = random.standard_normal(size)
    return np.eye(size) - 2 * np.outer(normal, normal) / (normal @ normal)


def _bound(matrix: np.ndarray, relation: Relation = ">=") -> Statement:
    """``σ_min(I + A) ≥ 1 − ‖A‖``; an equality where ``−‖A‖`` is an eigenvalue of a symmetric A."""
    norm = float(np.linalg.norm(matrix, 2))
    return Statement(
        name="skip bound" if relation == ">=" else "skip bound attained",
        formula=f"σ_min(I + A) {'≥' if relation == '>=' else '='} 1 − ‖A‖",
        left=float(_shifted_values(matrix, 1)[0]),
        relation=relation,
        right=1 - norm,
        error=len(matrix) * float(np.finfo(float).eps) * (1 + norm),
        cause=f"‖A‖ = {norm:.4g} ≥ 1, so that the right side is not positive" if norm >= 1 else "",
    )


def _edge(matrix: np.ndarray, shift: int) -> Statement:
    """The smallest singular value against the lower edge of the limit law.

    The deviation allowed is twice the way from the edge to the law's 1/n quantile, in which it expects one value:

    - At ``shift > scale`` that quantile lies 2.81 Tracy–Widom units ``(π a n)^(−2/3)`` inwards, where the density is
      ``a·√(σ − edge)``, and real matrices deviate by 1.21 ± 1.27 units (β = 1).
    - At shift 0 it is ``π s/(2n)``, and ``P(n σ_min/s > t) → exp(−t²/2 − t)`` (Edelman 1988; for any distribution of
      the entries Tao & Vu 2010, *Random matrices: the distribution of the smallest singular values*): 3·10⁻⁴.
    """
    size, law = len(matrix), SingularValueLaw(shift, _SCALE)
    edge = law.edges[0]
    allowed = 2 * (law.quantile(1 / size) - edge)
    order, source = ("n^(-2/3)", "Tracy–Widom") if edge else ("1/n", "Edelman; Tao & Vu 2010")
    formula = "σ_min(I + A) → lower edge of the limit law" if shift else "σ_min(A) → 0"
    return Statement(
        name="smallest singular value",
        formula=formula,
        left=float(_shifted_values(matrix, shift)[0]),
        relation="=",
        right=edge,
        error=allowed,
        note=f"a limit: at n = {size} fluctuations of order {order} ({source}); the error is not rounding but twice "
        "the way from the edge to the 1/n quantile of the law",
    )


def _distances(sizes: list[int], random: np.random.Generator) -> list[CheckedStatement]:
    """Kolmogorov distance from the limit law at several sizes, with the exponent fitted to all of them."""
    checks = []
    for shift in (0, 1):
        law = SingularValueLaw(shift, _SCALE)
        distances = np.array([[_distance(size, shift, law, random) for _ in range(_DRAWS)] for size in sizes])
        exponent = np.polyfit(np.log(sizes), np.log(distances.mean(axis=1)), 1)[0]
        checks += [
            CheckedStatement(f"A {size}×{size}", _rigidity(float(of_size.max()), size, shift, float(exponent)))
            for size, of_size in zip(sizes, distances, strict=True)
        ]
    return checks


def _distance(size: int, shift: int, law: SingularValueLaw, random: np.random.Generator) -> float:
    """Kolmogorov distance ``sup |F_n − F|`` of the singular values of another matrix from their limit law."""
    return ks_1samp(_shifted_values(uniform_matrix(size, random), shift), law.cdf).statistic


def _rigidity(distance: float, size: int, shift: int, exponent: float) -> Statement:
    """The law is reached as fast as singular values are rigid.

    That is like 1/n up to powers of log n (Bourgade, Yau & Yin 2014, *Local circular law for random matrices*, for the
    singular values of ``A − z``). The constant 1 is empirical, a third above the largest of 544 samples with n between
    125 and 500; for the Gaussian unitary ensemble it is 1/π (Claeys, Fahs, Lambert & Webb 2021).
    """
    return Statement(
        name="distance from the limit law",
        formula=f"sup |F_n − F| of σ({'I + A' if shift else 'A'}) ≤ log n / n",
        left=distance,
        relation="<=",
        right=math.log(size) / size,
        error=size * float(np.finfo(float).eps),
        note=f"largest of {_DRAWS} matrices; the mean goes like n^{exponent:.2f} over a factor 4 in n. The rate is "
        "that of rigidity, the constant 1 is empirical",
    )


def _shifted_values(matrix: np.ndarray, shift: int) -> np.ndarray:
    """Singular values of ``shift·I + A``, ascending."""
    return np.linalg.svd(shift * np.eye(len(matrix)) + matrix, compute_uv=False)[::-1]
