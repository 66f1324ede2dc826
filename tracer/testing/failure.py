"""The text of a failed assertion: the verdict, the rows around it, and the source of both sides.

diverges: model.py:12, in `mlp.up`
The error is introduced in the forward of `mlp.up` itself: its inputs agree, its output does not.
...
  module      mean      min      max   stddev     PEIR
────────────────────────────────────────────────────
▶ mlp.up  1.12e-01 1.40e-03 5.05e-01 9.76e-02 3.31e-01
"""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from tracer.comparison.result import Comparison
from tracer.reports.console import as_text, coverage_lines
from tracer.reports.parts.excerpt import Place, numbered, places
from tracer.reports.parts.fold import around, arrange
from tracer.reports.parts.headline import headline
from tracer.reports.parts.table import table

# A line of 100 columns, of which pytest takes 8 for its margin.
WIDTH = 92
_MOST_ROWS, _MOST_ORIGINS = 20, 3


def render(comparison: Comparison, reason: str = "", *, width: int = WIDTH) -> str:
    """The text, without an end of line.

    Args:
        reason: what is wrong, if that is not the verdict's to say.
        width: in characters.
    """
    return as_text(_parts(comparison, reason, width), width).rstrip("\n")


def _parts(comparison: Comparison, reason: str, width: int) -> Iterator[RenderableType]:
    said, symptom = headline(comparison), comparison.verdict.symptom
    yield Text(reason or said.line)
    yield Text(said.text)
    yield ""
    items = around(arrange(comparison.rows, symptom), symptom, _MOST_ROWS)
    yield from table(items, symptom, width=width)
    yield ""
    for place in places(comparison)[:_MOST_ORIGINS]:
        yield from _sources(place, width)
    yield from coverage_lines(comparison)


def _sources(place: Place, width: int) -> Iterator[RenderableType]:
    """The lines of both sides, for as far as they can be read here."""
    yield Text(place.words)
    for side, found in place.sources.items():
        yield Text(f"{side}: {found.place}")
        if found.lines:
            yield Text(numbered(found, width))
    yield ""
