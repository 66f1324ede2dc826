"""What heals: values that differ inside, and are made good again before the model's output.

A norm that is folded into the projection behind it, smoothed channels, heads in another order, a
residual stream that is turned: what such modules return differs from the reference's, and what is
computed from it agrees again. Regions of this kind are no origins of a divergence.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tracer.measurement.rows import CallKey, CallRecord, Row
from tracer.tensors.relations import Relation

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


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

    A value heals where a call around it returns what the reference's does; and where it is related
    to the reference's and every call that takes it as it is returns what the reference's does.
    """

    def __init__(self, rows: Sequence[Row], records: Mapping[CallKey, CallRecord]) -> None:
        self._rows = rows
        self._records = records
        self._takers: dict[int, list[CallRecord]] = defaultdict(list)
        for record in records.values():
            for row in record.arguments.values():
                self._takers[row.order].append(record)
        self._settled: dict[CallKey, bool] = {}

    def final_rows(self) -> list[Row]:
        """What the models themselves return and leave in their arguments."""
        return [
            row
            for record in self._records.values()
            if record.parent is None
            for row in record.outputs
        ]

    def heals(self, row: Row) -> bool:
        """Whether a value that differs is made good again."""
        record = self._records[row.module, row.call]
        if self._is_settled(record.key if not row.is_output else record.parent):
            return True
        takers = self._takers[row.order] if row.is_output else [record]
        if row.relation is None or not takers:
            return False
        return all(self._returns_right(taker) for taker in takers)

    def unhealed(self) -> Iterator[Row]:
        """The values that differ and do not heal, in execution order; masks are left out."""
        for row in self._rows:
            if not row.agrees and not row.is_mask and not self.heals(row):
                yield row

    def regions(self) -> tuple[Region, ...]:
        """The regions that heal, in execution order."""
        found: dict[tuple[str, str, Relation | None], Region] = {}
        for rows, end in self._stretches():
            first = rows[0]
            relation = next((row.relation for row in rows if row.relation), None)
            key = _general(first.module), _general(end), relation
            known = found.get(key, Region(*key, values=0, places=0))
            found[key] = Region(*key, known.values + len(rows), known.places + 1)
        return tuple(found.values())

    def _stretches(self) -> Iterator[tuple[list[Row], str]]:
        """Runs of outputs that differ and heal, each with the module that is right again."""
        stretch: list[Row] = []
        for row in self._rows:
            if not row.is_output or row.is_written:
                continue
            if not row.agrees and self.heals(row):
                stretch.append(row)
            elif row.agrees and stretch and row.input_peir is not None:
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
        return bool(record.outputs) and all(row.agrees for row in record.outputs)


def _general(name: str) -> str:
    return _NUMBER.sub("*", name)


def in_order(regions: Iterable[Region]) -> list[Region]:
    """The regions, those with most values first."""
    return sorted(regions, key=lambda region: -region.values)
