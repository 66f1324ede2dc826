"""What should a decode model be calibrated on: the past of a float, or of a quantised prefill?

Two objectives. Over the float model's past a quantised step should be the float step: what the
decode model makes wrong by itself. Over the quantised prefill's past, as it is deployed, it should
still predict well: its ranges then hold what that past has become. Calibrated on either, or on
both, the model is measured on both pasts, with the same prompts and the same budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wrappers.studies.plan.mask_fill import FAITHFUL, PAIRS, SEARCH, Pair
from wrappers.studies.plan.settings import SOURCES, check_settings
from wrappers.studies.plan.trials import Results, Settings, Trial

BASELINE = "float"


@dataclass(frozen=True)
class DecodeCalibration:
    """The study.

    Args:
        pairs: of dtypes, activations and weights.
        seeds: of the calibration sets, one for each.
        sizes: how many sequences a calibration set has.
        steps: tokens of each that are decoded. With both sources there are half as many of each,
            so that all observe as much.

    Raises:
        StudyError: settings that cannot be.
    """

    pairs: Sequence[Pair] = PAIRS
    seeds: Sequence[int] = (0, 1, 2)
    sizes: Sequence[int] = (4, 16)
    steps: int = 16

    name = "decode-calibration"
    # As it is deployed; then the two objectives: a step over a past made wholly by the quantised
    # prefill, and by the float model.
    measured = ("loss", "quantized_past_loss", "float_past_loss")

    def __post_init__(self) -> None:
        for pair in self.pairs:
            for size in self.sizes:
                for source in SOURCES:
                    check_settings(self.settings(pair, source, size, SEARCH))

    def settings(self, pair: Pair, source: str, size: int, variant: str) -> Settings:
        """Those of a trial."""
        return {
            "activation": pair[0], "weight": pair[1], "variant": variant, "source": source,
            "calibration": size, "steps": self.steps,
        }  # fmt: skip

    def trials(self, pair: Pair, source: str, size: int, variant: str) -> list[Trial]:
        """One for each seed."""
        settings = self.settings(pair, source, size, variant)
        return [Trial(settings, seed) for seed in self.seeds]

    def wanted(self, known: Results) -> list[Trial]:
        """All sources and sizes in the fast variant; then the largest size in the faithful one."""
        search = [
            trial
            for pair in self.pairs
            for size in self.sizes
            for source in SOURCES
            for trial in self.trials(pair, source, size, SEARCH)
        ]
        if known.missing(search):
            return search
        finalists = [
            trial
            for pair in self.pairs
            for source in SOURCES
            for trial in self.trials(pair, source, max(self.sizes), FAITHFUL)
        ]
        return search + finalists
