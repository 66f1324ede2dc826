"""The error by pattern instead of by module: one line for the same module of all layers.

>>> isolation.groups[0].pattern, isolation.groups[0].modules, isolation.groups[0].share
('model.layers.*.input_layernorm', 28, 0.267)
>>> isolation.points[0].pattern, isolation.points[0].meaning
('model.layers.*.self_attn.mask_add', 'the attention scores with the mask added, ...')

A star stands for the number of a module in a list of repeated ones (`levels.is_repeated`).
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import nn

from tracer.execution.pairing import Pairing
from tracer.isolation.causes import Cause, Rounding
from tracer.isolation.levels import is_repeated
from tracer.isolation.result import IsolatedGroup, IsolatedModule, IsolatedPoint


def pattern_of(name: str, modules: Mapping[str, nn.Module]) -> str:
    """A name with a star for each number in a list of repeated modules.

    Args:
        name: of a module, or of something in one.
        modules: of the whole model by name.
    """
    parts = name.split(".")
    containers = (modules.get(".".join(parts[:i])) for i in range(len(parts)))
    return ".".join(
        "*" if part.isdecimal() and container is not None and is_repeated(container) else part
        for part, container in zip(parts, containers, strict=True)
    )


def grouped(ranked: Sequence[IsolatedModule], pairing: Pairing) -> tuple[IsolatedGroup, ...]:
    """The modules that introduce an error by pattern, those that introduce most first.

    Args:
        ranked: the modules, the one of the largest share first.
        pairing: of the models.
    """
    groups: dict[str, list[IsolatedModule]] = defaultdict(list)
    for item in ranked:
        if item.share > 0.0:
            groups[pattern_of(item.module, pairing.reference)].append(item)
    found = (
        IsolatedGroup(
            pattern=pattern,
            modules=len(own),
            share=math.fsum(item.share for item in own),
            worst=own[0].module,
            worst_share=own[0].share,
            introduced=max(item.worst.introduced for item in own),
        )
        for pattern, own in groups.items()
    )
    return tuple(sorted(found, key=lambda group: group.share, reverse=True))


def points_of(
    causes: Mapping[str, Sequence[Cause]],
    ranked: Sequence[IsolatedModule],
    pairing: Pairing,
    like_them: Sequence[IsolatedModule] = (),
) -> tuple[IsolatedPoint, ...]:
    """The switches by pattern that take some of the error away, those that take most first.

    Args:
        causes: all switches of each module that was looked at, by the reference's name of it.
        ranked: the modules.
        pairing: of the models.
        like_them: those that were not looked at, as enough modules that are alike were: what goes
            away there is taken to be the same part.
    """
    others = _shares(like_them, pairing)
    tried = _shares([item for item in ranked if item.module in causes], pairing)
    candidates = {name: own for own, name in pairing.pairs.items()}
    groups: dict[str, list[tuple[Cause, float]]] = defaultdict(list)
    outers: dict[str, str] = {}
    for item in ranked:
        own = candidates.get(item.module, item.module)
        depth = own.count(".") + 1 if own else 0
        outer = pattern_of(item.module, pairing.reference)
        for cause in causes.get(item.module, ()):
            # The candidate may call the module by another name; inside it, names are its own.
            whole = pattern_of(f"{own}.{cause.point}".lstrip("."), pairing.candidate)
            inner = whole.split(".")[depth:]
            pattern = ".".join([outer, *inner] if outer else inner)
            groups[pattern].append((cause, item.share * cause.part))
            outers[pattern] = outer
    found = (
        IsolatedPoint(
            pattern=pattern,
            kind=", ".join(sorted({cause.kind for cause, _ in own})),
            meaning=next((cause.meaning for cause, _ in own if cause.meaning), ""),
            modules=len(own) + len(others[outers[pattern]]),
            share=math.fsum(share for _, share in own)
            * _scale(tried[outers[pattern]], others[outers[pattern]]),
            rounding=Rounding.of_all(cause.rounding for cause, _ in own),
            measured=len(own) if others[outers[pattern]] else None,
        )
        for pattern, own in groups.items()
    )
    return tuple(
        sorted((p for p in found if p.share > 0.0), key=lambda point: point.share, reverse=True)
    )


def _shares(items: Sequence[IsolatedModule], pairing: Pairing) -> defaultdict[str, list[float]]:
    """The shares of the modules of each pattern."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for item in items:
        found[pattern_of(item.module, pairing.reference)].append(item.share)
    return found


def _scale(tried: Sequence[float], others: Sequence[float]) -> float:
    """What the whole is of the part that was looked at."""
    return 1.0 + math.fsum(others) / math.fsum(tried) if others else 1.0
