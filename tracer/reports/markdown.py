"""The report for a comment on a pull request or the summary of a job: Markdown, at most 60 KB.

    ## ❌ diverges: port.py:27, in `blocks.0.attn` (reference: `model.layers.0.self_attn`)

    > The error is introduced in the forward of `blocks.0.attn` itself: its inputs agree, its ...

Sections come in the order of what they are worth; those that would go beyond the limit are left
out, and the end says so.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tracer.comparison.result import Comparison
from tracer.environment import environment
from tracer.isolation.result import Isolation
from tracer.measurement.rows import Row
from tracer.reports import Run
from tracer.reports.narrator.gate import findings, outcome
from tracer.reports.narrator.isolation import in_its_own, rounding_in_words
from tracer.reports.parts import gate, isolation
from tracer.reports.parts.curve import curve
from tracer.reports.parts.excerpt import Place, numbered, places
from tracer.reports.parts.fold import Fold, around, arrange, is_symptom, number
from tracer.reports.parts.headline import headline
from tracer.reports.parts.legend import legend
from tracer.reports.parts.ranking import ranking
from tracer.reports.parts.table import statistic
from tracer.reports.parts.unseen import forms_in_short, fused, rename_rules, unpaired
from tracer.text import cut, listed

if TYPE_CHECKING:
    from tracer.regression.result import Gate

# Of a file, in bytes: a comment may hold 65,536 characters.
LIMIT = 60_000
# What the last line may take of it.
_CLOSING = 200

_MARKS = {"agrees": "✅", "diverges": "❌", "expected": "⚠️", "unknown": "⚠️"}
_MOST_LINES, _LONGEST_LINE = 60, 1_000
_MOST_ORIGINS, _MOST_ROWS, _MOST_RANKED, _MOST_GROUPS, _MOST_NAMES = 5, 40, 10, 8, 5
_CURVE_WIDTH, _CURVE_HEIGHT = 100, 14
_LONGEST_CELL, _LONGEST_SOURCE = 120, 130
# What Markdown or HTML would take for markup, outside of code.
_SPECIAL = re.compile(r"([\\*_{}\[\]<>&|#~$@`])")
_CODE = re.compile(r"(`[^`]+`)")


def render(comparison: Comparison, run: Run | None = None) -> str:
    """The report as text of at most `LIMIT` bytes."""
    expected = run is not None and run.differences_expected
    sections = [
        "\n".join(_verdict(comparison, run, expected)),
        *(f"{title}\n\n{body}" for title, body in _sections(comparison, run, expected) if body),
    ]
    kept, left_out = _fitting(sections, LIMIT - _CLOSING)
    if left_out:
        kept.append(f"_{left_out} sections were left out: they do not fit in {LIMIT // 1000} KB._")
    return "\n\n".join(kept) + "\n"


def _verdict(comparison: Comparison, run: Run | None, expected: bool) -> Iterator[str]:
    said = headline(comparison, expected=expected)
    yield f"## {_MARKS[said.tone]} {_with_code(cut(said.line, _LONGEST_LINE))}"
    yield ""
    if run is not None:
        models = (_escaped(cut(model, _LONGEST_LINE)) for model in (run.reference, run.candidate))
        yield "**{}** against **{}**".format(*models)
        yield ""
    lines = said.text.splitlines()
    shown, left_out = _fitting([_quoted(line) for line in lines[:_MOST_LINES]], LIMIT // 2)
    yield from shown
    if left_out or len(lines) > _MOST_LINES:
        yield f"> … {len(lines) - len(shown)} more lines"


def _quoted(line: str) -> str:
    """A line with a break at its end; its indentation is made of spaces that stay."""
    indent = len(line) - len(line.lstrip())
    return f"> {'&nbsp;' * indent}{_with_code(cut(line.strip(), _LONGEST_LINE))}  "


def _fitting(parts: Sequence[str], room: int) -> tuple[list[str], int]:
    """The parts that fit in `room` bytes, with blank lines between, and how many do not.

    One that does not fit makes room for those after it.
    """
    kept = []
    for part in parts:
        size = len(part.encode(errors="replace")) + 2
        if size <= room:
            kept.append(part)
            room -= size
    return kept, len(parts) - len(kept)


def _sections(comparison: Comparison, run: Run | None, expected: bool) -> Iterator[tuple[str, str]]:
    if comparison.gate is not None:
        yield f"### {outcome(comparison.gate).capitalize()}", _gate(comparison.gate)
    found = places(comparison) if not expected else []
    for count, place in enumerate(found[:_MOST_ORIGINS], start=1):
        title = "### Where it begins" if len(found) == 1 else f"### Origin {count} of {len(found)}"
        yield f"{title}: {_with_code(place.words)}", _sources(place)
    yield "### Around it" if not comparison.verdict.agrees else "### Values", _table(comparison)
    yield "### Where the error is introduced", _isolated(comparison)
    if run is not None and run.quantized and comparison.isolation is None:
        yield "### Where the error grows", _ranked(comparison)
    yield "### Coverage", _coverage(comparison)
    drawn = curve(comparison.rows, width=_CURVE_WIDTH, height=_CURVE_HEIGHT, expected=expected)
    yield "### PEIR over calls", _folded("curve", _fenced(drawn)) if drawn else ""
    yield "### How it was run", _how(run)


def _gate(decided: "Gate") -> str:
    lines = [f"- {_with_code(cut(said, _LONGEST_LINE))}" for said in findings(decided)]
    shown = decided.changes[: gate.MOST_CHANGES]
    if shown:
        lines += ["", *_header("", "output", *gate.HEADS)]
    for change in shown:
        figures = " | ".join(_escaped(figure) for figure in gate.figures(change))
        lines.append(f"| {change.kind} | {_code(gate.name_of(change))} | {figures} |")
    if rest := gate.the_rest(decided):
        lines.append(f"\n… {rest}")
    return "\n".join(lines)


def _sources(place: Place) -> str:
    """The lines of both sides, for as far as they can be read here."""
    blocks = []
    for side, found in place.sources.items():
        blocks.append(f"{side}: {_code(found.place)}")
        if found.lines:
            blocks.append(_fenced(numbered(found, _LONGEST_SOURCE), "python"))
    return "\n\n".join(blocks)


def _table(comparison: Comparison) -> str:
    symptom = comparison.verdict.symptom
    items = arrange(comparison.rows, symptom)
    shown = around(items, symptom, _MOST_ROWS)
    own = any(row.candidate_module is not None for row in shown if isinstance(row, Row))
    names = ["module", "candidate"] if own else ["module"]
    lines = [f"{_escaped(legend(comparison.rows))}\n"]
    lines += _header("", *names, "value", *(name for name, _ in _COLUMNS), "note")
    for item in shown:
        if isinstance(item, Fold):
            lines.append(f"| | _{_escaped(str(item))}_ |{' |' * (len(_COLUMNS) + len(names) + 1)}")
        else:
            lines.append(_row_line(item, own=own, is_first=is_symptom(item, symptom)))
    if len(items) > len(shown):
        lines.append(f"\n{len(items) - len(shown)} further lines are in the other reports.")
    return "\n".join(lines)


def _row_line(row: Row, *, own: bool, is_first: bool) -> str:
    mark = "▶" if is_first else "" if row.agrees else "✗"
    figures = [value(row) for _, value in _COLUMNS]
    names = [_call(row.module, row.call)]
    if own:
        other = row.module if row.candidate_module is None else row.candidate_module
        names.append(_call(other, row.call))
    cells = [mark, *names, _code(row.value), *figures]
    return f"| {' | '.join(cells)} | {_with_code(cut(row.note, _LONGEST_CELL))} |"


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    *((name, statistic(name)) for name in ("mean", "max", "stddev", "PEIR")),
    ("limit", lambda row: number(row.limit)),
)


def _isolated(comparison: Comparison) -> str:
    found = comparison.isolation
    worst = isolation.introducing(found)
    if found is None or not worst:
        return ""
    lines = [*_over_all_layers(found), ""] if found.is_repetitive else []
    lines += _header("share", "module", "PEIR in", "PEIR out", "own PEIR", "own relative L2")
    most = isolation.most_modules(found)
    for item in worst[:most]:
        call = item.worst
        figures = (call.input_peir, call.peir, call.introduced_peir, call.introduced)
        cells = ["-" if figure is None else number(figure) for figure in figures]
        own = f": {_with_code(said)}" if (said := in_its_own(call)) else ""
        lines.append(
            f"| {item.share:.1%} | {_call(call.module, call.call)}{own} | {' | '.join(cells)} |"
        )
    if len(worst) > most:
        lines.append(f"\n… {len(worst) - most} more")
    return "\n".join(lines)


def _over_all_layers(found: Isolation) -> Iterator[str]:
    """The tables by pattern of modules and by quantization point."""
    most = isolation.MOST_RANKED
    yield from _header("share", "over all layers", "modules", "worst", "own relative L2")
    for group in found.groups[:most]:
        name = group.pattern if group.modules > 1 else group.worst
        worst = f"{group.worst_share:.1%}"
        yield (
            f"| {group.share:.1%} | {_call(name, 0)} | {group.modules} | {worst} | "
            f"{number(group.introduced)} |"
        )
    if len(found.groups) > most:
        yield f"\n… {len(found.groups) - most} more"
    if not found.points:
        return
    yield ""
    yield from _header(
        *("goes away without it", "quantization point", "modules", "kind", "what it is"),
        "what rounding does there",
    )
    for point in found.points[:most]:
        cells = (
            f"{isolation.modules_of(point)} | {_escaped(point.kind)} | {_escaped(point.meaning)}"
        )
        cells += f" | {rounding_in_words(point.rounding) or '-'}"
        yield f"| {point.share:.1%} | {_code(point.pattern)} | {cells} |"
    if len(found.points) > most:
        yield f"\n… {len(found.points) - most} more"


def _ranked(comparison: Comparison) -> str:
    items = ranking(comparison.rows)[:_MOST_RANKED]
    lines = _header("module", "PEIR in", "PEIR out", "growth")
    for item in items:
        figures = f"{number(item.input_peir)} | {number(item.peir)} | {number(item.growth)}"
        lines.append(f"| {_call(item.module, item.call)} | {figures} |")
    return "\n".join(lines) if items else ""


def _coverage(comparison: Comparison) -> str:
    lines = [f"{_escaped(str(comparison.coverage))}."]
    for title, groups in (
        ("Unpaired", unpaired(comparison)),
        ("Fused", fused(comparison)),
        ("Paired by what they hold", rename_rules(comparison)),
    ):
        lines += _grouped(title, groups)
    if forms := forms_in_short(comparison):
        lines.append(f"- In another form: {_with_code(forms)}")
    return "\n".join(lines)


def _grouped(title: str, groups: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for reason, names in list(groups.items())[:_MOST_GROUPS]:
        shown = listed([_code(name or "(root)") for name in names], _MOST_NAMES)
        yield f"- {title}: {_with_code(cut(reason, _LONGEST_CELL))}: {shown}"
    if len(groups) > _MOST_GROUPS:
        rest = sum(len(names) for names in list(groups.values())[_MOST_GROUPS:])
        yield f"- {title}: {rest} more"


def _how(run: Run | None) -> str:
    lines = []
    if run is not None and run.command is not None:
        lines.append(_fenced(run.command, "sh"))
    lines += [f"- {_escaped(cut(note, _LONGEST_LINE))}" for note in (run.notes if run else ())]
    versions = ", ".join(f"{name} {version}" for name, version in environment().items())
    lines.append(f"\n{_escaped(versions)}")
    return "\n".join(lines)


def _header(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _fenced(text: str, language: str = "text") -> str:
    """A block of code, in a fence that is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _call(module: str, call: int) -> str:
    return _code(f"{module or '(root)'}{f'#{call}' if call else ''}")


def _code(text: str) -> str:
    """Code in a line or in the cell of a table."""
    plain = " ".join(cut(text, _LONGEST_CELL).split()).replace("`", "'")
    return f"`{plain}`".replace("|", "\\|")


def _with_code(text: str) -> str:
    """A text in which only what stands in backquotes is markup."""
    parts = _CODE.split(" ".join(text.split()))
    return "".join(_code(part[1:-1]) if _CODE.fullmatch(part) else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()) if "\n" in text else text)
