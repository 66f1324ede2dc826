"""The curve of PEIR over the calls in execution order, on a log scale, drawn by plotext."""

import math
from collections.abc import Sequence

from trace_model.plots import empty_figure, text_of
from tracer.measurement.rows import Row

_FEWEST_POINTS = 3
_MOST_TICKS = 7
# Columns of the ruler and the frame.
_MARGIN = 8
_AGREES, _DIFFERS, _EXPECTED = "blue", "red", "orange"


def curve(
    rows: Sequence[Row], *, width: int, height: int, colour: bool = False, expected: bool = False
) -> str:
    """The curve as lines of text; empty where there are too few points, or all of them are 0.

    Args:
        rows: all rows; the largest PEIR of each call's output is one point.
        width, height: in characters.
        colour: with escape codes for colours.
        expected: differing points are in the colour of a remark rather than of an alarm.
    """
    return drawn(
        _points(rows),
        width=width,
        height=height,
        colour=colour,
        expected=expected,
        label="calls in execution order",
    )


def drawn(
    points: Sequence[tuple[float, bool]],
    *,
    width: int,
    height: int,
    label: str,
    colour: bool = False,
    expected: bool = False,
) -> str:
    """A curve of PEIRs, each with whether it agrees, as for `curve`.

    Args:
        label: of what follows on each other.
    """
    finite = [math.log10(peir) for peir, _ in points if 0.0 < peir < math.inf]
    if len(points) < _FEWEST_POINTS or not finite:
        return ""
    from plotext import marker

    low, high = math.floor(min(finite)), math.ceil(max(finite))
    # Neither 0 nor infinity has a place on a log scale: they get the lines below and above it.
    places = {0.0: low - 1.0, math.inf: high + 1.0}
    symbol = "•" if len(points) <= width - _MARGIN else "braille"
    figure = empty_figure(width, height)
    for kind, tone in ((True, _AGREES), (False, _EXPECTED if expected else _DIFFERS)):
        chosen = [(x, peir) for x, (peir, agrees) in enumerate(points, 1) if agrees == kind]
        if chosen:
            ys = [places[peir] if peir in places else math.log10(peir) for _, peir in chosen]
            point = marker(symbol, pixel=tone if colour else None)
            figure.draw(figure.signal([x for x, _ in chosen], ys, marker=point))
    step = max(1, math.ceil((high - low) / _MOST_TICKS))
    ticks = {float(exponent): f"1e{exponent}" for exponent in range(low, high + 1, step)}
    present = {peir for peir, _ in points}
    ticks |= {places[peir]: f"{peir:g}" for peir in places if peir in present}
    figure.ruler("y").ticks(list(ticks), list(ticks.values()))
    figure.ruler("y").lim(min(low, *ticks), max(high, *ticks))
    stride = max(1, math.ceil(len(points) / (_MOST_TICKS + 1)))
    counted = list(range(1, len(points) + 1, stride))
    figure.ruler("x").ticks(counted, [str(x) for x in counted])
    figure.label("PEIR", "y")
    figure.label(label, "x")
    return text_of(figure, colour=colour)


def _points(rows: Sequence[Row]) -> list[tuple[float, bool]]:
    """(PEIR, agrees) of each call's output: its worst leaf."""
    calls: dict[tuple[str, int], tuple[float, bool]] = {}
    for row in rows:
        if row.is_output:
            peir, agrees = calls.get((row.module, row.call), (0.0, True))
            calls[row.module, row.call] = max(peir, row.peir), agrees and row.agrees
    return list(calls.values())
