"""The table of rows: as many columns as the width has room for, and names shortened to fit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tracer.diagnosis.verdict import Symptom
from tracer.measurement.rows import CallKey, Row
from tracer.reports.parts.fold import Fold, is_symptom, number
from tracer.reports.parts.shortening import apart
from tracer.tensors.leaves import dtype_name
from tracer.tensors.value_path import ValueKind

AGREES, DIFFERS, EXPECTED = "dim", "red", "yellow"

_GUTTER = 2
_NUMBER_WIDTH = 8
_ROOMY = 100
_LONGEST_VALUE = 36
_LONGEST_SHAPE = 20
_LONGEST_NAME = 44


def table(
    items: Sequence[Row | Fold],
    symptom: Symptom | None,
    *,
    width: int,
    expected: bool = False,
    introduced: Mapping[CallKey, float] | None = None,
) -> Iterator[RenderableType]:
    """The header, the rows and the folds, each to be printed on lines of its own.

    Args:
        items: what `arrange` has left.
        symptom: the first divergence, which is marked.
        width: in characters.
        expected: differing rows are in the colour of a remark rather than of an alarm.
        introduced: the PEIR that calls introduce themselves; a column where there are any.
    """
    rows = [item for item in items if isinstance(item, Row)]
    columns = _columns(rows, width, symptom, introduced or {})
    gap = _gap(width)
    header = _grid(columns, gap)
    header.add_row(*(Text(column.header, style="bold") for column in columns))
    yield header
    total = sum(column.width + gap for column in columns) - gap
    yield Text("─" * min(total, width), style="dim")
    body = _grid(columns, gap)
    for item in items:
        if isinstance(item, Fold):
            yield from _ended(body)
            body = _grid(columns, gap)
            yield Text(" " * _GUTTER + str(item), style="dim italic", no_wrap=True)
            continue
        style = AGREES if item.agrees else EXPECTED if expected else DIFFERS
        if is_symptom(item, symptom):
            style = f"bold {style}"
        body.add_row(*(Text(column.text(item), style=style) for column in columns))
    yield from _ended(body)


def shortened(name: str, width: int) -> str:
    """A dotted name in at most `width` characters, its middle left out first.

    >>> shortened("model.layers.0.self_attn.q_proj", 24)
    'model…0.self_attn.q_proj'
    """
    if len(name) <= width:
        return name
    parts = name.split(".")
    for kept in range(len(parts) - 2, 0, -1):
        tail = ".".join(parts[-kept:])
        for head in (f"{parts[0]}…", "…"):
            if len(head) + len(tail) <= width:
                return head + tail
    return f"…{name[len(name) - width + 1 :]}" if width > 0 else ""


@dataclass(frozen=True)
class _Column:
    header: str
    width: int
    text: Callable[[Row], str]
    numeric: bool = False


def _columns(
    rows: Sequence[Row], width: int, symptom: Symptom | None, introduced: Mapping[CallKey, float]
) -> list[_Column]:
    """The module and its statistics, then what there is room for, the more telling first."""
    gap = _gap(width)
    statistics = [
        _Column(name, _NUMBER_WIDTH, statistic(name), numeric=True)
        for name in ("mean", "min", "max", "stddev", "PEIR")
    ]
    if introduced:
        statistics.append(_Column("own PEIR", _NUMBER_WIDTH, _introduced(introduced), numeric=True))
    statistics = [column for column in statistics if _is_filled(column, rows)]
    room = width - sum(gap + column.width for column in statistics)
    value, *others = (
        column for column in _optional_columns(rows, symptom) if _is_filled(column, rows)
    )
    chosen, beside = [], []
    # Modules that have another name in the candidate are called by it where there is one column.
    own = any(row.candidate_module is not None for row in rows)
    names = _longest(rows, lambda row: _label(row, with_value=False))
    if own:
        other = _fitting("candidate", _candidate, _LONGEST_NAME, rows)
        if room - 2 * gap - other.width - value.width >= _wanted(names):
            own = False
            beside.append(other)
            room -= gap + other.width
        else:
            names = _longest(rows, lambda row: _label(row, with_value=False, own=True))
    with_value = room - gap - value.width < _wanted(names)
    longest = _longest(rows, lambda row: _label(row, with_value=with_value, own=own))
    for column in others if with_value else (value, *others):
        if room - gap - column.width >= _wanted(longest):
            chosen.append(column)
            room -= gap + column.width
    header = "candidate" if own else "module"
    module = min(room, _GUTTER + max(longest, len(header)))
    if chosen and chosen[-1].header == "status":
        status = chosen.pop()
        chosen.append(replace(status, width=status.width + room - module))
    full = [_label(row, with_value=with_value, own=own) for row in rows]
    short = [_label(row, with_value=with_value, own=own, width=module - _GUTTER) for row in rows]
    labels = dict(zip(full, apart(full, short, module - _GUTTER), strict=True))

    def name(row: Row) -> str:
        mark = "▶ " if is_symptom(row, symptom) else "  "
        return mark + labels[_label(row, with_value=with_value, own=own)]

    return [_Column(f"  {header}", module, name), *beside, *statistics, *chosen]


def _is_filled(column: _Column, rows: Sequence[Row]) -> bool:
    """Whether it says anything of any row."""
    return not rows or any(column.text(row) not in ("", "-") for row in rows)


def _fitting(header: str, text: Callable[[Row], str], most: int, rows: Sequence[Row]) -> _Column:
    return _Column(header, max(len(header), min(_longest(rows, text), most)), text)


def _candidate(row: Row) -> str:
    name = row.module if row.candidate_module is None else row.candidate_module
    return shortened(name or "(root)", _LONGEST_NAME)


def _wanted(longest: int) -> int:
    """The width that the first column should have at least, for names of a length."""
    return _GUTTER + min(max(longest, len("module")), _LONGEST_NAME)


def _optional_columns(rows: Sequence[Row], symptom: Symptom | None) -> list[_Column]:
    noise = any(row.floor is not None for row in rows)
    full = list(dict.fromkeys(_value(row) for row in rows))
    short = [shortened(value, _LONGEST_VALUE) for value in full]
    values = dict(zip(full, apart(full, short, _LONGEST_VALUE), strict=True))

    def value(row: Row) -> str:
        return values[_value(row)]

    def status(row: Row) -> str:
        return _status(row, symptom)

    def shape(row: Row) -> str:
        return "x".join(map(str, row.shape))

    return [
        _fitting("value", value, _LONGEST_VALUE, rows),
        *([_Column("x noise", _NUMBER_WIDTH, _multiple, numeric=True)] if noise else []),
        _fitting("shape", shape, _LONGEST_SHAPE, rows),
        _fitting("dtype", dtypes, _LONGEST_VALUE, rows),
        _Column("SQNR dB", len("SQNR dB"), _sqnr, numeric=True),
        _Column("cosine", len("-0.123456"), _cosine, numeric=True),
        _Column("limit", _NUMBER_WIDTH, lambda row: number(row.limit), numeric=True),
        _Column("status", len("differs first"), status),
    ]


def _longest(rows: Sequence[Row], text: Callable[[Row], str]) -> int:
    return max((len(text(row)) for row in rows), default=0)


def _grid(columns: Sequence[_Column], gap: int) -> Table:
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, gap, 0, 0))
    for column in columns:
        grid.add_column(
            width=column.width,
            no_wrap=True,
            overflow="ellipsis",
            justify="right" if column.numeric else "left",
        )
    return grid


def _ended(body: Table) -> Iterator[Table]:
    if body.row_count:
        yield body


def _gap(width: int) -> int:
    return 2 if width >= _ROOMY else 1


def _label(
    row: Row, *, with_value: bool = True, own: bool = False, width: int | None = None
) -> str:
    """The row's module, with the call and the value where these are not the usual ones.

    Args:
        own: the candidate's name of it.
    """
    name = (row.candidate_module if own else None) or row.module or "(root)"
    suffix = f"#{row.call}" if row.call else ""
    if with_value and row.value != "output":
        if row.value.kind is ValueKind.OUTPUT:
            suffix += f" .{row.value.inside}"
        else:
            suffix += f" {row.value}" if row.is_output else f" ({row.value.label})"
    if width is None or len(name) + len(suffix) <= width:
        return name + suffix
    # The last part of the name tells most; the value's name takes what is left.
    parts = name.split(".")
    number_at = next((i for i in reversed(range(len(parts))) if parts[i].isdecimal()), -1)
    tail = ".".join(parts[number_at:])
    if suffix and len(name) > width - len(suffix):
        room = max(width - min(len(name), len(tail) + 1), 4)
        suffix = suffix if len(suffix) <= room else f"{suffix[: room - 1]}…"
    return shortened(name, width - len(suffix)) + suffix


def _value(row: Row) -> str:
    return row.value if row.is_output else f"argument {row.value.label}"


def statistic(name: str) -> Callable[[Row], str]:
    """What writes a statistic of a row, named as in a heading: "mean", "PEIR"."""

    def text(row: Row) -> str:
        return "-" if row.difference is None else number(getattr(row.difference, name.lower()))

    return text


def _introduced(introduced: Mapping[CallKey, float]) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        figure = introduced.get((row.module, row.call)) if row.is_output else None
        return "-" if figure is None else number(figure)

    return text


def dtypes(row: Row) -> str:
    """The dtypes of both sides, once where they are the same."""
    reference, candidate = dtype_name(row.dtype), dtype_name(row.candidate_dtype)
    return reference if reference == candidate else f"{reference}→{candidate}"


def _sqnr(row: Row) -> str:
    return "-" if row.difference is None else f"{row.difference.sqnr:.1f}"


def _multiple(row: Row) -> str:
    return "-" if row.multiple is None else f"{row.multiple:.3g}"


def _cosine(row: Row) -> str:
    return "-" if row.difference is None else f"{row.difference.cosine:.6f}"


def _status(row: Row, symptom: Symptom | None) -> str:
    word = "agrees" if row.agrees else "differs"
    if is_symptom(row, symptom):
        word = "differs first"
    return f"{word}; {row.note}" if row.note else word
