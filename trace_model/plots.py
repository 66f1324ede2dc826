"""Points in a frame, drawn in characters.

1e-5┤      •         │
    │ •              │
   0┤         •     •│
    └┬───────┬───────┘
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BRAILLE = "braille"
"""A sign that is as fine as eight dots in a character."""

# What is beside the rows of points: the frame and its ticks, the names of these, the labels.
_LINES_AROUND, _COLUMNS_AROUND = 4, 2
_COLOURS = {"red": 1, "blue": 4, "orange": 3}
_BLANK = 0x2800
# The bits of Braille's dots, in rows of two.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


@dataclass(frozen=True)
class Axis:
    """An axis with the values at its ends.

    Attributes:
        ticks: the names of values, those that are shown.
    """

    label: str
    ticks: Mapping[float, str]
    low: float
    high: float

    def place(self, value: float, count: int) -> int:
        """Which of so many places from the low end to the high one a value has."""
        span = self.high - self.low
        share = (value - self.low) / span if 0.0 < span < math.inf else 0.5
        return round(share * (count - 1))


@dataclass(frozen=True)
class Points:
    """What is drawn alike.

    Attributes:
        places: (x, y) of each.
        sign: a character, or `BRAILLE`.
        colour: red, blue or orange, by escape codes; None without.
    """

    places: Sequence[tuple[float, float]]
    sign: str = "•"
    colour: str | None = None


def even_ticks(low: float, high: float, count: int) -> dict[float, str]:
    """So many values from one to another with their names; one where these are the same."""
    steps = range(count if high > low else 1)
    return {tick: f"{tick:.3g}" for tick in (low + (high - low) * i / (count - 1) for i in steps)}


def plot(series: Sequence[Points], x: Axis, y: Axis, *, width: int, height: int) -> str:
    """Points over each other, the last ones in front, as lines of text.

    Args:
        width, height: of all of it, in characters.
    """
    margin = max(map(len, y.ticks.values()), default=0)
    columns = max(1, width - margin - _COLUMNS_AROUND)
    rows = max(1, height - _LINES_AROUND)
    cells: dict[tuple[int, int], str] = {}
    for points in series:
        drawn = _dotted if points.sign == BRAILLE else _signed
        for cell, sign in drawn(points, x, y, columns, rows).items():
            cells[cell] = _coloured(sign, points.colour)
    names = {rows - 1 - y.place(value, rows): name for value, name in y.ticks.items()}
    lines = [f"{' ' * margin}┌{'─' * columns}┐"]
    for row in range(rows):
        edge = "┤" if row in names else "│"
        inner = "".join(cells.get((row, column), " ") for column in range(columns))
        lines.append(f"{names.get(row, ''):>{margin}}{edge}{inner}│")
    lines += _below(x, margin, columns)
    lines.append(f"{y.label:<{max(0, (width - len(x.label)) // 2 + 1)}}{x.label}")
    return "\n".join(line.rstrip() for line in lines)


def _signed(
    points: Points, x: Axis, y: Axis, columns: int, rows: int
) -> dict[tuple[int, int], str]:
    """The sign in each cell, (row, column), that has a point."""
    return {
        (rows - 1 - y.place(high, rows), x.place(along, columns)): points.sign
        for along, high in points.places
    }


def _dotted(
    points: Points, x: Axis, y: Axis, columns: int, rows: int
) -> dict[tuple[int, int], str]:
    """The same in Braille."""
    tall, wide = len(_DOTS), len(_DOTS[0])
    found: dict[tuple[int, int], int] = {}
    for along, high in points.places:
        row, dot_row = divmod(rows * tall - 1 - y.place(high, rows * tall), tall)
        column, dot_column = divmod(x.place(along, columns * wide), wide)
        found[row, column] = found.get((row, column), _BLANK) | _DOTS[dot_row][dot_column]
    return {cell: chr(code) for cell, code in found.items()}


def _coloured(sign: str, colour: str | None) -> str:
    return sign if colour is None else f"\x1b[38;5;{_COLOURS[colour]}m{sign}\x1b[0m"


def _below(x: Axis, margin: int, columns: int) -> tuple[str, str]:
    """The frame with its ticks, and their names as far as none runs into the one before."""
    frame, names = ["─"] * columns, ""
    for value, name in x.ticks.items():
        place = x.place(value, columns)
        frame[place] = "┬"
        start = max(0, min(place - (len(name) - 1) // 2, columns - len(name)))
        if not names or start > len(names):
            names = f"{names:<{start}}{name}"
    return f"{' ' * margin}└{''.join(frame)}┘", f"{' ' * (margin + 1)}{names}"
