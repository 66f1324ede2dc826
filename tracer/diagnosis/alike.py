"""Origins that are one mistake: the same line of the same class, in several layers.

>>> [origin.module for origin in verdict.origins]
['layers.0.attn', 'layers.1.attn', 'layers.2.attn']
>>> [(group.first.origin.module, len(group.others)) for group in alike(findings)]
[('layers.0.attn', 2)]
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tracer.diagnosis.finding import Finding


@dataclass(frozen=True)
class Alike:
    """Findings that differ by the layer alone.

    Attributes:
        first: that which comes first in execution order.
        others: the rest of them.
    """

    first: Finding
    others: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Layers:
    """Modules whose names differ in one number.

    Attributes:
        kind: what stands before the number: "layers"; empty where nothing does.
        numbers: those of the modules, in order.
    """

    kind: str
    numbers: tuple[int, ...]


def alike(findings: Sequence[Finding]) -> list[Alike]:
    """Groups what is found at the same lines, in the same way, in modules of one pattern."""
    groups: dict[object, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(_kind(finding), []).append(finding)
    return [Alike(first, tuple(others)) for first, *others in groups.values()]


def layers_of(first: str, others: Sequence[str]) -> Layers | None:
    """The layers that modules are in, if their names differ from the first in that number alone."""
    names = [name.split(".") for name in (first, *others)]
    if len({len(name) for name in names}) > 1:
        return None
    differing = [i for i, parts in enumerate(zip(*names, strict=True)) if len(set(parts)) > 1]
    if len(differing) != 1 or not all(name[differing[0]].isdecimal() for name in names):
        return None
    place = differing[0]
    kind = names[0][place - 1] if place else ""
    return Layers(kind, tuple(sorted(int(name[place]) for name in names[1:])))


def pattern(name: str) -> str:
    """A module's name with a star for each number in it."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _kind(finding: Finding) -> object:
    origin = finding.origin
    return (
        *(finding.kind, finding.confirmed, pattern(origin.module), origin.argument, origin.kind),
        *(origin.reference_line, origin.candidate_line, finding.names),
        *((name, each.kind) for name, each in finding.parameters.items()),
    )
