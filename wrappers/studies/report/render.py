"""Writes the report of a study: to a terminal, as .md, .html, .csv or .json."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_model.plots import empty_figure, text_of
from wrappers.errors import StudyError
from wrappers.studies.judge.figures import VERDICT, Plot, Table
from wrappers.studies.judge.judgement import MARGIN, MARGIN_SOURCE
from wrappers.studies.report.contents import Report

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_KEPT = (
    3  # columns of a table that every terminal shows: name, figure and difference; a verdict too
)
_LEAST = 12  # characters of the first column, however long the others are
_WIDTH, _HEIGHT = 640, 260  # of a drawing, in its own units
_MARGIN = 56
_LETTER = 7  # about the width of one in a drawing
# Of the lines of a drawing, on a light page and on a dark one.
_COLOURS = ("#2f6fb0", "#c2571a", "#2e8b57", "#8a4fb0", "#8a7d1f", "#555555")
_DARK_COLOURS = ("#6aa9e9", "#f0905a", "#5cc98b", "#c08be6", "#d6c558", "#a5abb3")


def _named(colours: Sequence[str]) -> str:
    """Colours as variables of a style sheet."""
    return "".join(f"--c{number}:{colour};" for number, colour in enumerate(colours))


def show(report: Report) -> None:
    """Prints a report, with tables and plots as wide as the terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(report.title, style="bold")
    if report.question:
        console.print(report.question, style="dim")
    for table in report.tables:
        console.print(_rich(table, console.width))
    for plot in report.plots:
        console.print(text_plot(plot, width=min(console.width, 100)))
    for name, value in _facts(report).items():
        console.print(f"{name}: {value}", style="dim", soft_wrap=True)
    if report.method:
        console.print(report.method, style="dim")
    for line in report.reading:
        console.print(f"- {line}")
    for line in report.failures:
        console.print(f"failed: {line}", style="red")


def _rich(table: Table, width: int) -> RichTable:
    """A table for a terminal: as many columns as fit, the first folded for the next two."""
    from rich import table as rich
    from rich.text import Text

    widths = [max(map(len, cells)) for cells in zip(table.columns, *table.rows, strict=True)]
    kept = _KEPT + (table.columns[_KEPT : _KEPT + 1] == (VERDICT,))
    room = width - 1 - sum(each + 3 for each in widths[1:kept])
    first = min(widths[0], max(_LEAST, room - 3))
    shown, taken = 1, 1 + first + 3
    for each in widths[1:]:
        taken += each + 3
        if taken > width and shown >= kept:
            break
        shown += 1
    left_out = len(table.columns) - shown
    drawn = rich.Table(
        title=Text(table.title, style="bold"),
        title_justify="left",
        caption=f"{left_out} more columns in the reports" if left_out else None,
        caption_justify="left",
    )
    for place, column in enumerate(table.columns[:shown]):
        drawn.add_column(
            Text(column),
            justify="left" if place == 0 else "right",
            no_wrap=place > 0,
            overflow="fold",
            max_width=first if place == 0 else None,
        )
    for place, row in enumerate(table.rows):
        drawn.add_row(*map(Text, row[:shown]), style="green" if place == table.best else None)
    return drawn


def text_plot(plot: Plot, *, width: int = 80) -> str:
    """A plot in characters, without colours."""
    from plotext import marker

    figure = empty_figure(width, 16)
    signs = {name: "•ox+*#"[number % 6] for number, name in enumerate(plot.series)}
    for name, points in plot.series.items():
        places, means = [p[0] for p in points], [p[1] for p in points]
        figure.draw(figure.signal(places, means, marker=marker(signs[name])))
    ticks = _ticks(plot, width - 2 * len("1.2345"), 1)
    figure.ruler("x").ticks(list(ticks), list(ticks.values()))
    figure.label(plot.x, "x")
    figure.label(plot.y, "y")
    text = text_of(figure, colour=False)
    key = ", ".join(f"{sign} {name}" for name, sign in signs.items())
    title = f"{plot.title} ({key})" if len(signs) > 1 else plot.title
    return f"{title}\n{text}"


def _ticks(plot: Plot, width: float, letter: float) -> dict[float, str]:
    """The places of a plot that are named, such that no name runs into the next.

    Args:
        plot: what is drawn.
        width: of the axis.
        letter: the width of one.
    """
    places = sorted({point[0] for points in plot.series.values() for point in points})
    unit = width / ((places[-1] - places[0]) or 1.0)
    named: dict[float, str] = {}
    end = -math.inf
    for place in places:
        name = plot.ticks[int(place)] if plot.ticks else f"{place:g}"
        half = (len(name) + 1) * letter / 2
        if place * unit - half >= end:
            named[place] = name
            end = place * unit + half
    return named


