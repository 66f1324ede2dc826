"""Where a divergence begins, as a reader wants to see it: in words, and the source around it."""

import linecache
import textwrap
from dataclasses import dataclass, replace

from tracer.comparison.result import Comparison
from tracer.diagnosis.alike import alike
from tracer.diagnosis.finding import Origin, OriginKind
from tracer.diagnosis.verdict import Divergence, Verdict
from tracer.diagnosis.zoom.zoom import Zoomed
from tracer.reports.narrator.cause import lines_of
from tracer.reports.narrator.names import Names, both_names
from tracer.reports.narrator.verdict import elsewhere
from tracer.text import cut, short_line

_AROUND = 4


@dataclass(frozen=True)
class Excerpt:
    """Some lines of a source file.

    Attributes:
        place: file and line, in short.
        lines: (number, text) of each, dedented; empty where the source cannot be read here.
        marked: the number of the line that is meant; None where there is no source.
    """

    place: str
    lines: tuple[tuple[int, str], ...]
    marked: int | None


@dataclass(frozen=True)
class Place:
    """An origin, and the lines of both sides that it lies in.

    Attributes:
        modules: the reference's names: the first, and those where it is the same.
        words: what has gone wrong where: "`model` passes a wrong `attention_mask`".
        sources: the source on each side, by "reference" and "candidate".
    """

    modules: tuple[str, ...]
    words: str
    sources: dict[str, Excerpt]


def origins(verdict: Verdict) -> tuple[Origin, ...]:
    """Every origin of a verdict, that of the first divergence first."""
    first = () if verdict.origin is None else (verdict.origin,)
    return verdict.origins or first


def places(comparison: Comparison, around: int = _AROUND) -> list[Place]:
    """Where a divergence begins: one place for what is the same in several layers, and the
    culprit's line where zoom has found it. Further ones only where they are confirmed.

    Args:
        around: how many lines to show before and after.
    """
    verdict = comparison.verdict
    if not isinstance(verdict.details, Divergence):
        return [_place(origin, None, around) for origin in origins(verdict)]
    first, *others = alike(verdict.details.findings)
    groups = [first, *(group for group in others if group.first.confirmed)]
    names = Names(verdict.names)
    found = []
    for group in groups:
        place = _place(group.first.origin, comparison.zoomed, around)
        if group.others:
            words = f"{place.words}, the same in {elsewhere(group, names)}"
            modules = (finding.origin.module for finding in group.others)
            place = replace(place, words=words, modules=(*place.modules, *modules))
        found.append(place)
    return found


def _place(origin: Origin, zoomed: Zoomed | None, around: int) -> Place:
    both = zip(("reference", "candidate"), lines_of(origin, zoomed), strict=True)
    sources = {side: excerpt(line, around) for side, line in both}
    return Place((origin.module,), origin_in_words(origin), sources)


def origin_in_words(origin: Origin) -> str:
    """What has gone wrong where: "`model` passes a wrong `attention_mask`"."""
    module = both_names(origin.module, origin.candidate_module)
    if origin.kind is OriginKind.ARGUMENT:
        return f"{module} passes a wrong `{origin.argument}`"
    if origin.kind is OriginKind.PARAMETER:
        return f"{module} has wrong parameters"
    if origin.kind is OriginKind.GRADIENT:
        return f"{module} passes on wrong gradients"
    return f"{module} computes a wrong result"


def excerpt(location: str | None, around: int = _AROUND) -> Excerpt:
    """The source around a line.

    Args:
        location: "file:line", or None.
        around: how many lines to show before and after.
    """
    place = short_line(location)
    path, _, line = (location or "").rpartition(":")
    if not line.isdecimal():
        return Excerpt(place, (), None)
    linecache.checkcache(path)
    source, marked = linecache.getlines(path), int(line)
    first = max(marked - around, 1)
    shown = source[first - 1 : marked + around] if marked <= len(source) else []
    lines = textwrap.dedent("".join(shown)).split("\n")[: len(shown)]
    return Excerpt(place, tuple(enumerate(lines, first)), marked)


def numbered(found: Excerpt, width: int) -> str:
    """The lines with their numbers, that which is meant with a mark, each at most so wide."""
    return "\n".join(text for _, text in numbered_lines(found, width))


def numbered_lines(found: Excerpt, width: int) -> list[tuple[int, str]]:
    """The same line by line, each with its number beside it."""
    return [
        (line, cut(f"{line:>6} {'>' if line == found.marked else ' '} {text}".rstrip(), width))
        for line, text in found.lines
    ]
