"""Which fill value of attention masks is best for a quantised model?

Coarse values first, in the fast variant; with `refine`, values between the best and its neighbours,
twice; then the finalists again in the variant that an accelerator runs. One choice for each pair of
dtypes, since a coarse activation type has to share its few codes between logits and fill value.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from wrappers.core.config import PTQConfig
from wrappers.studies.plan.settings import check_settings
from wrappers.studies.plan.trials import Results, Settings, Trial

PAIRS = (("uint8", "uint8"), ("int16", "uint8"), ("int16", "uint4"))
SEARCH, FAITHFUL = "prefill_reference", "prefill"
DEFAULT_FILL = PTQConfig().attention_mask_fill_value
FILLS = (-40.0, -60.0, -80.0, -100.0, DEFAULT_FILL, -160.0, -240.0)
_ROUNDS = 2  # of refinement
_FINALISTS = 2  # besides the default

Pair = tuple[str, str]
"""The dtypes of activations and of weights."""


@dataclass(frozen=True)
class MaskFill:
    """The study.

    Args:
        fills: the values of the coarse search; the default of `PTQConfig` is always among them.
        pairs: of dtypes, activations and weights.
        seeds: of the calibration sets, one for each.
        calibration: sequences of a calibration set.
        refine: whether to look between the best value and its neighbours.

    Raises:
        StudyError: settings that cannot be.
    """

    fills: Sequence[float] = FILLS
    pairs: Sequence[Pair] = PAIRS
    seeds: Sequence[int] = (0, 1, 2)
    calibration: int = 8
    refine: bool = False

    name = "mask-fill"
    # What the choice is made by; the less, the better.
    measured = "loss"

    def __post_init__(self) -> None:
        fills = sorted({*map(float, self.fills), DEFAULT_FILL}, reverse=True)
        object.__setattr__(self, "fills", tuple(fills))
        for pair in self.pairs:
            for fill in self.fills:
                check_settings(self.settings(pair, fill, SEARCH))

    def settings(self, pair: Pair, fill: float, variant: str) -> Settings:
        """Those of a trial."""
        return {
            "activation": pair[0], "weight": pair[1], "variant": variant,
            "attention_mask_fill_value": fill, "calibration": self.calibration,
        }  # fmt: skip

    def trials(self, pair: Pair, fill: float, variant: str) -> list[Trial]:
        """One for each seed."""
        settings = self.settings(pair, fill, variant)
        return [Trial(settings, seed) for seed in self.seeds]

    def wanted(self, known: Results) -> list[Trial]:
        """The search, then what lies between, then the finalists."""
        trials = []
        for pair in self.pairs:
            fills = self.searched(pair, known)
            trials += [t for fill in fills for t in self.trials(pair, fill, SEARCH)]
            for fill in self.finalists(pair, known):
                trials += self.trials(pair, fill, FAITHFUL)
        return trials

    def searched(self, pair: Pair, known: Results) -> list[float]:
        """The values of the search so far, downwards: finer ones once the coarse are known."""
        fills = list(self.fills)
        for _ in range(_ROUNDS if self.refine else 0):
            figures = self.figures(pair, fills, SEARCH, known)
            if len(figures) < len(fills):
                break
            at = fills.index(min(figures, key=lambda fill: figures[fill]))
            beside = [fills[i] for i in (at - 1, at + 1) if 0 <= i < len(fills)]
            fills += [(fills[at] + other) / 2 for other in beside]
            fills.sort(reverse=True)
        return fills

    def finalists(self, pair: Pair, known: Results) -> list[float]:
        """The best values of a search that has ended, and the default; none before that."""
        fills = self.searched(pair, known)
        done = known.of(t for fill in fills for t in self.trials(pair, fill, SEARCH))
        if len(done) < len(fills) * len(self.seeds):
            return []
        figures = self.figures(pair, fills, SEARCH, known)
        best = sorted(figures, key=lambda fill: figures[fill])[:_FINALISTS]
        return sorted({*best, DEFAULT_FILL}, reverse=True)

    def figures(
        self, pair: Pair, fills: Sequence[float], variant: str, known: Results
    ) -> dict[float, float]:
        """The mean of what is measured, of the values of which every seed has ended.

        A value whose trials have all failed is infinitely bad, and one that gives NaN too.
        """
        found = {}
        for fill in fills:
            done = known.of(self.trials(pair, fill, variant))
            if len(done) == len(self.seeds):
                numbers = [r.number(self.measured) for r in done if not r.error]
                mean = statistics.fmean(numbers) if numbers else math.inf
                found[fill] = math.inf if math.isnan(mean) else mean
        return found
