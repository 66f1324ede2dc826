"""What the gate has decided, for people: the outcome, the reasons, and what has changed.

gate: fails (--fail-on regression)
  2 of 71 outputs are worse than in main.json: first `lm_head`, relative L2 0.0213 → 0.31, ...
           L2 then       now  PEIR then       now  output
  worse   2.13e-02  3.10e-01   5.60e-02  8.11e-01  lm_head
  better  1.05e-02  4.20e-03   3.73e-03  1.11e-03  model.layers.0.mlp
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from tracer.reports.narrator.gate import counts, findings, outcome
from tracer.reports.parts.fold import number
from tracer.reports.parts.table import shortened

if TYPE_CHECKING:
    from tracer.regression.baseline import Figures
    from tracer.regression.result import Change, Gate

MOST_CHANGES = 10
HEADS = ("L2 then", "now", "PEIR then", "now")
_KIND_WIDTH, _COLUMN_WIDTH, _GAP = 6, 9, 2
_NAME_AT = 2 + _KIND_WIDTH + len(HEADS) * (_COLUMN_WIDTH + 1) + _GAP
_STYLES = {True: "red", False: "dim"}


def section(gate: "Gate", width: int, *, all_changes: bool = False) -> Iterator[RenderableType]:
    """The lines of the gate for a terminal.

    Args:
        width: in characters.
        all_changes: none is left out.
    """
    yield ""
    yield Text(outcome(gate), style="bold green" if gate.passes else "bold red")
    for line in findings(gate):
        yield Padding(Text(line), (0, 0, 0, 2))
    shown = gate.changes if all_changes else gate.changes[:MOST_CHANGES]
    if shown:
        heads = "".join(f"{head:>{_COLUMN_WIDTH + 1}}" for head in HEADS)
        yield Text(f"  {'':{_KIND_WIDTH}}{heads}  output", "dim", no_wrap=True)
    for change in shown:
        cells = "".join(f"{cell:>{_COLUMN_WIDTH + 1}}" for cell in figures(change))
        name = _fitting(change, max(width - _NAME_AT, 8))
        yield Text(
            f"  {change.kind:{_KIND_WIDTH}}{cells}  {name}", _STYLES[change.fails], no_wrap=True
        )
    if not all_changes and (rest := the_rest(gate)):
        yield Text(f"  … {rest}", "dim")


def figures(change: "Change") -> tuple[str, str, str, str]:
    """A change's relative L2 error then and now, and its PEIR then and now."""
    before, now = change.before, change.now
    return (*_pair(before, now, "relative_l2"), *_pair(before, now, "peir"))


def name_of(change: "Change") -> str:
    """The output of a change: "model.norm", "model.layers.0#2 (output.1)"."""
    call = f"#{change.call}" if change.call else ""
    value = f" ({change.value})" if change.value != "output" else ""
    return f"{change.module or 'the root'}{call}{value}"


def the_rest(gate: "Gate") -> str:
    """What is said of the changes that are not shown; the empty string where all are."""
    rest = gate.changes[MOST_CHANGES:]
    return f"{len(rest)} more: {counts(rest)}" if rest else ""


def _fitting(change: "Change", width: int) -> str:
    """The output of a change in at most this many characters; its module comes first."""
    name = name_of(change)
    return name if len(name) <= width else shortened(name.partition(" ")[0], width)


def _pair(before: "Figures | None", now: "Figures | None", name: str) -> tuple[str, str]:
    """A figure then and now; what is estimated is marked."""
    first, second = (
        "-"
        if side is None
        else f"{'~' if side.estimated else ''}{number(float(getattr(side, name)))}"
        for side in (before, now)
    )
    return first, second
