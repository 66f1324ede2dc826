"""Which setting is better, and how sure that is.

Settings are compared pairwise by seed: both have been calibrated on the same sequences, so that the
luck of a calibration set falls out of the difference. What a difference is, its interval of 95 %
(Student's t over the seeds) says, with a margin below which nobody would notice it:

    wholly below -margin or above +margin    better, worse
    wholly within both                       no difference that matters
    anything else                            cannot tell

The best of ten settings is the luckiest as well. Whoever looks at ten differences therefore takes
each at 99.5 %, so that all together are wrong in 5 % of the studies at most (Bonferroni).
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

MARGIN = 0.001
"""Of the loss per token: 0.1 % of the perplexity, up to which a difference does not matter."""

MARGIN_SOURCE = (
    "half a unit of the second decimal, to which perplexities are published (0.005 of the 5.47 of "
    "Llama-2-7B on WikiText-2 in Lin et al. 2023, AWQ, arXiv:2306.00978)"
)
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


class Outcome(StrEnum):
    """What a difference is, as its interval and the margin say."""

    BETTER = "better"
    WORSE = "worse"
    ALIKE = "no difference"
    UNKNOWN = "cannot tell"


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
    def outcome(self) -> Outcome:
        """Whether the first of the two is better."""
        if self.high < -MARGIN:
            return Outcome.BETTER
        if self.low > MARGIN:
            return Outcome.WORSE
        is_within = self.low >= -MARGIN and self.high <= MARGIN
        return Outcome.ALIKE if is_within else Outcome.UNKNOWN

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
        over: each other setting minus the default, if that is finite; they share 5 %.
        not_finite: settings that are left out, since their mean is infinite or NaN.
        incomplete: of those that are left out, since they lack seeds of the default, how many.
    """

    default: str
    order: tuple[str, ...]
    spread: Spread
    over: Mapping[str, Difference]
    not_finite: tuple[str, ...]
    incomplete: Mapping[str, int]

    @property
    def best(self) -> str:
        """The setting with the least mean."""
        return self.order[0]

    @property
    def chosen(self) -> str:
        """The first of those that are better than the default; else the default, if finite."""
        if self.default in self.not_finite:
            return self.best
        return next(iter(self.judged(Outcome.BETTER)), self.default)

    def judged(self, outcome: Outcome) -> list[str]:
        """The settings whose difference to the default is this, the least mean first."""
        return [name for name, over in self.over.items() if over.outcome is outcome]


def choose(figures: Mapping[str, Mapping[int, float]], default: str) -> Choice:
    """Compares settings with the default.

    All are compared over the seeds of the default; a setting that lacks one of them is left out,
    since what it lacks may be what is bad.

    Args:
        figures: losses by setting and seed.
        default: what stays where nothing is better.

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

    over = {
        name: Difference.of(ranked[name], ranked[default], comparisons=len(others))
        for name in order
        if name != default and default in finite
    }
    return Choice(
        default,
        order,
        Spread.of(list(ranked[best].values())),
        over,
        tuple(name for name in ranked if name not in finite),
        {n: len(seeds - by_seed.keys()) for n, by_seed in figures.items() if n not in ranked},
    )


def in_words(choice: Choice, measured: str = "loss") -> str:
    """A sentence: what is best, whether to choose it, and what the others are to the default.

    Args:
        choice: what is reported.
        measured: what it is made by, in words.
    """
    if not math.isfinite(choice.spread.mean):
        return f"none has a finite {measured}: keep {choice.default}."
    text = f"{choice.best} has the least {measured}, {choice.spread}; {_against_default(choice)}"
    for outcome, words in _OTHERS.items():
        names = [n for n in choice.judged(outcome) if n not in (choice.best, choice.chosen)]
        if outcome in (Outcome.BETTER, Outcome.WORSE):
            names = [f"{name}, {choice.over[name]}" for name in names]
        if names:
            text += f"; {words}: {_listed(names, '; ' if ', ' in names[0] else ', ')}"
    return f"{text}{_left_out(choice)}."


_OTHERS = {
    Outcome.BETTER: "better as well",
    Outcome.ALIKE: "no difference that matters to the default",
    Outcome.UNKNOWN: "cannot tell from the default",
    Outcome.WORSE: "worse than the default",
}


def _against_default(choice: Choice) -> str:
    if choice.best == choice.default:
        alone = "" if choice.over else ", and there is nothing to compare it with"
        return f"it is the default{alone}"
    over = choice.over.get(choice.best)
    if over is None:
        return f"that of the default, {choice.default}, is not finite: choose {choice.best}"
    if over.outcome is Outcome.BETTER:
        return (
            f"better than the default, {choice.default}, by {-over.mean:.4f} [{-over.high:.4f}, "
            f"{-over.low:.4f}]: choose {choice.best}"
        )
    if over.outcome is Outcome.ALIKE:
        text = f"no difference that matters to the default, {choice.default} ({over})"
        return text if choice.chosen != choice.default else f"{text}: keep the default"
    text = f"cannot tell it from the default, {choice.default}"
    if over.count == 1:
        return f"{text}: one calibration set says nothing of the spread ({over.mean:+.4f})"
    if choice.chosen != choice.default:
        other = choice.over[choice.chosen]
        return (
            f"{text} ({over}); {choice.chosen} is better than that, by {-other.mean:.4f} "
            f"[{-other.high:.4f}, {-other.low:.4f}]: choose {choice.chosen}"
        )
    return f"{text} ({over}): more calibration sets may tell"


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
        how = "no difference that matters" if over.outcome is Outcome.ALIKE else over.outcome
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


def _listed(names: Sequence[str], between: str) -> str:
    if len(names) <= _LISTED:
        return between.join(names)
    return f"{between.join(names[:_LISTED])} and {len(names) - _LISTED} more"
