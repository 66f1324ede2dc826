"""The report of several checks: one table for people, one JUnit file, one Markdown file.

check         result     seconds  what was found
port.short    passes         1.9  agrees
port.padded   fails          2.3  diverges at blocks.0.attn, PEIR 3.32e-01
int16         no result      0.1  there is no file baselines/int16.json

1 of 3 checks passes; 1 fails: port.padded; 1 has no result: int16
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from tracer.comparison.result import Comparison
from tracer.reports import Run, junit, markdown, write
from tracer.reports.console import as_text, make_console
from tracer.reports.narrator import gate
from tracer.reports.parts.headline import headline
from tracer.text import cut, listed, visible

# What an exit code says of a check, its colour and its sign in Markdown; others have no result.
_PASSES, _FAILS, _NO_RESULT = (
    ("passes", "green", "✅"),
    ("fails", "red", "❌"),
    ("no result", "yellow", "⚠️"),
)
_OUTCOMES = {0: _PASSES, 1: _FAILS}
_LONGEST = 300


@dataclass(frozen=True)
class Checked:
    """What has become of a check.

    Attributes:
        name: of the check, and of its input set.
        code: the exit code of `trace_model compare`.
        seconds: how long it took.
        comparison, run: None where it came to none.
        message: why it did not, in one sentence.
    """

    name: str
    code: int
    seconds: float
    comparison: Comparison | None = None
    run: Run | None = None
    message: str = ""

    @property
    def outcome(self) -> str:
        """In words: passes, fails, or no result."""
        return _OUTCOMES.get(self.code, _NO_RESULT)[0]

    @property
    def line(self) -> str:
        """What was found, in one line."""
        if self.comparison is None:
            return self.message
        return headline(self.comparison, expected=self.expected).line

    @property
    def expected(self) -> bool:
        """Whether differences are no failure by themselves; see `Run.differences_expected`."""
        return self.run is not None and self.run.differences_expected


def show(
    checks: Sequence[Checked], *, reasons: bool = True, console: Console | None = None
) -> None:
    """Prints the table of all checks and the sum of it.

    Args:
        reasons: print before it why checks have failed.
        console: where to; standard output by default.
    """
    console = console or make_console()
    for check in checks:
        if reasons and check.code and check.comparison is not None:
            _print(_why(check, check.comparison), console)
    _print([_table(checks), Text(), Text(summary(checks))], console)


def summary(checks: Sequence[Checked]) -> str:
    """How many pass and which do not, in one line."""
    passing = sum(check.code == 0 for check in checks)
    parts = [f"{passing} of {len(checks)} checks {'passes' if passing == 1 else 'pass'}"]
    for outcome, verb in ((_FAILS, ("fails", "fail")), (_NO_RESULT, ("has no", "have no"))):
        names = [check.name for check in checks if check.outcome == outcome[0]]
        if names:
            what = verb[len(names) > 1] + (" result" if outcome is _NO_RESULT else "")
            parts.append(f"{len(names)} {what}: {listed(names)}")
    return "; ".join(parts)


def render_xml(checks: Sequence[Checked]) -> str:
    """JUnit: a suite for each check, with the cases of its own report."""
    return junit.document(
        [
            junit.unfinished(check.name, check.message)
            if check.comparison is None
            else junit.suite(check.comparison, check.run, check.name)
            for check in checks
        ]
    )


def render_md(checks: Sequence[Checked]) -> str:
    """The table, and the reports of the checks that fail, at most as long as one report may be."""
    head = "✅" if not any(check.code for check in checks) else "❌"
    lines = [
        f"## {head} {_in_code(summary(checks))}",
        "",
        "| | check | what was found |",
        "|---|---|---|",
    ]
    for check in checks:
        sign = _OUTCOMES.get(check.code, _NO_RESULT)[2]
        lines.append(f"| {sign} {check.outcome} | `{check.name}` | {_in_code(check.line)} |")
    text = "\n".join(lines) + "\n"
    for check in checks:
        if check.code and check.comparison is not None:
            part = f"\n---\n\n`{check.name}`\n\n{markdown.render(check.comparison, check.run)}"
            if len((text + part).encode()) > markdown.LIMIT:
                return f"{text}\n_What follows does not fit in {markdown.LIMIT // 1000} KB._\n"
            text += part
    return text


# By suffix.
WRITERS: dict[str, Callable[[Sequence[Checked]], str]] = {".xml": render_xml, ".md": render_md}


def save(checks: Sequence[Checked], path: Path) -> None:
    """Writes the report of all checks, in the format of the path's suffix.

    Raises:
        UsageError: it cannot be written.
    """
    write(WRITERS[path.suffix.lower()](checks), path)


def _why(check: Checked, comparison: Comparison) -> Iterator[RenderableType]:
    """What a check fails for; one without a comparison has its reason in the table."""
    _, colour, _ = _OUTCOMES.get(check.code, _NO_RESULT)
    yield Text(f"{check.name}: {check.line}", f"bold {colour}")
    yield Text(headline(comparison, expected=check.expected).text)
    if comparison.gate is not None:
        yield Text("\n".join(gate.lines(comparison.gate)))
    yield Text()


def _table(checks: Sequence[Checked]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("what was found", overflow="fold")
    for check in checks:
        _, colour, _ = _OUTCOMES.get(check.code, _NO_RESULT)
        found = Text(cut(check.line, _LONGEST))
        table.add_row(Text(check.name), Text(check.outcome, colour), f"{check.seconds:.1f}", found)
    return table


def _print(parts: Iterator[RenderableType] | list[RenderableType], console: Console) -> None:
    """On a terminal at once, and elsewhere as plain text without trailing blanks."""
    if console.is_terminal:
        for part in parts:
            console.print(part, highlight=False)
    else:
        console.out(visible(as_text(parts, console.width)), end="", highlight=False)


def _in_code(text: str) -> str:
    """A text in a cell of a Markdown table, as it stands."""
    return "`{}`".format(cut(text, _LONGEST).replace("`", "'").replace("|", "\\|"))
