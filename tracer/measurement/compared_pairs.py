"""Which pairs of tensors were compared, as long as both live unchanged."""

import weakref
from dataclasses import dataclass

from tracer.measurement.pairs import Tensor
from tracer.measurement.rows import Row
from tracer.measurement.written import version


class ComparedPairs:
    """The rows of pairs of tensors; it keeps no tensor alive."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[int, int], _Compared] = {}

    def row(self, r: Tensor, c: Tensor) -> Row | None:
        """The row of a pair that was compared, and that has not changed since."""
        known = self._pairs.get((id(r), id(c)))
        if known is None or known.reference() is not r or known.candidate() is not c:
            return None
        return known.row if known.versions == (version(r), version(c)) else None

    def enter(self, r: Tensor, c: Tensor, row: Row) -> None:
        """Notes a pair that was compared, unless nothing would say when it changes."""
        versions = version(r), version(c)
        if None in versions:
            return
        key = id(r), id(c)
        forget = lambda _: self._pairs.pop(key, None)  # noqa: E731
        self._pairs[key] = _Compared(weakref.ref(r, forget), weakref.ref(c), versions, row)


@dataclass(frozen=True, slots=True)
class _Compared:
    reference: "weakref.ref[Tensor]"
    candidate: "weakref.ref[Tensor]"
    versions: tuple[int | None, int | None]
    row: Row