def markdown(report: Report) -> str:
    """The report for a repository or a pull request."""
    parts = [f"# {report.title}", report.question, "## What it says"]
    parts.append("\n".join(f"- {line}" for line in report.reading))
    for table in report.tables:
        rows = [table.columns, tuple("---" for _ in table.columns), *table.rows]
        lines = [
            f"| {' | '.join(_cells(row, table, place - 2))} |" for place, row in enumerate(rows)
        ]
        parts += [f"### {table.title}", "\n".join(lines)]
    parts += [f"```text\n{text_plot(plot)}\n```" for plot in report.plots]
    if report.failures:
        parts += ["## Failed", "\n".join(f"- {line}" for line in report.failures)]
    facts = "\n".join(f"- {name}: {_code(value)}" for name, value in _facts(report).items())
    parts += ["## How it was made", report.method, facts]
    return "\n\n".join(part for part in parts if part) + "\n"


def _code(text: str) -> str:
    """Text as it is, whatever signs it holds."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _cells(row: tuple[str, ...], table: Table, place: int) -> tuple[str, ...]:
    cells = tuple(cell.replace("|", "\\|") for cell in row)
    return tuple(f"**{cell}**" if cell else "" for cell in cells) if place == table.best else cells


def page(report: Report) -> str:
    """The report as one self-contained HTML file."""
    escape = html.escape
    parts = [f"<h1>{escape(report.title)}</h1>", f"<p class=q>{escape(report.question)}</p>"]
    parts.append("<ul>" + "".join(f"<li>{escape(line)}" for line in report.reading) + "</ul>")
    parts += [_drawing(plot) for plot in report.plots]
    for table in report.tables:
        head = "".join(f"<th>{escape(column)}" for column in table.columns)
        body = "".join(
            f"<tr{_classes(table, place)}>"
            + "".join(f"<td>{escape(cell)}" for cell in row[:1])
            + ("<b class=mark>recommended</b>" if place == table.recommended else "")
            + "".join(f"<td>{escape(cell)}" for cell in row[1:])
            for place, row in enumerate(table.rows)
        )
        parts.append(
            f"<h2>{escape(table.title)}</h2><div class=wide><table><tr>{head}{body}</table></div>"
        )
    if report.failures:
        parts.append("<h2>Failed</h2><ul>")
        parts += [f"<li>{escape(line)}" for line in report.failures] + ["</ul>"]
    facts = "".join(f"<tr><th>{escape(k)}<td>{escape(v)}" for k, v in _facts(report).items())
    parts.append(f"<h2>How it was made</h2><p>{escape(report.method)}</p>")
    parts.append(f"<div class=wide><table>{facts}</table></div>")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style>"
        f"<main>{''.join(parts)}</main></html>\n"
    )


def _classes(table: Table, place: int) -> str:
    """What a row is, for its style."""
    names = {"best": table.best, "recommended": table.recommended}
    found = " ".join(name for name, marked in names.items() if marked == place)
    return f" class='{found}'" if found else ""


# Dark where the reader's system is, with the lines of the drawings in lighter colours.
_STYLE = (
    ":root{color-scheme:light dark;--page:#fff;--text:#1b1f24;--line:#d6dae0;--mark:#1f7a4d;"
    f"--row:#e5f4ec;{_named(_COLOURS)}}}"
    "@media(prefers-color-scheme:dark){:root{--page:#14171b;--text:#e4e7ea;--line:#363c44;"
    f"--mark:#58c896;--row:#17342a;{_named(_DARK_COLOURS)}}}}}"
    "body{font:15px/1.5 system-ui,sans-serif;margin:0;background:var(--page);color:var(--text)}"
    "main{max-width:1100px;margin:auto;padding:1rem}.q{opacity:.75}.wide{overflow-x:auto}"
    "table{border-collapse:collapse}th,td{padding:.25rem .6rem;text-align:right;white-space:nowrap;"
    "border-bottom:1px solid var(--line)}th:first-child,td:first-child{text-align:left}"
    ".best td{font-weight:700}.recommended td{background:var(--row)}"
    ".mark{margin-left:.6rem;color:var(--mark);font-size:.85em}"
    "svg{max-width:100%;height:auto}svg text{fill:currentColor;font:12px system-ui,sans-serif}"
)


def _drawing(plot: Plot) -> str:
    """A plot as SVG: lines between means, bars of one standard deviation."""
    points = [point for series in plot.series.values() for point in series]
    names = list(plot.series) if len(plot.series) > 1 else []
    right = _WIDTH - 16 - max((len(name) + 2 for name in names), default=0) * _LETTER
    across = _scale([p[0] for p in points], _MARGIN, right)
    spread = [p[1] + sign * p[2] for p in points for sign in (-1, 1)]
    up = _scale(spread, _HEIGHT - 36, 26)
    parts = [f"<text x={_MARGIN} y=16>{html.escape(plot.title)}</text>"]
    for place, name in _ticks(plot, right - _MARGIN, _LETTER).items():
        parts.append(
            f"<text x={across(place):.1f} y={_HEIGHT - 18} text-anchor=middle>"
            f"{html.escape(name)}</text>"
        )
    middle = (_MARGIN + right) / 2
    parts.append(
        f"<text x={middle} y={_HEIGHT - 3} text-anchor=middle>{html.escape(plot.x)}</text>"
    )
    for value in (min(spread), max(spread)):
        parts.append(
            f"<text x={_MARGIN - 6} y={up(value) + 4:.1f} text-anchor=end>{value:.4g}</text>"
        )
    for number, (name, series) in enumerate(plot.series.items()):
        colour = f"var(--c{number % len(_COLOURS)})"
        line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y, _ in series)
        parts.append(f"<polyline points='{line}' fill=none style='stroke:{colour}' />")
        for x, y, deviation in series:
            at = across(x)
            parts.append(
                f"<line x1={at:.1f} x2={at:.1f} y1={up(y - deviation):.1f} "
                f"y2={up(y + deviation):.1f} style='stroke:{colour}' />"
                f"<circle cx={at:.1f} cy={up(y):.1f} r=3 style='fill:{colour}' />"
            )
        if name in names:
            parts.append(
                f"<text x={right + 2 * _LETTER} y={32 + 16 * number} style='fill:{colour}'>"
                f"{html.escape(name)}</text>"
            )
    return f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' width={_WIDTH}>{''.join(parts)}</svg>"


def _scale(values: list[float], start: float, end: float) -> Callable[[float], float]:
    low, high = min(values), max(values)
    width = (high - low) or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def table_of_results(report: Report) -> str:
    """All trials as comma-separated values, each with what reproduces it.

    The columns: settings, seed, metrics, error, seconds; then workload and environment, which are
    the same in every row.
    """
    head = {**report.head.get("workload", {}), **report.head.get("environment", {})}
    rows = [
        {
            **_flat(result.trial.settings),
            "seed": result.trial.seed,
            **_flat(result.metrics),
            "error": result.error,
            "seconds": result.seconds,
        }
        for result in report.results
    ]
    own = dict.fromkeys(name for row in rows for name in row)
    # The tasks of the workload and their scores have the same name, and so has its calibration.
    common = {f"workload_{k}" if k in own else k: v for k, v in _flat(head).items()}
    file = io.StringIO()
    writer = csv.DictWriter(file, [*own, *common], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **common} for row in rows)
    return file.getvalue()


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: json.dumps(value) if isinstance(value, list | tuple | dict) else value
        for name, value in values.items()
    }


def document(report: Report) -> str:
    """The report as JSON: what it says, each difference with its verdict, and all results.

    What is not finite is a text there: "inf", "-inf", "nan".
    """
    value = {
        "title": report.title,
        "question": report.question,
        "reading": report.reading,
        "method": report.method,
        "margin": {"loss": MARGIN, "source": MARGIN_SOURCE},
        "judgements": [
            {
                "place": each.place,
                "setting": each.setting,
                "default": each.default,
                "measured": each.measured,
                "verdict": each.difference.outcome,
                **asdict(each.difference),
            }
            for each in report.judgements
        ],
        "failures": report.failures,
        **{name: report.head.get(name, {}) for name in ("workload", "environment")},
        "results": [asdict(result) for result in report.results],
    }
    return json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _facts(report: Report) -> dict[str, str]:
    """What reproduces a report: command, versions, and the workload with its checksum."""
    workload = report.head.get("workload", {})
    environment = report.head.get("environment", {})
    seconds = sum(result.seconds for result in report.results)
    known = {**environment, **workload}
    facts = {name: str(value) for name, value in known.items() if value not in (None, [], ())}
    facts["trials"] = f"{len(report.results)}, {seconds:.0f} s in all, one thread each"
    return facts


WRITERS: Mapping[str, Callable[[Report], str]] = {
    ".md": markdown,
    ".html": page,
    ".csv": table_of_results,
    ".json": document,
}


def check_path(path: str | Path) -> None:
    """Checks that a report can be written there, before the study is run.

    Raises:
        StudyError: another suffix, or no such folder.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() not in WRITERS:
        raise StudyError(
            f"the report {path} has the suffix {file.suffix!r}; expected {', '.join(WRITERS)}"
        )
    if not file.parent.is_dir():
        raise StudyError(f"directory {file.parent} of the report does not exist; create it first")
    if (file.exists() or file.is_symlink()) and not file.is_file():
        raise StudyError(f"the report {path} is no regular file: choose another name")
    if file.exists() and not file.stat().st_mode & 0o222:
        raise StudyError(f"the report {path} is read-only: choose another name, or chmod u+w")
    if not os.access(file.parent, os.W_OK):
        raise StudyError(f"the folder {file.parent} of the report {path} is not writable")


def save(report: Report, path: str | Path) -> None:
    """Writes a report in the format of the suffix, whole or not at all.

    Raises:
        StudyError: as for `check_path`, or the file cannot be written.
    """
    check_path(path)
    target = Path(path).expanduser().resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(WRITERS[target.suffix.lower()](report), encoding="utf-8")
        if target.exists():
            shutil.copymode(target, partial)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StudyError(f"the report {path} cannot be written: {error.strerror}") from error
