"""The report for people: a table, a curve, and the verdict last.

      module                             mean      min      max   stddev     PEIR
    ──────────────────────────────────────────────────────────────────────────────
      model.embed_tokens                    0        0        0        0        0
      … 8 rows agree, PEIR at most 4.70e-07
    ▶ model…0.self_attn.o_proj       2.11e-01 3.05e-07 1.92e+00 1.90e-01 4.61e-01

What does not fit a narrow terminal (shapes, dtypes, SQNR, cosine, limits) comes with its width.
"""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from tracer.comparison import Captured, Comparison, Coverage, dtype_name
from tracer.difference import Difference
from tracer.reports import Run
from tracer.reports.curve import curve
from tracer.reports.fold import arrange, number
from tracer.reports.table import table
from tracer.rows import FormDifference
from tracer.verdict import Verdict

# The width of what is not read on a terminal, where COLUMNS does not say.
_PLAIN_WIDTH = 200
_CURVE_WIDTH = 110
_MOST_LISTED = 5
_SHOWN_VALUES = 6
_SUMMARY = ("mean", "stddev", "min", "max")
# One character for one, so that columns stay aligned.
_ASCII = str.maketrans("…▶─│┌┐└┘├┤┬┴┼╭╮╰╯→", "~>-|+++++++++++++>")


def show(
    comparison: Comparison,
    *,
    all_rows: bool = False,
    ranked: bool = False,
    focus: Sequence[Captured] = (),
    run: Run | None = None,
    console: Console | None = None,
) -> None:
    """Prints a comparison.

    Args:
        all_rows: every row, arguments included, and nothing folded.
        ranked: the candidate is quantised: differences are expected, and modules are ranked by
            how much they add.
        focus: values to print as well; see `tracer.capture`.
        run: how the comparison came about, for the head.
        console: where to; standard output by default.
    """
    console = console or make_console()
    page = console
    if console.options.ascii_only:
        page = Console(file=io.StringIO(), width=console.width, highlight=False)
    for part in _parts(comparison, all_rows, ranked, focus, run, page):
        whole = isinstance(part, Text) and part.no_wrap
        page.print(part, highlight=False, no_wrap=whole, overflow="ellipsis" if whole else "fold")
    if isinstance(page.file, io.StringIO) and page is not console:
        console.out(page.file.getvalue().translate(_ASCII), end="", highlight=False)


def make_console() -> Console:
    """A console on standard output: a terminal's own width, else COLUMNS or 200 columns."""
    console = Console(file=sys.stdout, highlight=False, emoji=False)
    if not console.is_terminal:
        columns = os.environ.get("COLUMNS", "")
        console.width = int(columns) if columns.isdecimal() and int(columns) else _PLAIN_WIDTH
    return console


def _parts(
    comparison: Comparison,
    all_rows: bool,
    ranked: bool,
    focus: Sequence[Captured],
    run: Run | None,
    console: Console,
) -> Iterator[RenderableType]:
    if run is not None:
        yield from _head(run)
    items = arrange(comparison.rows, comparison.verdict.symptom, all_rows=all_rows)
    yield from table(items, comparison.verdict.symptom, width=console.width, expected=ranked)
    yield ""
    drawn = curve(
        comparison.rows,
        width=min(console.width, _CURVE_WIDTH),
        height=14 if console.width >= _CURVE_WIDTH else 12,
        colour=console.color_system is not None and not console.no_color,
        ascii_only=console.options.ascii_only,
        expected=ranked,
    )
    if drawn:
        yield Text.from_ansi(drawn, no_wrap=True)
        yield ""
    if focus:
        yield from _focus(focus)
    yield from _coverage(comparison.coverage, comparison.form_differences)
    yield _verdict(comparison.verdict, console, expected=ranked)


def _head(run: Run) -> Iterator[RenderableType]:
    yield Text(f"{run.reference} against {run.candidate}", style="bold")
    for note in run.notes:
        yield Text(note, style="dim")
    yield ""


