"""Whether the verdict names the mistake: planted ones, and right pairs that must agree.

    python -m benchmarks.localisation [--data DIR] [--group GLOB] [--only GLOB]
                                      [--json FILE] [--markdown]
    python -m benchmarks.localisation --blind [--seed N] [--mutants N] [--family GLOB]

Each mistake of `benchmarks/mistakes` is planted in a copy of a right model and compared with it.
The module counts as found if the verdict names the expected one; the argument or kind if that is
right too. Of the mistakes in a module's own forward, the exact line counts as found if the culprit
is at the planted line; where an operation was left out, if the line that goes on without
it, or that made the value that it goes on with, is. Right pairs that do not agree are false alarms.
Missed mistakes are listed with what was expected and what was found, missed lines with the line
that was named.
"""

import argparse
import fnmatch
import json
import platform
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import tracer
from benchmarks.blind.table import blind, tables
from benchmarks.mistakes.clean import CLEAN, Pair
from benchmarks.mistakes.groups import Group, groups
from benchmarks.mistakes.planting import Mistake
from tracer.diagnosis.zoom.operations import Operation
from tracer.diagnosis.zoom.zoom import Zoomed
from tracer.text import short_line


@dataclass(frozen=True)
class Outcome:
    """What was expected of one comparison, and what came of it.

    Attributes:
        group, name: of the mistake, or of the right pair.
        expected, found: the module and the argument or kind; None for an agreement.
        confirmed: whether a counterfactual run has shown it.
        seconds: for the whole verdict, wall time.
        raised: the error, where a model raised one.
        reason: why it is known to be missed.
        line: the line that was named, as text; "" for none.
        line_is_right: whether it is the planted one; None for what is not in its own forward.
    """

    group: str
    name: str
    expected: tuple[str, str] | None
    found: tuple[str, str] | None
    confirmed: bool
    seconds: float
    raised: str = ""
    reason: str = ""
    line: str = ""
    line_is_right: bool | None = None

    @property
    def module_is_right(self) -> bool:
        """Whether the module is the expected one."""
        return (
            self.found is not None
            and self.expected is not None
            and (self.found[0] == self.expected[0])
        )

    @property
    def is_right(self) -> bool:
        """Whether the module and the argument or kind are the expected ones."""
        return self.found == self.expected and not (self.raised and self.found is None)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of real checkpoints")
    parser.add_argument("--group", default="*", metavar="GLOB", help="groups to run")
    parser.add_argument("--only", default="*", metavar="GLOB", help="mistakes and pairs to run")
    parser.add_argument("--blind", action="store_true", help="mutants and rewrites made by rule")
    parser.add_argument("--seed", type=int, default=0, help="of the mutants that are drawn")
    parser.add_argument("--mutants", type=int, default=22, help="of each family")
    parser.add_argument("--family", default="*", metavar="GLOB", help="families of --blind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome there")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    arguments = parser.parse_args(argv)
    if arguments.blind:
        _print_blind(arguments)
        return
    outcomes = list(run(arguments.data, arguments.group, arguments.only))
    if not outcomes:
        parser.error("no mistake or pair of these names")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    print(_machine())
    print(figures(outcomes, markdown=arguments.markdown))
    print(missed(outcomes, markdown=arguments.markdown))
    print(missed_lines(outcomes, markdown=arguments.markdown))


def _print_blind(arguments: argparse.Namespace) -> None:
    wrong, right = blind(arguments.seed, arguments.mutants, arguments.family)
    print(f"{_machine()}, seed {arguments.seed}")
    for rows in tables(wrong, right):
        if len(rows) > 1:
            print(_table(rows, markdown=arguments.markdown), end="\n\n")
    if arguments.json:
        found = [asdict(each) for each in (*wrong, *right)]
        arguments.json.write_text(json.dumps(found, indent=1))


def _machine() -> str:
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


def run(data: Path | None, group: str = "*", only: str = "*") -> Iterable[Outcome]:
    """Compares every pair whose group and name match."""
    for each in groups(data):
        if fnmatch.fnmatchcase(each.name, group):
            for mistake in each.mistakes:
                if fnmatch.fnmatchcase(mistake.name, only):
                    yield planted(each, mistake)
    for pair in CLEAN:
        if fnmatch.fnmatchcase(pair.group, group) and fnmatch.fnmatchcase(pair.name, only):
            yield right(pair)


