"""The blind table: what the verdict says of mutants and right rewrites that it was not made on.

    python -m benchmarks.localisation --blind [--seed N] [--mutants N] [--family GLOB]

Mutants change a line of transformers' source by a rule (`operators`); the expected answer is that
line and the module in whose call it first runs. The line counts as named if the verdict or the zoom
names it; where an operation was left out, the reference's line counts as well, since the edit may
leave nothing on the line to point at. Right rewrites (`rewrites`) that do not agree are false
alarms.
"""

import fnmatch
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tracer
from benchmarks.blind.families import FAMILIES
from benchmarks.blind.mutants import Mutant, mutants_of
from benchmarks.blind.rewrites import rewrites


@dataclass(frozen=True)
class Found:
    """What came of one comparison.

    Attributes:
        family, rule: of the mutant or the rewrite.
        text: the change in words.
        module, line, confirmed: whether that was right; of a rewrite, whether it agrees.
        seconds: for the whole verdict, wall time.
        named: what was named instead.
    """

    family: str
    rule: str
    text: str
    module: bool
    line: bool
    confirmed: bool
    seconds: float
    named: str


def blind(seed: int, count: int, family: str = "*") -> tuple[list[Found], list[Found]]:
    """The outcomes of `count` mutants of each family that matches, and of the right rewrites."""
    wrong: list[Found] = []
    with tempfile.TemporaryDirectory() as folder:
        for each in FAMILIES:
            if fnmatch.fnmatchcase(each.name, family):
                reference = each.build()
                for mutant in mutants_of(each, Path(folder), seed, count):
                    wrong.append(_of_mutant(reference, mutant))
    return wrong, list(_of_rewrites(family))


def _of_mutant(reference: object, mutant: Mutant) -> Found:
    start = time.perf_counter()
    comparison: tracer.Comparison | None
    try:
        comparison = tracer.compare(reference, mutant.build(), dict(mutant.family.inputs()))  # type: ignore[arg-type]
    except tracer.ModelRunError as error:
        comparison = error.comparison
    seconds = time.perf_counter() - start
    head = (mutant.family.name, mutant.operator, str(mutant))
    if comparison is None or comparison.verdict.origin is None:
        return Found(*head, False, False, False, seconds, "agreement")
    origin, zoomed = comparison.verdict.origin, comparison.zoomed
    places = [origin.candidate_line or ""]
    if zoomed is not None:
        places += [each.location for each in (zoomed.culprit, zoomed.made) if each is not None]
    own = f"{mutant.file.name}:{mutant.line}"
    is_named = any(place.endswith(own) for place in places)
    if zoomed is not None and zoomed.kind == "missing" and zoomed.expected is not None:
        is_named |= zoomed.expected.location.endswith(
            f"modeling_{mutant.family.name}.py:{mutant.line}"
        )
    named = f"`{origin.module}` at {', '.join(Path(place).name for place in places)}"
    is_module = origin.module == mutant.modules[0]
    return Found(*head, is_module, is_named, comparison.verdict.confirmed, seconds, named)


def _of_rewrites(family: str) -> Iterator[Found]:
    for right in rewrites():
        if not fnmatch.fnmatchcase(right.family, family):
            continue
        models = right.make()
        start = time.perf_counter()
        verdict = tracer.compare(*models).verdict
        seconds = time.perf_counter() - start
        outcome = str(verdict.outcome)
        yield Found(
            right.family, right.rule, str(right), verdict.agrees, True, True, seconds, outcome
        )


def tables(wrong: Sequence[Found], right: Sequence[Found]) -> Iterator[list[list[str]]]:
    """Tables of rows: by family, by operator, of the rewrites, and what was missed."""
    header = ["mutants", "module", "exact line", "confirmed", "median s", "worst s"]
    for title in ("family", "rule"):
        names = sorted({getattr(each, title) for each in wrong})
        rows = [_row(name, [f for f in wrong if getattr(f, title) == name]) for name in names]
        yield [[title, *header], *rows, _row("all", wrong)]
    alarms = [each for each in right if not each.module]
    yield [
        ["right rewrites", "agree", "equivalent", "false alarms"],
        [
            str(len(right)),
            str(sum(each.named == "agrees" for each in right)),
            str(sum(each.named == "equivalent" for each in right)),
            str(len(alarms)),
        ],
    ]
    missed = [each for each in wrong if not (each.module and each.line)]
    yield [["missed", "named"], *([each.text, each.named] for each in (*missed, *alarms))]


def _row(name: str, found: Sequence[Found]) -> list[str]:
    seconds = [each.seconds for each in found] or [0.0]
    return [
        name,
        str(len(found)),
        _share(each.module for each in found),
        _share(each.line for each in found),
        _share(each.confirmed for each in found),
        f"{statistics.median(seconds):.2f}",
        f"{max(seconds):.2f}",
    ]


def _share(hits: Iterable[bool]) -> str:
    counted = list(hits)
    return f"{100 * sum(counted) / len(counted):.1f} %" if counted else "-"
