"""What a run has left behind, and how an error is followed back in it.

From a value that disagrees back as long as the inputs had most of the error, and from an argument
that differs up through the callers as long as it already differed there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tracer.measurement.comparer import Comparer
from tracer.measurement.remarks import RemarkKind
from tracer.measurement.rows import (
    CallKey,
    CallRecord,
    Row,
    inputs_of,
)

# An error that is at least this part of it already in the inputs was inherited, not introduced.
INHERITED = 0.25
# Below this part of the tolerance an error is rounding, wherever it was introduced.
_ROUNDING = 0.1
# Each suspect costs one more run of both models.
_MOST_SUSPECTS = 4


@dataclass(frozen=True)
class Suspect:
    """An argument that was passed wrongly, by `giver`, in `calls`."""

    argument: str
    giver: CallKey | None
    calls: tuple[CallKey, ...]


class Trail:
    """The rows and records of a finished run.

    Attributes:
        rows, records: as a `Comparer` has them.
        excused: the order of rows that differ and are not the cause, as was tried.
    """

    def __init__(self, comparer: Comparer) -> None:
        self.excused: set[int] = set()
        self.rows = comparer.rows
        self.records = comparer.records
        self._roles = comparer.roles

    def record_of(self, candidate_module: str, call: int) -> CallRecord | None:
        """The record of a call of the candidate's."""
        return next(
            (
                record
                for record in self.records.values()
                if (record.candidate_module, record.call) == (candidate_module, call)
            ),
            None,
        )

    def parent(self, record: CallRecord) -> CallRecord | None:
        """The call that this one was made in."""
        return None if record.parent is None else self.records[record.parent]

    def children(self, key: CallKey) -> list[CallRecord]:
        """The calls that were made in one, in order."""
        return [self.records[child] for child in self.records[key].children]

    def last_agreeing_before(self, record: CallRecord) -> CallRecord | None:
        """The last call that the same caller made before this one and whose results agree."""
        if record.parent is None:
            return None
        earlier = [
            c
            for c in self.children(record.parent)
            if 0 <= c.end < record.start and c.outputs and all(row.agrees for row in c.outputs)
        ]
        return earlier[-1] if earlier else None

    def introduced_at(self, first: Row) -> Row:
        """Follows the error back as long as the inputs had most of it already.

        A mistake smaller than the tolerance crosses it only further on, where it has added up.
        """
        if not math.isfinite(first.error):
            return first
        current = first
        while True:
            inputs = [
                row
                for row in inputs_of(current, self.records)
                if math.isfinite(row.error) and row.order not in self.excused
            ]
            source = max(inputs, key=lambda row: row.error, default=None)
            if source is None or source.error < INHERITED * current.error:
                break
            current = source
        return current if current.error >= _ROUNDING * first.limit else first

    def is_jump(self, start: Row) -> bool:
        """Whether an error appears where nothing of that size went in."""
        inputs = [row.error for row in inputs_of(start, self.records)]
        return not start.agrees and max(inputs, default=0.0) < INHERITED * start.error

    def editing_before(self, start: Row) -> list[CallRecord]:
        """Calls that edited an argument in place before a divergence, the innermost first."""
        editing = [r for r in self.records.values() if r.edited and 0 <= r.end < start.order]
        return sorted(editing, key=lambda record: record.start, reverse=True)[:_MOST_SUSPECTS]

    def suspects(self, around: CallRecord | None, before: float) -> list[Suspect]:
        """Arguments of a call and of those around it that differ, each followed to its giver.

        Masks first, then from the outermost in: others may be made from it under other names. A
        cache may be wrong because of an earlier step, so the first call that was given another one
        is looked at too. Last come masks that mean the same: one may hide by infinity, and make NaN
        where all is hidden.
        """
        found = self._followed(around, before, self.differing_arguments)
        for argument in {suspect.argument: None for suspect in found}:
            first = next(
                (r for r in self.records.values() if argument in self.differing_arguments(r)), None
            )
            earlier = self._followed(first, before, partial(self._only, argument))
            found += [suspect for suspect in earlier if suspect not in found]
        ranked = sorted(
            found,
            key=lambda suspect: (
                not self._roles.is_mask(suspect.argument),
                -1 if suspect.giver is None else self.records[suspect.giver].start,
            ),
        )
        return ranked[:_MOST_SUSPECTS] + self._followed(around, before, self._masks_by_meaning)

    def _followed(
        self,
        around: CallRecord | None,
        before: float,
        names_of: Callable[[CallRecord, float], list[str]],
    ) -> list[Suspect]:
        """Those arguments of a call and of the calls around it, each with its giver."""
        found: dict[tuple[CallKey | None, str], Suspect] = {}
        while around is not None:
            for argument in names_of(around, before):
                top = around
                while (parent := self.parent(top)) is not None and argument in (
                    names_of(parent, before)
                ):
                    top = parent
                calls = tuple(
                    other.key
                    for other in self.records.values()
                    if _module(other.parent) == _module(top.parent)
                    and argument in names_of(other, math.inf)
                )
                found.setdefault((top.parent, argument), Suspect(argument, top.parent, calls))
            around = self.parent(around)
        return list(found.values())

    def _only(self, argument: str, record: CallRecord, before: float) -> list[str]:
        return [argument] if argument in self.differing_arguments(record, before) else []

    def _masks_by_meaning(self, record: CallRecord, before: float) -> list[str]:
        names = [
            value.argument or ""
            for value, row in record.arguments.items()
            if row.agrees and row.has(RemarkKind.BY_MEANING) and row.order < before
        ]
        return list(dict.fromkeys(names))

    def differing_arguments(self, record: CallRecord, before: float = math.inf) -> list[str]:
        """Names of the arguments of a call that differ in value or in form."""
        names = [
            value.argument or ""
            for value, row in record.arguments.items()
            if not row.agrees and row.order < before and row.order not in self.excused
        ]
        names += [
            form.value.argument or ""
            for form in record.form_differences
            if not form.value.is_result and form.order < before
        ]
        return list(dict.fromkeys(names))

    def written_arguments(self) -> set[str | None]:
        """Names of the arguments that calls leave something in."""
        return {row.value.argument for row in self.rows if row.is_written}


def _module(call: CallKey | None) -> str | None:
    return None if call is None else call[0]