def planted(group: Group, mistake: Mistake) -> Outcome:
    """The verdict on a candidate with one mistake."""
    expected = mistake.module, mistake.found
    models = group.pair(mistake)
    outcome, zoomed = _judged(
        group.name, mistake.name, expected, models, group.rename, train=mistake.train
    )
    outcome = replace(outcome, reason=mistake.missed)
    if not mistake.is_in_own_lines:
        return outcome
    named = _named(zoomed)
    text = f"`{named[0].text}` ({short_line(named[0].location)})" if named else ""
    found = any(mistake.is_at(each.file, each.line, each.text) for each in named)
    return replace(outcome, line=text, line_is_right=found)


def _named(zoomed: Zoomed | None) -> list[Operation]:
    """The candidate's operations that are named: with one left out, those around it."""
    if zoomed is None:
        return []
    named = [zoomed.culprit, zoomed.made if zoomed.kind == "missing" else None]
    return [operation for operation in named if operation is not None]


def right(pair: Pair) -> Outcome:
    """The verdict on a right pair."""
    return _judged(pair.group, pair.name, None, pair.make(), pair.rename)[0]


def _judged(
    group: str,
    name: str,
    expected: tuple[str, str] | None,
    models: tuple[nn.Module, nn.Module, Mapping[str, Any]],
    rename: Mapping[str, str] | None,
    *,
    train: bool = False,
) -> tuple[Outcome, Zoomed | None]:
    start = time.perf_counter()
    raised = ""
    comparison: tracer.Comparison | None
    try:
        comparison = tracer.compare(
            *models, rename=rename, train=train, strict=expected is not None
        )
    except tracer.ModelRunError as error:
        raised, comparison = str(error), error.comparison
    seconds = time.perf_counter() - start
    if comparison is None:
        return Outcome(group, name, expected, None, False, seconds, raised), None
    verdict = comparison.verdict
    origin = verdict.origin
    found = None if origin is None else (origin.module, origin.argument or origin.kind)
    outcome = Outcome(group, name, expected, found, verdict.confirmed, seconds, raised)
    return outcome, comparison.zoomed


def figures(outcomes: Sequence[Outcome], *, markdown: bool = False) -> str:
    """A table with a line for each group, and one for all."""
    names = list(dict.fromkeys(outcome.group for outcome in outcomes))
    lines = [_line(name, [o for o in outcomes if o.group == name]) for name in names]
    lines.append(_line("all", outcomes))
    header = ["group", "mistakes", "module", "argument or kind", "confirmed"]
    header += ["in own forward", "exact line"]
    header += ["right pairs", "false alarms", "median s", "worst s"]
    return _table([header, *lines], markdown=markdown)


def missed(outcomes: Sequence[Outcome], *, markdown: bool = False) -> str:
    """A table of what was expected and not found."""
    wrong = [outcome for outcome in outcomes if not outcome.is_right]
    if not wrong:
        return "Nothing was missed."
    rows = [
        [o.group, o.name, _words(o.expected), o.raised or _words(o.found), o.reason] for o in wrong
    ]
    return _table([["group", "missed", "expected", "found", "reason"], *rows], markdown=markdown)


def missed_lines(outcomes: Sequence[Outcome], *, markdown: bool = False) -> str:
    """A table of the mistakes in own forwards whose exact line was not named, with groups."""
    wrong: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        if outcome.line_is_right is False:
            wrong.setdefault((outcome.name, outcome.line or "none"), []).append(outcome.group)
    if not wrong:
        return "No exact line was missed."
    rows = [["; ".join(groups), *found] for found, groups in wrong.items()]
    return _table([["group", "line missed", "named"], *rows], markdown=markdown)


def _line(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    mistakes = [outcome for outcome in outcomes if outcome.expected is not None]
    pairs = [outcome for outcome in outcomes if outcome.expected is None]
    lines = [o.line_is_right for o in mistakes if o.line_is_right is not None]
    seconds = [outcome.seconds for outcome in outcomes]
    return [
        name,
        str(len(mistakes)),
        _share([outcome.module_is_right for outcome in mistakes]),
        _share([outcome.is_right for outcome in mistakes]),
        _share([outcome.confirmed for outcome in mistakes]),
        str(len(lines)),
        _share(lines),
        str(len(pairs)),
        str(sum(not outcome.is_right for outcome in pairs)),
        f"{statistics.median(seconds):.2f}",
        f"{max(seconds):.2f}",
    ]


def _share(hits: Sequence[bool]) -> str:
    return f"{100 * sum(hits) / len(hits):.1f} %" if hits else "-"


def _words(origin: tuple[str, str] | None) -> str:
    if origin is None:
        return "agreement"
    return f"{f'`{origin[0]}`' if origin[0] else 'the root'}: {origin[1]}"


def _table(rows: Sequence[Sequence[str]], *, markdown: bool) -> str:
    if markdown:
        head, *rest = (f"| {' | '.join(row)} |" for row in rows)
        return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    main()
