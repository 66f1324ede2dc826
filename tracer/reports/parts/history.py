"""Reports of many commits as a table and a curve.

tiny-llama (LlamaForCausalLM, float32, cpu) against quantized (variant prefill, ...)
  date              commit   code  verdict       PEIR   SQNR    cosine  report
  2026-11-28 09:14  0783d96     0  diverges  5.48e-02  19.9   0.994921  0783d96.json
  2026-11-30 12:02  76ab408     1  diverges  2.11e-01   8.3   0.931442  76ab408.json
"""

from collections.abc import Iterator, Sequence
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from tracer.reports.narrator.gate import mismatch
from tracer.reports.parts.curve import drawn
from tracer.reports.parts.fold import number
from tracer.reports.parts.table import shortened
from tracer.text import listed

if TYPE_CHECKING:
    from tracer.regression.history import Entry, History

_SHORT_COMMIT = 7
_DATE = "%Y-%m-%d %H:%M"
_HEIGHT, _MOST_WIDE = 12, 110
_MOST_LISTED = 3


def section(
    history: "History", folder: Path, width: int, *, what: str, colour: bool
) -> Iterator[RenderableType]:
    """The lines for a terminal: for each pair of models a table, and a curve from three reports on.

    Args:
        folder: that the reports are in.
        width: in characters.
        what: the figures are of, in words.
        colour: with escape codes for colours.
    """
    for title, entries in history.by_title.items():
        yield Text(title, style="bold")
        yield Text(f"figures of {what}", style="dim")
        yield from _table(entries, folder, width)
        yield from _changes(history, entries, folder)
        points = [
            (entry.figures.peir, not entry.exit_code)
            for entry in entries
            if entry.figures is not None
        ]
        curve = drawn(
            points,
            width=min(width, _MOST_WIDE),
            height=_HEIGHT,
            colour=colour,
            label="reports, the oldest first",
        )
        if curve:
            yield ""
            yield Text.from_ansi(curve, no_wrap=True)
        yield ""
    if history.left_out:
        names = [str(path.relative_to(folder)) for path, _ in history.left_out]
        yield Text(f"no reports of trace_model: {listed(names, _MOST_LISTED)}", style="dim")


def in_a_line(entry: "Entry") -> str:
    """A report: its commit, date and exit code, and what it compares."""
    said = [str(entry.path)]
    if entry.commit:
        said.append(f"commit {_commit(entry)}")
    said.append(_date(entry))
    if entry.exit_code is not None:
        said.append(f"exit code {entry.exit_code}")
    return f"{', '.join(said)}: {entry.title}"


def _table(entries: "Sequence[Entry]", folder: Path, width: int) -> Iterator[RenderableType]:
    head = "date", "commit", "code", "verdict", "PEIR", "SQNR", "cosine", "report"
    rows = [head, *(_cells(entry, folder) for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = max(width - sum(widths[:-1]) - 2 * len(widths), 12)
    for place, row in enumerate(rows):
        cells = [
            f"{cell:>{wide}}" if column in (2, 4, 5, 6) else f"{cell:{wide}}"
            for column, (cell, wide) in enumerate(zip(row[:-1], widths, strict=False))
        ]
        name = row[-1] if len(row[-1]) <= room else shortened(row[-1], room)
        style = "dim" if not place else ("red" if entries[place - 1].exit_code == 1 else "")
        yield Text("  ".join(["", *cells, name]), style, no_wrap=True)


def _cells(entry: "Entry", folder: Path) -> tuple[str, ...]:
    found = entry.figures
    sqnr = None if found is None else found.sqnr
    cosine = None if found is None else found.cosine
    return (
        _date(entry),
        _commit(entry) or "-",
        "-" if entry.exit_code is None else str(entry.exit_code),
        entry.outcome if entry.passes is not False else f"{entry.outcome}, gate fails",
        "-" if found is None else number(found.peir),
        "-" if sqnr is None else f"{sqnr:.1f}",
        "-" if cosine is None else f"{cosine:.6f}",
        str(entry.path.relative_to(folder)),
    )


def _changes(
    history: "History", entries: "Sequence[Entry]", folder: Path
) -> Iterator[RenderableType]:
    """Where figures are of another comparison than those above them."""
    for entry, found in history.others(entries):
        said = "; ".join(map(mismatch, found))
        name = entry.path.relative_to(folder)
        yield Text(f"  from {name} on it is another comparison: {said}", style="yellow")


def _date(entry: "Entry") -> str:
    """Of the commit where it is known, which is what the order goes by; in UTC."""
    return (entry.commit_date or entry.date).astimezone(UTC).strftime(_DATE)


def _commit(entry: "Entry") -> str:
    name, dirty, _ = entry.commit.partition("-dirty")
    return name[:_SHORT_COMMIT] + ("+" if dirty else "")
