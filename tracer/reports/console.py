"""The report for people: a table, a curve, and the verdict last.

      module                             mean      min      max   stddev     PEIR
    ──────────────────────────────────────────────────────────────────────────────
      model.embed_tokens                    0        0        0        0        0
      … 8 rows agree, PEIR at most 4.70e-07
    ▶ model…0.self_attn.o_proj       2.11e-01 3.05e-07 1.92e+00 1.90e-01 4.61e-01

What does not fit a narrow terminal (shapes, dtypes, SQNR, cosine, limits) comes with its width.
"""

import io
import math
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.panel import Panel
from rich.segment import Segment
from rich.text import Text

from tracer.comparison.capturing import Captured
from tracer.comparison.result import Comparison
from tracer.reports import Run, notebook
from tracer.reports.narrator.cause import is_at_a_line
from tracer.reports.parts import gate
from tracer.reports.parts.curve import curve
from tracer.reports.parts.excerpt import numbered_lines, places
from tracer.reports.parts.fold import arrange, number
from tracer.reports.parts.headline import headline
from tracer.reports.parts.isolation import introduced, section
from tracer.reports.parts.legend import legend
from tracer.reports.parts.ranking import Ranked, ranking
from tracer.reports.parts.summary import box, scatter
from tracer.reports.parts.table import shortened, table
from tracer.reports.parts.unseen import forms_in_short, fused, rename_rules, unpaired
from tracer.tensors.difference import Difference
from tracer.tensors.leaves import dtype_name
from tracer.text import listed, visible

# The width of what is not read on a terminal, where COLUMNS does not say.
_PLAIN_WIDTH = 200
_CURVE_WIDTH = 110
_PANEL_WIDTH, _PANEL_MARGIN = 120, 4
_LINES_AROUND = 2
_SCATTER_WIDTH, _SCATTER_HEIGHT = 64, 24
_MOST_LISTED = 5
_MOST_NAMES = 3
_MOST_RANKED = 10
_SHOWN_VALUES = 6
_STYLES = {"agrees": "green", "diverges": "red", "expected": "yellow", "unknown": "yellow"}
_SUMMARY = ("mean", "stddev", "min", "max")
# One character for one, so that columns stay aligned; the curve has Braille where it is dense.
_BRAILLE = range(0x2801, 0x2900)
_ASCII = dict.fromkeys(_BRAILLE, "*") | str.maketrans("…▶─│┌┐└┘├┤┬┴┼╭╮╰╯→•", "~>-|+++++++++++++>*")


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
    _print(_parts(comparison, all_rows, ranked, focus, run, console), console)


def show_rows(
    comparison: Comparison, *, all_rows: bool = False, console: Console | None = None
) -> None:
    """Prints the table only, of a comparison that did not come to its end."""
    console = console or make_console()
    items = arrange(comparison.rows, comparison.verdict.symptom, all_rows=all_rows)
    _print(table(items, comparison.verdict.symptom, width=console.width), console)


def show_parts(parts: Iterable[RenderableType], console: Console | None = None) -> None:
    """Prints parts of a report."""
    _print(parts, console or make_console())


def error_summary(
    reference: torch.Tensor,
    quantized: torch.Tensor,
    *,
    title: str,
    extra: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
    console: Console | None = None,
) -> None:
    """Prints what quantisation did to an output: mean |diff|, PEIR, and a scatter of the values.

    Args:
        reference: what the float module gives.
        quantized: what the quantised one gives, of the same shape.
        title: what was quantised, in words.
        extra: further outputs by name, float and quantised, such as the new key and value of a
            decode step; they have figures and no scatter.
        console: where to; standard output by default.

    Raises:
        ShapeMismatchError: the shapes of a pair differ.
    """
    console = console or make_console()
    pairs = [("output", (reference, quantized)), *(extra or {}).items()]
    parts = [box(title, [(name, Difference.of(r, q)) for name, (r, q) in pairs])]
    drawn = scatter(
        reference,
        quantized,
        width=min(console.width, _SCATTER_WIDTH),
        height=_SCATTER_HEIGHT,
        colour=console.color_system is not None and not console.no_color,
    )
    if drawn:
        parts.append(Text.from_ansi(drawn, no_wrap=True))
    _print(parts, console)


def make_console() -> Console:
    """A console on standard output: a terminal's own width, else COLUMNS or 200 columns; in the
    output of a notebook's cell 100.

    What goes into another program (less, head) is as wide as the terminal that standard error is.
    """
    # In a notebook a console of rich's would put each part into an output of its own.
    console = _Console(file=sys.stdout, highlight=False, emoji=False, force_jupyter=False)
    if notebook.is_shown_in():
        console.width = notebook.WIDTH
    elif not console.is_terminal:
        columns = os.environ.get("COLUMNS", "")
        given = int(columns) if columns.isdecimal() else 0
        console.width = given or _width_beside() or _PLAIN_WIDTH
    return console


