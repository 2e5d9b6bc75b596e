"""What a control gets of an arm's gain, in worlds where it is known."""

import numpy as np
import pandas as pd
import pytest

from skip_conditioning.diagnostics.tables import Experiment, empty_frame
from skip_conditioning.experiments.claims.paper.cifar_claims import CONDITIONING_SPEEDS_CIFAR
from skip_conditioning.experiments.claims.verdict.claim import ClaimInputs
from skip_conditioning.experiments.claims.verdict.outcome import Verdict


def tables(shares, *, gain=0.3, noise=0.02, trials=14):
    """Losses that fall exponentially; an arm that has a share of the gain falls as much faster."""
    rng = np.random.default_rng(0)
    runs, losses = [], []
    for trial in range(trials):
        luck = 0.2 * rng.normal()
        for arm, share in {"original": 0.0, "modified": 1.0, "plain-pooled-1x1": 0.0, **shares}.items():
            run_id = f"{arm}-{trial}"
            rate = np.exp(gain * share + luck + noise * rng.normal()) / 60
            runs.append({"run_id": run_id, "arm": arm, "lr": 0.1, "trial": trial, "status": "finished"})
            losses.append(
                pd.DataFrame({"run_id": run_id, "step": range(300), "loss": 0.3 + 2 * np.exp(-rate * np.arange(300))})
            )
    metrics = pd.concat(losses).assign(split="train")
    return Experiment(pd.DataFrame(runs), metrics, empty_frame("spectra"), empty_frame("skipped"))


@pytest.mark.parametrize(
    ("shares", "verdicts"),
    [
        ({"pooled-1x1": 0.0, "rescaled": 0.1}, ["supported", "supported"]),
        ({"pooled-1x1": 1.0, "rescaled": 0.0}, ["reversed", "supported"]),
        ({"pooled-1x1": 0.5, "rescaled": 0.0}, ["undecided", "supported"]),
        ({"pooled-1x1": -0.5, "rescaled": 1.5}, ["supported", "reversed"]),
    ],
)
def test_the_share_that_a_control_gets_decides(shares, verdicts, tmp_path):
    judgement = CONDITIONING_SPEEDS_CIFAR.judge(ClaimInputs({"cifar10": tables(shares)}, tmp_path), "reduced")
    deciding = [finding for finding in judgement.findings if finding.decides]
    assert [finding.verdict.value for finding in deciding] == verdicts
    for finding, share in zip(deciding, shares.values(), strict=True):
        assert finding.numbers["share_of_the_gain"] == pytest.approx(share, abs=0.15)
    values = pd.read_parquet(tmp_path / "runs.parquet")
    assert set(values["measure"]) == {"steps"}
    assert values["trial"].min() == 2


def test_without_a_gain_there_is_nothing_to_share(tmp_path):
    equal = tables({"pooled-1x1": 0.0, "rescaled": 0.0}, gain=0.0)
    judgement = CONDITIONING_SPEEDS_CIFAR.judge(ClaimInputs({"cifar10": equal}, tmp_path), "reduced")
    assert judgement.verdict is Verdict.VACUOUS
    assert CONDITIONING_SPEEDS_CIFAR.judge(ClaimInputs({}, tmp_path), "mnist").verdict is Verdict.NOT_TESTED
