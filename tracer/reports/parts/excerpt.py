"""Where a divergence begins, as a reader wants to see it: in words, and the source around it."""

import linecache
import textwrap
from dataclasses import dataclass

from tracer.diagnosis.finding import Origin, OriginKind
from tracer.diagnosis.verdict import Verdict
from tracer.text import cut, module_in_words, short_line

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


def origins(verdict: Verdict) -> tuple[Origin, ...]:
    """Every origin of a verdict, that of the first divergence first."""
    first = () if verdict.origin is None else (verdict.origin,)
    return verdict.origins or first


def origin_in_words(origin: Origin) -> str:
    """What has gone wrong where: "`model` passes a wrong `attention_mask`"."""
    module = module_in_words(origin.module)
    if origin.kind is OriginKind.ARGUMENT:
        return f"{module} passes a wrong `{origin.argument}`"
    if origin.kind is OriginKind.PARAMETER:
        return f"{module} has wrong parameters"
    return f"{module} computes a wrong result"


def excerpt(location: str | None) -> Excerpt:
    """The source around a line.

    Args:
        location: "file:line", or None.
    """
    place = short_line(location)
    path, _, line = (location or "").rpartition(":")
    if not line.isdecimal():
        return Excerpt(place, (), None)
    linecache.checkcache(path)
    source, marked = linecache.getlines(path), int(line)
    first = max(marked - _AROUND, 1)
    shown = source[first - 1 : marked + _AROUND] if marked <= len(source) else []
    lines = textwrap.dedent("".join(shown)).split("\n")[: len(shown)]
    return Excerpt(place, tuple(enumerate(lines, first)), marked)


def numbered(found: Excerpt, width: int) -> str:
    """The lines with their numbers, that which is meant with a mark, each at most so wide."""
    return "\n".join(
        cut(f"{line:>6} {'>' if line == found.marked else ' '} {text}".rstrip(), width)
        for line, text in found.lines
    )
