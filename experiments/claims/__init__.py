"""The paper's claims, each with its prediction and decision rule fixed beforehand; and what your own is written with.

The rooms: statistics (arrays in, numbers out), verdict (from tables to a verdict), mechanism (does conditioning explain
speed?), paper (the claims) and run (registration, training, report).
"""

from skip_conditioning.experiments.claims.verdict.claim import DecisionRule as DecisionRule
from skip_conditioning.experiments.claims.verdict.claim import Plan as Plan
from skip_conditioning.experiments.claims.verdict.outcome import Comparison as Comparison
from skip_conditioning.experiments.claims.verdict.outcome import Direction as Direction
from skip_conditioning.experiments.claims.verdict.outcome import Verdict as Verdict
from skip_conditioning.experiments.claims.verdict.paired_claim import PairedClaim as PairedClaim
from skip_conditioning.experiments.claims.verdict.step_thresholds import Thresholds as Thresholds
from skip_conditioning.experiments.config.presets import preset as preset
