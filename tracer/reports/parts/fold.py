"""Which rows a reader is shown, and what is said of the rest.

Everything around the divergence is open, and what happens far from it is folded into one line:

    … 23 rows agree, PEIR at most 4.70e-07
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tracer.diagnosis.verdict import Symptom
from tracer.measurement.rows import Row

# A table of at most this many rows is not folded.
_SHORT = 18
_BEFORE = 3
_MOST_AFTER = 10
# An error has settled when it stays within this factor for this many rows.
_SETTLED_FACTOR = 2.0
_SETTLED_ROWS = 3
_LARGEST = 4


@dataclass(frozen=True)
class Fold:
    """Rows that are not shown one by one."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        agree = [row.peir for row in self.rows if row.agrees]
        differ = [row.peir for row in self.rows if not row.agrees]
        parts = []
        if agree:
            peak = f"PEIR at most {number(max(agree))}" if max(agree) else "all of them equal"
            parts.append(f"{_count(agree)} agree, {peak}")
        if differ:
            low, high = min(differ), max(differ)
            peir = number(low) if low == high else f"{number(low)} to {number(high)}"
            parts.append(f"{_count(differ)} differ, PEIR {peir}")
        return f"… {'; '.join(parts)}"


def arrange(
    rows: Sequence[Row], symptom: Symptom | None, *, all_rows: bool = False
) -> list[Row | Fold]:
    """The rows to show and the folds between them, in execution order.

    Args:
        rows: all rows of a comparison.
        symptom: the first divergence; None if there is none.
        all_rows: every row, arguments included, and no fold. Otherwise arguments are shown where
            they disagree.
    """
    if all_rows:
        return list(rows)
    visible = [row for row in rows if row.is_output or not row.agrees]
    if len(visible) <= _SHORT:
        return list(visible)
    open_rows = {0, 1, *_last(visible)}
    first = _index(visible, symptom)
    if first is None:
        by_peir = sorted(range(len(visible)), key=lambda i: visible[i].peir, reverse=True)
        open_rows.update(by_peir[:_LARGEST])
    else:
        open_rows.update(range(max(first - _BEFORE, 0), _settled(visible, first)))
        # Masks that differ come before what they do.
        open_rows.update(i for i in range(first) if not visible[i].agrees)
    return list(_folded(visible, open_rows))


def around(items: Sequence[Row | Fold], symptom: Symptom | None, most: int) -> Sequence[Row | Fold]:
    """So many of the items that `arrange` has left, with the first divergence amid them."""
    first = next(
        (i for i, item in enumerate(items) if isinstance(item, Row) and is_symptom(item, symptom)),
        0,
    )
    start = max(first - most // 2, 0)
    return items[start : start + most]


def is_symptom(row: Row, symptom: Symptom | None) -> bool:
    """Whether a row is the first divergence."""
    return symptom is not None and (row.module, row.call, row.value) == (
        symptom.module,
        symptom.call,
        symptom.value,
    )


def number(value: float) -> str:
    """A statistic in at most 9 characters: "1.23e-07", "0", "inf"."""
    return "0" if value == 0 else f"{value:.2e}" if math.isfinite(value) else str(value)


def _count(items: Sequence[object]) -> str:
    return f"{len(items)} row{'s' if len(items) != 1 else ''}"


def _index(rows: Sequence[Row], symptom: Symptom | None) -> int | None:
    return next((i for i, row in enumerate(rows) if is_symptom(row, symptom)), None)


def _last(rows: Sequence[Row]) -> set[int]:
    """The model's own first output, and the row before it."""
    root = next(
        (i for i, row in enumerate(rows) if not row.module and row.is_output), len(rows) - 1
    )
    return {max(root - 1, 0), root}


def _settled(rows: Sequence[Row], first: int) -> int:
    """The index after which nothing new happens to an error that begins at `first`."""
    calm = 0
    for i in range(first + 1, min(first + _MOST_AFTER, len(rows))):
        pair = sorted((rows[i - 1].peir, rows[i].peir))
        calm = calm + 1 if pair[1] <= _SETTLED_FACTOR * pair[0] else 0
        if calm == _SETTLED_ROWS:
            return i + 1
    return min(first + _MOST_AFTER, len(rows))


def _folded(rows: Sequence[Row], open_rows: set[int]) -> Iterator[Row | Fold]:
    closed: list[Row] = []
    for i, row in enumerate(rows):
        if i not in open_rows:
            closed.append(row)
            continue
        yield from _closed(closed)
        closed = []
        yield row
    yield from _closed(closed)


def _closed(rows: Sequence[Row]) -> list[Row | Fold]:
    """A fold, which for a single row would save nothing."""
    return list(rows) if len(rows) < 2 else [Fold(tuple(rows))]
