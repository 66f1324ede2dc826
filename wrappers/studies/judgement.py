"""Which setting is better, and how sure that is.

Settings are compared pairwise by seed: both have been calibrated on the same sequences, so that the
luck of a calibration set falls out of the difference. A difference counts where its interval of
95 % (Student's t over the seeds) does not hold zero; else there is none, which is an answer too.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A loss per token that is less than this lower makes a perplexity that is 0.1 % lower: however sure
# that is, nobody would notice.
NEGLIGIBLE = 0.001
# The 0.975 quantiles of Student's t for 1, 2, ... degrees of freedom; beyond them the last is used,
# which makes the interval a little too wide.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Spread:
    """The figures of one setting over its seeds.

    Attributes:
        mean: of them.
        deviation: their standard deviation (n - 1); NaN for one seed, or infinite figures.
        count: how many seeds.
    """

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """That of some figures, at least one."""
        known = len(figures) > 1 and all(map(math.isfinite, figures))
        deviation = statistics.stdev(figures) if known else math.nan
        return cls(statistics.fmean(figures), deviation, len(figures))


@dataclass(frozen=True)
class Difference:
    """How much larger a figure is with one setting than with another.

    Attributes:
        mean: over the seeds that both have.
        low, high: the interval of 95 %; infinite for fewer than two seeds.
        count: how many seeds.
    """

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, one: Mapping[int, float], other: Mapping[int, float]) -> Difference:
        """`one` minus `other`, both by seed.

        Raises:
            ValueError: they have no seed in common.
        """
        pairs = [one[seed] - other[seed] for seed in one.keys() & other.keys()]
        if not pairs:
            raise ValueError("no seed in common")
        mean = statistics.fmean(pairs)
        if math.isinf(mean) and len(pairs) > 1:
            return cls(mean, mean, mean, len(pairs))
        if len(pairs) == 1 or math.isnan(mean):
            return cls(mean, -math.inf, math.inf, len(pairs))
        error = statistics.stdev(pairs) / math.sqrt(len(pairs))
        half = _T[min(len(pairs) - 1, len(_T)) - 1] * error
        return cls(mean, mean - half, mean + half, len(pairs))

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves no doubt of its sign."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Choice:
    """What the figures speak for.

    Attributes:
        best: the setting with the least mean.
        chosen: what to use: `best` where it is clearly better than the default, and by more than is
            negligible; else the default.
        over_default: the best minus the default; None where the best is the default.
        alike: settings that are not clearly worse than the best, the best included.
    """

    best: str
    chosen: str
    over_default: Difference | None
    alike: tuple[str, ...]


def choose(figures: Mapping[str, Mapping[int, float]], default: str) -> Choice:
    """Chooses the setting with the least figure, if that is sure and matters.

    Args:
        figures: losses by setting and seed.
        default: what stays where nothing is clearly better, by more than is negligible.

    Raises:
        KeyError: the default has no figures.
    """
    means = {name: statistics.fmean(by_seed.values()) for name, by_seed in figures.items()}
    best = min(means, key=lambda name: (means[name], name != default))
    alike = tuple(
        name
        for name, by_seed in figures.items()
        if name == best or not Difference.of(by_seed, figures[best]).low > 0
    )
    if best == default:
        return Choice(best, default, None, alike)
    over = Difference.of(figures[best], figures[default])
    matters = over.high < 0 and over.mean < -NEGLIGIBLE
    return Choice(best, best if matters else default, over, alike)


def in_words(choice: Choice, figures: Mapping[str, Mapping[int, float]]) -> str:
    """A sentence: what is best, against the default, and what is as good."""
    best = Spread.of(list(figures[choice.best].values()))
    text = f"{choice.best} has the least loss, {best.mean:.4f}"
    if best.count > 1:
        text += f" ± {best.deviation:.2g} over {best.count} seeds"
    text += f"; {_against_default(choice)}"
    others = [name for name in choice.alike if name != choice.best]
    if others:
        text += f"; not clearly worse: {', '.join(others)}"
    elif len(figures) > 1:
        text += "; all others are clearly worse"
    return f"{text}."


def _against_default(choice: Choice) -> str:
    over = choice.over_default
    if over is None:
        return "it is the default"
    if over.count == 1:
        return (
            f"{-over.mean:.4f} below the default with one seed, which says nothing of the spread: "
            "keep the default"
        )
    if choice.chosen == choice.best:
        return (
            f"clearly better than the default, by {-over.mean:.4f} [{-over.high:.4f}, "
            f"{-over.low:.4f}]: choose {choice.best}"
        )
    if over.is_clear:
        return (
            f"clearly better than the default, but by {-over.mean:.4f} only, which is negligible: "
            "keep the default"
        )
    return (
        f"no clear difference to the default ({over.mean:+.4f} [{over.low:+.4f}, "
        f"{over.high:+.4f}]): keep the default"
    )
