"""Limits on the outputs of modules: which applies to which row, and what they find.

>>> limits = Limits.of(max_peir={"*": 0.2}, min_sqnr={"lm_head": 30.0})
>>> [str(limit) for limit in limits.matching("lm_head")]
['*=0.2', 'lm_head: SQNR >= 30 dB']
"""

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tracer.errors import UsageError, near_names
from tracer.measurement.rows import Row
from tracer.regression.baseline import ValueKey
from tracer.regression.result import Limit, Measure
from tracer.reports.narrator.gate import limit_in_words
from tracer.text import listed

# What a limit may be, in words and as a range.
_EXPECTED: Mapping[Measure, tuple[str, float, float]] = {
    "peir": ("a finite PEIR of at least 0", 0.0, math.inf),
    "sqnr": ("a finite SQNR in dB", -math.inf, math.inf),
    "cosine": ("a cosine from -1 to 1", -1.0, 1.0),
    "relative_l2": ("a finite relative L2 error of at least 0", 0.0, math.inf),
}
# Those that are to be reached; the others are not to be exceeded.
_AT_LEAST: tuple[Measure, ...] = ("sqnr", "cosine")


@dataclass(frozen=True)
class Bound:
    """A limit on the outputs of some modules.

    Attributes:
        measure: of what.
        glob: of the modules' names.
        value: the largest figure that is within, or the smallest.
    """

    measure: Measure
    glob: str
    value: float

    def __str__(self) -> str:
        return limit_in_words(self.measure, self.glob, self.value)

    def check(self, modules: Sequence[str]) -> None:
        """Checks that it is a limit, and one on modules that there are.

        Raises:
            UsageError: it is not.
        """
        words, low, high = _EXPECTED[self.measure]
        if not (math.isfinite(self.value) and low <= self.value <= high):
            raise UsageError(f"the limit {self.glob}={self.value!r}: expected {words}")
        if not fnmatch.filter(modules, self.glob):
            raise UsageError(
                f"the limit {self.glob}={self.value:g} matches none of the {len(modules)} modules "
                f"that are compared, such as {listed([name for name in modules if name][:3])}"
                f"{near_names(self.glob, modules)}"
            )

    def figure(self, row: Row) -> float:
        """What is checked; as bad as can be where nothing could be computed, or is no number."""
        worst = -math.inf if self.measure in _AT_LEAST else math.inf
        if row.difference is None or math.isinf(row.error):
            return worst
        found = row.error if self.measure == "peir" else getattr(row.difference, self.measure)
        return worst if math.isnan(found) else float(found)

    def holds(self, row: Row) -> bool:
        """Whether a row is within."""
        figure = self.figure(row)
        return figure >= self.value if self.measure in _AT_LEAST else figure <= self.value

    def found(self, rows: Sequence[Row]) -> Limit:
        """What it finds of the rows that it applies to."""
        choose = min if self.measure in _AT_LEAST else max
        worst = choose(rows, key=self.figure)
        return Limit(
            self.glob,
            self.value if self.measure == "peir" else None,
            len(rows),
            sum(not self.holds(row) for row in rows),
            *(worst.module, worst.call, worst.value),
            self.figure(worst),
            self.measure,
            self.value,
        )


@dataclass(frozen=True)
class Limits:
    """All limits that are given; of several of one measure that match a module the last counts."""

    bounds: tuple[Bound, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        max_peir: Mapping[str, float] | None = None,
        min_sqnr: Mapping[str, float] | None = None,
        min_cosine: Mapping[str, float] | None = None,
        max_l2: Mapping[str, float] | None = None,
    ) -> "Limits":
        """Limits by globs of module names, in the order in which they count."""
        given: dict[Measure, Mapping[str, float] | None] = {
            "peir": max_peir,
            "sqnr": min_sqnr,
            "cosine": min_cosine,
            "relative_l2": max_l2,
        }
        bounds = (
            Bound(measure, glob, value)
            for measure, limits in given.items()
            for glob, value in (limits or {}).items()
        )
        return cls(tuple(bounds))

    def check(self, modules: Iterable[str]) -> None:
        """Checks all of them; see `Bound.check`.

        Raises:
            UsageError: one is no limit, or on no module.
        """
        names = list(modules)
        for bound in self.bounds:
            bound.check(names)

    def matching(self, module: str) -> tuple[Bound, ...]:
        """The limits on a module, at most one of each measure."""
        found = {
            bound.measure: bound for bound in self.bounds if fnmatch.fnmatchcase(module, bound.glob)
        }
        return tuple(found.values())


@dataclass(frozen=True)
class Judged:
    """A row and the limits that apply to it."""

    row: Row
    bounds: tuple[Bound, ...]

    @property
    def key(self) -> ValueKey:
        return self.row.module, self.row.call, self.row.value, self.row.shape

    @property
    def diverges(self) -> bool:
        return not self.row.agrees and not self.row.is_mask

    @property
    def is_within(self) -> bool:
        return bool(self.bounds) and all(bound.holds(self.row) for bound in self.bounds)


def are_excused(judged: Sequence[Judged]) -> bool:
    """Whether all that diverges is within a limit; what shows in no row is not."""
    diverging = [item for item in judged if item.diverges]
    return bool(diverging) and all(item.is_within for item in diverging)


def found_by(judged: Sequence[Judged]) -> Iterator[Limit]:
    """What the limits have found of the outputs."""
    groups: dict[Bound, list[Row]] = {}
    for item in judged:
        if item.row.is_output:
            for bound in item.bounds:
                groups.setdefault(bound, []).append(item.row)
    return (bound.found(rows) for bound, rows in groups.items())
