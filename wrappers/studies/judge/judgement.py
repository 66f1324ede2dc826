"""Which setting is better, and how sure that is.

Settings are compared pairwise by seed: both have been calibrated on the same sequences, so that the
luck of a calibration set falls out of the difference. A difference counts where its interval of
95 % (Student's t over the seeds) does not hold zero; else there is none, which is an answer too.

The best of ten settings is the luckiest as well. Whoever looks at ten differences therefore takes
each at 99.5 %, so that all together are wrong in 5 % of the studies at most (Bonferroni).
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A loss per token that is less than this lower makes a perplexity that is 0.1 % lower: however sure
# that is, nobody would notice.
NEGLIGIBLE = 0.001
_LISTED = 6  # names of settings in a sentence


@dataclass(frozen=True)
class Spread:
    """The figures of one setting over its seeds.

    Attributes:
        mean: of them; NaN or infinite where one of them is.
        deviation: their standard deviation (n - 1); NaN for one seed, or infinite figures.
        count: how many seeds.
    """

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """That of some figures, at least one."""
        if not all(map(math.isfinite, figures)):
            # `fmean` raises for infinities of both signs.
            return cls(sum(figures) / len(figures), math.nan, len(figures))
        deviation = statistics.stdev(figures) if len(figures) > 1 else math.nan
        return cls(statistics.fmean(figures), deviation, len(figures))

    def __str__(self) -> str:
        mean = f"{self.mean:.4f}"
        if math.isnan(self.deviation):
            return mean
        return f"{mean} ± {self.deviation:.2g} over {self.count} seeds"


@dataclass(frozen=True)
class Difference:
    """How much larger a figure is with one setting than with another.

    Attributes:
        mean: over the seeds that both have.
        low, high: the interval; infinite where nothing is known of it, as for fewer than two seeds.
        count: how many seeds.
    """

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(
        cls, one: Mapping[int, float], other: Mapping[int, float], *, comparisons: int = 1
    ) -> Difference:
        """`one` minus `other`, both by seed.

        Args:
            one, other: figures by seed.
            comparisons: how many differences share the 5 % in which an interval is wrong.

        Raises:
            ValueError: they have no seed in common.
        """
        pairs = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
        if not pairs:
            raise ValueError("no seed in common")
        spread = Spread.of(pairs)
        if len(pairs) > 1 and all(pair == spread.mean for pair in pairs):
            return cls(spread.mean, spread.mean, spread.mean, len(pairs))
        if math.isnan(spread.deviation):
            return cls(spread.mean, -math.inf, math.inf, len(pairs))
        quantile = student(1 - 0.025 / comparisons, len(pairs) - 1)
        half = quantile * spread.deviation / math.sqrt(len(pairs))
        return cls(spread.mean, spread.mean - half, spread.mean + half, len(pairs))

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves no doubt of its sign."""
        return self.low > 0 or self.high < 0

    @property
    def matters(self) -> bool:
        """Whether it is clear, and more than negligible."""
        return self.is_clear and abs(self.mean) > NEGLIGIBLE

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@functools.cache
def student(p: float, degrees: int) -> float:
    """The quantile of Student's t.

    Args:
        p: the probability of a smaller value, from 0.5 to less than 1.
        degrees: of freedom, at least 1.
    """
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        if (1 + _within(middle, degrees)) / 2 < p:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _within(angle: float, degrees: int) -> float:
    """The probability of |t| < sqrt(degrees) tan(angle).

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    terms = 0.0
    for power in range(odd, degrees - 1, 2):
        terms += term
        term *= square * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * terms) if odd else sine * terms


@dataclass(frozen=True)
class Choice:
    """What the figures speak for.

    Attributes:
        default: what the others are compared with.
        order: the settings from the least mean to the greatest; the default alone if none is
            finite.
        spread: of the best.
        over: each other setting minus the default, if that is finite.
        above: each other setting minus the best.
        not_finite: settings that are left out, since their mean is infinite or NaN.
        incomplete: of those that are left out, since they lack seeds of the default, how many.

    The differences of `over` share 5 %, and so do those of `above`.
    """

    default: str
    order: tuple[str, ...]
    spread: Spread
    over: Mapping[str, Difference]
    above: Mapping[str, Difference]
    not_finite: tuple[str, ...]
    incomplete: Mapping[str, int]

    @property
    def best(self) -> str:
        """The setting with the least mean."""
        return self.order[0]

    @property
    def chosen(self) -> str:
        """The best where it is clearly better than the default, by more than is negligible.

        Else the default, unless that is not finite.
        """
        over = self.over_default
        if self.default in self.not_finite:
            return self.best
        return self.best if over is not None and over.matters and over.high < 0 else self.default

    @property
    def over_default(self) -> Difference | None:
        """The best minus the default; None where that is the best, or is not finite."""
        return self.over.get(self.best)

    @property
    def alike(self) -> tuple[str, ...]:
        """Settings that are not clearly worse than the best, the best included."""
        return (self.best, *(name for name, above in self.above.items() if not above.low > 0))


def choose(figures: Mapping[str, Mapping[int, float]], default: str) -> Choice:
    """Chooses the setting with the least figure, if that is sure and matters.

    All are compared over the seeds of the default; a setting that lacks one of them is left out,
    since what it lacks may be what is bad.

    Args:
        figures: losses by setting and seed.
        default: what stays where nothing is clearly better, by more than is negligible.

    Raises:
        KeyError: the default has no figures.
    """
    seeds = figures[default].keys()
    if not seeds:
        raise KeyError(default)
    ranked = {
        name: {seed: by_seed[seed] for seed in seeds}
        for name, by_seed in figures.items()
        if seeds <= by_seed.keys()
    }
    means = {name: Spread.of(list(by_seed.values())).mean for name, by_seed in ranked.items()}
    finite = [name for name, mean in means.items() if math.isfinite(mean)]
    best, *others = sorted(finite, key=lambda name: (means[name], name != default)) or [default]
    order = (best, *others)

    def differences(to: str) -> dict[str, Difference]:
        return {
            name: Difference.of(ranked[name], ranked[to], comparisons=len(others))
            for name in order
            if name != to and to in finite
        }

    return Choice(
        default,
        order,
        Spread.of(list(ranked[best].values())),
        differences(default),
        differences(best),
        tuple(name for name in ranked if name not in finite),
        {n: len(seeds - by_seed.keys()) for n, by_seed in figures.items() if n not in ranked},
    )


def in_words(choice: Choice, measured: str = "loss") -> str:
    """A sentence: what is best, against the default, and what is as good.

    Args:
        choice: what is reported.
        measured: what it is made by, in words.
    """
    if not math.isfinite(choice.spread.mean):
        return f"none has a finite {measured}: keep {choice.default}."
    text = f"{choice.best} has the least {measured}, {choice.spread}; {_against_default(choice)}"
    others = [name for name in choice.order if name in choice.alike and name != choice.best]
    if len(others) > 1 and len(others) == len(choice.above):
        text += "; none is clearly worse"
    elif others:
        text += f"; not clearly worse: {_listed(others)}"
    elif choice.above:
        text += "; all others are clearly worse"
    return f"{text}{_left_out(choice)}."


def _against_default(choice: Choice) -> str:
    over = choice.over_default
    if choice.best == choice.default:
        return f"it is the default{_next(choice)}"
    if over is None:
        return f"that of the default, {choice.default}, is not finite: choose {choice.best}"
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
    if over.high < 0:
        return (
            f"clearly better than the default, but by {-over.mean:.4f} only, which is negligible: "
            "keep the default"
        )
    return f"no clear difference to the default ({over}): keep the default"


def _next(choice: Choice) -> str:
    if not choice.above:
        return ", and there is nothing to compare it with"
    name = choice.order[1]
    return f"; the next, {name}, is {choice.above[name]} above"


def extremes_in_words(choice: Choice, measured: str = "loss") -> str:
    """A sentence: what has the least and what the most, each against what is compared with."""
    if not choice.over:
        is_finite = choice.default not in choice.not_finite
        why = "nothing to compare it with" if is_finite else "its figures are not finite"
        return f"{choice.default} is the baseline: {why}{_left_out(choice)}."
    ends = {"least": choice.order[0], "most": choice.order[-1]}
    clauses = []
    for end, name in ends.items():
        over = choice.over.get(name)
        if over is None:
            clauses.append(f"{name}, the baseline, has the {end} {measured}")
            continue
        how = "clear" if over.is_clear else "not clear"
        clauses.append(f"{name} has the {end} {measured}: {over} over {choice.default}, {how}")
    return f"{'; '.join(clauses)}{_left_out(choice)}."


def _left_out(choice: Choice) -> str:
    count = choice.spread.count
    clauses = [
        f"{name} is left out: its figures are not finite"
        for name in choice.not_finite
        if name != choice.default
    ]
    for name, lacking in choice.incomplete.items():
        of = f"{lacking} of {count} seeds" if lacking < count else f"any seed of {choice.default}"
        clauses.append(f"{name} is left out: it has no result for {of}")
    return "".join(f"; {each}" for each in clauses)


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _LISTED:
        return ", ".join(names)
    return f"{', '.join(names[:_LISTED])} and {len(names) - _LISTED} more"