def _width_beside() -> int:
    """The width of the terminal that standard error is, if standard output is a pipe; else 0."""
    try:
        if stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode) and sys.stderr.isatty():
            return os.get_terminal_size(sys.stderr.fileno()).columns
    except (AttributeError, OSError, ValueError):  # a stream that is closed, or no file
        return 0
    return 0


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves it to the caller; rich would end the process with the code of a divergence."""
        raise


@dataclass(frozen=True)
class _Visible:
    """Something to print, its control characters as signs that a terminal does not obey."""

    part: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for text, style, control in console.render(self.part, options):
            yield Segment(text if control else visible(text), style, control)


def _print(parts: Iterable[RenderableType], console: Console) -> None:
    """Prints on a terminal at once, and elsewhere as plain text without trailing blanks."""
    if console.is_terminal and not console.options.ascii_only:
        _print_styled(parts, console)
        return
    text = as_text(parts, console.width)
    if console.options.ascii_only:
        text = text.translate(_ASCII).encode("ascii", "replace").decode()
    console.out(text, end="", highlight=False)


def as_text(parts: Iterable[RenderableType], width: int) -> str:
    """What a console of some width would show, as plain text without trailing blanks."""
    page = io.StringIO()
    _print_styled(parts, Console(file=page, width=width, force_terminal=False))
    return "".join(f"{line.rstrip()}\n" for line in page.getvalue().splitlines())


def _print_styled(parts: Iterable[RenderableType], console: Console) -> None:
    for part in parts:
        whole = isinstance(part, Text) and part.no_wrap
        console.print(
            _Visible(part), highlight=False, no_wrap=whole, overflow="ellipsis" if whole else "fold"
        )


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
    expected = ranked if run is None else run.differences_expected
    items = arrange(comparison.rows, comparison.verdict.symptom, all_rows=all_rows)
    yield from table(
        items,
        comparison.verdict.symptom,
        width=console.width,
        expected=expected,
        introduced=introduced(comparison.isolation),
    )
    yield Text(legend(comparison.rows), style="dim")
    yield ""
    drawn = curve(
        comparison.rows,
        width=min(console.width, _CURVE_WIDTH),
        height=14 if console.width >= _CURVE_WIDTH else 12,
        colour=console.color_system is not None and not console.no_color,
        expected=expected,
    )
    if drawn:
        yield Text.from_ansi(drawn, no_wrap=True)
        yield ""
    if focus:
        yield from _focus(focus)
    if comparison.isolation is not None:
        yield from section(comparison.isolation, console.width)
    elif ranked:
        yield from _ranking(ranking(comparison.rows), console.width)
    yield from coverage_lines(comparison)
    yield _verdict(comparison, console, expected=expected)
    if comparison.gate is not None:
        yield from gate.section(comparison.gate, console.width)


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
    yield Text(f"  {value.value.label}, {form}", no_wrap=True)
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


def _ranking(ranked: Sequence[Ranked], width: int) -> Iterator[RenderableType]:
    if not ranked:
        return
    yield Text("where the error grows: PEIR of the output over the largest of the inputs", "bold")
    yield Text(f"  {'PEIR in':>8}  {'PEIR out':>8}  {'growth':>6}  module", "dim", no_wrap=True)
    for item in ranked[:_MOST_RANKED]:
        growth = "exact" if math.isinf(item.growth) else f"{item.growth:.3g}"
        call = f"#{item.call}" if item.call else ""
        name = f"{item.module or 'the root'}{call}"
        yield Text(
            f"  {number(item.input_peir):>8}  {number(item.peir):>8}  {growth:>6}  "
            f"{shortened(name, width - 30)}",
            no_wrap=True,
        )
    if len(ranked) > _MOST_RANKED:
        yield Text(f"  … {len(ranked) - _MOST_RANKED} more", "dim")
    yield ""


def coverage_lines(comparison: Comparison) -> Iterator[RenderableType]:
    """How much was compared, and what was not and why."""
    yield Text(f"coverage: {comparison.coverage}", style="dim")
    yield from _grouped("unpaired", unpaired(comparison))
    yield from _grouped("fused", fused(comparison))
    yield from _grouped("paired by what they hold", rename_rules(comparison))
    forms = forms_in_short(comparison)
    if forms:
        yield Text(f"in another form: {forms}", style="dim")
    yield ""


def _grouped(title: str, groups: Mapping[str, Sequence[str]]) -> Iterator[RenderableType]:
    """One line for all names of which the same can be said, for the first few such groups."""
    for said, names in list(groups.items())[:_MOST_LISTED]:
        places = listed([name or "the root" for name in names], _MOST_NAMES)
        yield Text(f"{title}: {said}: {places}", style="dim")
    if len(groups) > _MOST_LISTED:
        rest = sum(len(names) for names in list(groups.values())[_MOST_LISTED:])
        yield Text(f"{title}: {rest} more", style="dim")


def _verdict(comparison: Comparison, console: Console, *, expected: bool) -> RenderableType:
    said = headline(comparison, expected=expected)
    style = _STYLES[said.tone]
    width = min(console.width, _PANEL_WIDTH)
    source = [] if expected else _source(comparison, width - _PANEL_MARGIN)
    lines = Group(Text(said.line, style=f"bold {style}"), *source, Text(said.text))
    if not console.is_terminal:
        return lines
    return Panel(lines, border_style=style, title="verdict", title_align="left", width=width)


def _source(comparison: Comparison, width: int) -> Iterator[RenderableType]:
    """The lines around the first origin on both sides, the candidate's first."""
    if not is_at_a_line(comparison.verdict):
        return
    for place in places(comparison, _LINES_AROUND)[:1]:
        reference, candidate = place.sources["reference"], place.sources["candidate"]
        sides = {"candidate": candidate, "reference": reference}
        if reference == candidate:
            sides = {"both": candidate}
        for side, found in sides.items():
            if found.lines:
                yield Text(f"{side}: {found.place}", style="dim")
                for line, text in numbered_lines(found, width):
                    yield Text(text, "bold" if line == found.marked else "dim", no_wrap=True)
