"""The options of the experiments on the theory."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import tyro


@dataclass(frozen=True)
class TheoryOptions:
    """Check the theory's statements on networks that train, and report each as held, violated or vacuous."""

    out: Path
    """Folder for tables and figures."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """What to check: chain-rule, regularity, skips, random-matrices, pl, curvature, convergence; by default all."""

    quick: bool = False
    """Check small networks for a few steps: under a minute instead of under ten."""

    seed: int = 0
    """Seed of initialisations and of the choice of images."""

    data_dir: Path | None = field(
        default_factory=lambda: Path(os.environ["SKIP_DATA_DIR"]) if os.environ.get("SKIP_DATA_DIR") else None
    )
    """Folder of the data sets, by default $SKIP_DATA_DIR; without it only the bundled digits are used."""

    model: str | None = None
    """A network of yours to check instead: package.module:factory, or a name that `skip-conditioning models` lists."""

    model_options: tuple[str, ...] = ()
    """Options of that network, each name=value, such as depth=16."""

    dataset: str = "digits"
    """Images for that network: digits (28×28, one channel), mnist, cifar10, cifar100 or a name on the Hub."""

    layers: tuple[str, ...] | None = None
    """Modules behind which that network is cut into a chain of layers, names or globs; by default its blocks."""

    samples: int = 16
    """Number of images on which that network is trained and checked; costs grow with its square."""
