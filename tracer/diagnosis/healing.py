"""What heals: values that differ inside, and are made good again before the model's output.

A norm that is folded into the projection behind it, smoothed channels, heads in another order, a
residual stream that is turned: what such modules return differs from the reference's, and what is
computed from it agrees again. Regions of this kind are no origins of a divergence.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from tracer.measurement.comparer import Comparer
from tracer.measurement.rows import CallKey, CallRecord, Row
from tracer.tensors.relations import Relation
from tracer.tensors.roles import is_any

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
# An output's error counts for no more than this in their sum.
MOST_ERROR = 1e6
# Farther off than this multiple of its limit, a result is not only rounded.
_GROSS = 4.0


@dataclass(frozen=True)
class Region:
    """Values that differ and heal; those of repeated layers count as one region.

    Attributes:
        module: the reference's name of the first module whose output differs, with `*` for the
            number of a repeated layer.
        heals_at: the first module after it whose output agrees again; "" is the model itself.
        relation: what the values that differ are of the reference's; None where none was found.
        values: how many differ.
        places: how many regions of this kind there are.
    """

    module: str
    heals_at: str
    relation: Relation | None
    values: int
    places: int = 1


class Healing:
    """Which of a run's values heal.

    A value heals where a call around it, or every call that takes it as it is, returns what the
    reference's does.
    """

    def __init__(self, run: Comparer) -> None:
        self._rows = run.rows
        self._records = run.records
        self._roles = run.roles
        self._takers: dict[int, list[CallRecord]] = defaultdict(list)
        for record in run.records.values():
            for row in record.arguments.values():
                self._takers[row.order].append(record)
        self._settled: dict[CallKey, bool] = {}

    def final_rows(self) -> list[Row]:
        """What the models themselves return and leave in their arguments.

        Where that is discrete, as generated tokens are, it is what they were made of: equal tokens
        do not show that what they were chosen by is equal.
        """
        final: list[Row] = []
        outer: list[CallRecord] = [r for r in self._records.values() if r.parent is None]
        while outer:
            record = outer.pop(0)
            final += record.returned
            if not any(row.is_inexact for row in record.returned):
                outer += [self._records[child] for child in record.children]
        return sorted(final, key=lambda row: row.order)

    def output_agrees(self) -> bool:
        """Whether the models return the same, as far as that was compared."""
        final = self.final_rows()
        return bool(final) and all(map(self._is_right, final))

    def output_error(self) -> float:
        """The relative L2 errors of what the models return, in sum."""
        wrong = (row for row in self.final_rows() if not self._is_right(row))
        return sum(min(row.visible_errors[1], MOST_ERROR) for row in wrong)

    def output_distance(self) -> float:
        """Likewise, of what agrees within the tolerance, too."""
        return sum(min(row.visible_errors[1], MOST_ERROR) for row in self.final_rows())

    def gross(self) -> Iterator[Row]:
        """Results that heal, are far off, and are the reference's in no layout that is known."""
        for row in self._rows:
            is_wrong = row.is_output and not row.is_written and not row.agrees
            is_gross = (
                is_wrong and row.relation is None and row.visible_errors[1] > _GROSS * row.limit
            )
            if is_gross and self.heals(row):
                yield row

    def heals(self, row: Row) -> bool:
        """Whether a value that differs is made good again."""
        record = self._records[row.module, row.call]
        if row.is_written:
            return False  # it outlives the calls around it
        if self._is_settled(record.parent if row.is_output else record.key):
            return True
        if not row.is_output:
            return False
        takers = self._takers[row.order]
        return bool(takers) and all(map(self._returns_right, takers))

    def is_otherwise(self) -> bool:
        """Whether the candidate may be laid out otherwise: something heals, or the first value that
        differs is the reference's in another layout."""
        wrong = [row for row in self._rows if not row.agrees and not row.is_mask]
        return any(map(self.heals, wrong)) or any(row.relation for row in wrong[:1])

    def is_made_good(self, row: Row) -> bool:
        """Whether a call that takes a value as it is returns what the reference's does; to the last
        bit, it does not depend on that value."""
        if not row.is_output or row.is_written:
            return False
        takers = filter(self._returns_right, self._takers[row.order])
        return any(not all(map(_is_equal, taker.returned)) for taker in takers)

    def takers(self, row: Row) -> set[str]:
        """The modules that take a result as it is, without those that pass it on to others."""
        names = {record.module for record in self._takers[row.order]} if row.is_output else set()
        return {name for name in names if not any(n.startswith(f"{name}.") for n in names)}

    def unhealed(self) -> Iterator[Row]:
        """The values that differ and do not heal, in execution order; masks are left out."""
        for row in self._rows:
            is_wrong = not row.agrees and not row.is_mask
            if is_wrong and not self.heals(row) and not self._is_right(row):
                yield row

    def regions(self) -> tuple[Region, ...]:
        """The regions that heal, in execution order."""
        found: dict[tuple[str, str, Relation | None], Region] = {}
        for rows, end in self._stretches():
            relation = next((row.relation for row in rows if row.relation), None)
            key = _general(rows[0].module), _general(end), relation
            known = found.get(key, Region(*key, values=0, places=0))
            found[key] = Region(*key, known.values + len(rows), known.places + 1)
        return tuple(found.values())

    def _stretches(self) -> Iterator[tuple[list[Row], str]]:
        """Runs of values that differ and heal, each with the module that is right again; an
        argument only where it is no such result."""
        stretch: list[Row] = []
        fed: set[CallKey] = set()
        for row in self._rows:
            is_wrong = not row.agrees and not row.is_mask
            if not row.is_output:
                is_other = not stretch and (row.module, row.call) not in fed
                if is_wrong and is_other and self.heals(row):
                    stretch.append(row)
                continue
            if is_wrong and (self.heals(row) or self._is_right(row)):
                stretch.append(row)
                fed.update(record.key for record in self._takers[row.order])
            elif row.agrees and stretch and row.input_peir is not None and not row.is_written:
                yield stretch, row.module
                stretch = []
        if stretch:
            yield stretch, ""

    def _is_settled(self, key: CallKey | None) -> bool:
        """Whether a call, or one around it, returns what the reference's does."""
        while key is not None:
            if key not in self._settled:
                self._settled[key] = self._returns_right(self._records[key])
            if self._settled[key]:
                return True
            key = self._records[key].parent
        return False

    def _returns_right(self, record: CallRecord) -> bool:
        is_inexact = any(row.is_inexact for row in record.returned)
        return is_inexact and all(map(self._is_right, record.returned))

    def _is_right(self, row: Row) -> bool:
        """Whether a result agrees; a cache may hold the reference's keys in another layout."""
        is_cache = row.is_output and is_any(str(row.value), self._roles.caches)
        return row.agrees or (is_cache and row.relation is not None)


def _is_equal(row: Row) -> bool:
    return row.difference is not None and row.difference.max == 0.0


def _general(name: str) -> str:
    return _NUMBER.sub("*", name)