def _focus(focus: Sequence[Captured]) -> Iterator[RenderableType]:
    """The actual values of each tensor, both sides under each other."""
    for (module, call), values in groupby(focus, key=lambda value: (value.module, value.call)):
        yield Text(f"values of {module or 'the root'}, call {call}", style="bold")
        for value in values:
            yield from _value_lines(value)
        yield ""


def _value_lines(value: Captured) -> Iterator[RenderableType]:
    r, c = value.reference, value.candidate
    form = _form(r) if _form(r) == _form(c) else f"{_form(r)}, candidate {_form(c)}"
    yield Text(f"  {value.value.removeprefix('kwargs.')}, {form}", no_wrap=True)
    if not r.is_complex():
        head = "".join(f"{name:>10}" for name in _SUMMARY)
        yield Text(f"{'':13}{head}  first values", style="dim", no_wrap=True)
    for side, tensor in (("reference", r), ("candidate", c)):
        yield Text(f"    {side}{_numbers(tensor)}", no_wrap=True)
    if r.shape != c.shape or not r.numel():
        return
    difference = Difference.of(r, c)
    if difference.max > 0:
        peak = torch.unravel_index(torch.tensor(difference.peak_index), r.shape)
        yield Text(
            f"    furthest apart at {[int(i) for i in peak]}: {_item(r[peak])} and "
            f"{_item(c[peak])}, PEIR {number(difference.peir)}",
            no_wrap=True,
        )


def _form(tensor: torch.Tensor) -> str:
    return f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"


def _numbers(tensor: torch.Tensor) -> str:
    """Statistics in columns, then the first values."""
    if not tensor.numel():
        return "  empty"
    flat = tensor.flatten()
    first = ", ".join(_item(item) for item in flat[:_SHOWN_VALUES])
    values = f"  {first}{', …' if flat.numel() > _SHOWN_VALUES else ''}"
    if tensor.is_complex():
        return values
    exact = flat.double()
    statistics = exact.mean(), exact.std(correction=0), exact.min(), exact.max()
    return "".join(f"{statistic.item():>10.3g}" for statistic in statistics) + values


def _item(item: torch.Tensor) -> str:
    plain = item.item()
    return f"{plain:.4g}" if isinstance(plain, float | complex) else str(plain)


def _coverage(coverage: Coverage, forms: Sequence[FormDifference]) -> Iterator[RenderableType]:
    yield Text(f"coverage: {coverage}", style="dim")
    unpaired = [
        f"{name or 'the root'}: {coverage.reasons[name]}"
        for name in (*coverage.reference_only, *coverage.candidate_only)
    ]
    unpaired += [
        f"{name or 'the root'}, call {call}: made by the {side} only"
        for side, name, call in coverage.unmatched_calls
    ]
    yield from _listed("unpaired", unpaired)
    passed = [
        f"{form.value.removeprefix('kwargs.')} of {form.module or 'the root'}: "
        f"{form.reference}; candidate {form.candidate}"
        for form in forms
    ]
    yield from _listed("passed in another form", passed)
    yield ""


def _listed(title: str, lines: Sequence[str]) -> Iterator[RenderableType]:
    for line in lines[:_MOST_LISTED]:
        yield Text(f"{title}: {line}", style="dim")
    if len(lines) > _MOST_LISTED:
        yield Text(f"{title}: {len(lines) - _MOST_LISTED} more", style="dim")


def _verdict(verdict: Verdict, console: Console, *, expected: bool) -> RenderableType:
    if verdict.agrees or verdict.symptom is None:
        headline, style = "agrees", "green"
    else:
        symptom = verdict.symptom
        headline = f"diverges at {symptom.module or 'the root'}"
        if symptom.value.startswith("kwargs."):
            headline += f", argument {symptom.value.removeprefix('kwargs.')}"
        headline += f", call {symptom.call}" if symptom.call else ""
        headline += f", PEIR {number(symptom.peir)}"
        style = "red"
        if expected:
            headline, style = f"{headline}, as expected of a quantised candidate", "yellow"
    lines = Group(Text(headline, style=f"bold {style}"), Text(verdict.explanation))
    if not console.is_terminal:
        return lines
    return Panel(lines, border_style=style, title="verdict", title_align="left")
