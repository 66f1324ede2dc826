"""What isolation found, in words.

The error that modules introduce themselves (leaves), over all layers:
   49.6%  `model.layers.*.self_attn`: 4 modules, the worst 17.5%
By quantization point, over all layers: the part that goes away without it.
   37.2%  `model.layers.*.self_attn.mask_add` (uint8 activation):
          the attention scores with the mask added, before the softmax
          values there: 12.5% zero, 0.0123% saturated
By module:
   17.5%  `model.layers.1.self_attn` in what it passes to `o_proj`, PEIR 0.0596, relative L2 0.106
          without `mask_add` (uint8 activation): relative L2 0.106 → 0.0131

Where no layers repeat, the modules come alone.
"""

import math
from collections.abc import Iterator

from tracer.isolation.causes import Rounding
from tracer.isolation.result import (
    IsolatedCall,
    IsolatedGroup,
    IsolatedModule,
    IsolatedPoint,
    Isolation,
    Recovery,
)
from tracer.text import FEW, figure, listed, module_in_words

_MOST_MODULES, _MOST_CAUSES = 5, 2
# Of each list, where there are groups.
_MOST_GROUPED = 3
_INDENT = " " * 10


def lines(isolation: Isolation) -> list[str]:
    """The worst modules with their shares and causes, and what swapping did."""
    return list(_lines(isolation))


def rounding_in_words(rounding: Rounding | None) -> str:
    """What rounding does at a point: "3.1% underflow, 12.0% zero"; empty where it does nothing."""
    if rounding is None:
        return ""
    shares = {
        "underflow": rounding.underflow,
        "zero": rounding.zero,
        "saturated": rounding.saturated,
        "not finite": rounding.nonfinite,
    }
    return ", ".join(f"{figure(100 * share)}% {name}" for name, share in shares.items() if share)


def in_its_own(call: IsolatedCall) -> str:
    """What of a call's work it is that is wrong: "what it passes to `o_proj`"; empty where it is
    the output of the whole module."""
    if call.receiver:
        passed = f" as `{call.passed_as}`" if call.passed_as else ""
        return f"what it passes to `{call.receiver}`{passed}"
    return "its own forward" if call.own_lines else ""


def _lines(isolation: Isolation) -> Iterator[str]:
    worst = [item for item in isolation.modules if item.share > 0.0]
    if not worst:
        yield "No module introduces an error of its own."
        return
    grouped = isolation.is_repetitive
    title = f"The error that modules introduce themselves ({isolation.level})"
    most, causes = (_MOST_GROUPED, 1) if grouped else (_MOST_MODULES, _MOST_CAUSES)
    if grouped:
        yield f"{title}, over all layers:"
        yield from map(_group, isolation.groups[:most])
        yield from _rest([group.share for group in isolation.groups[most:]])
        if isolation.points:
            yield "By quantization point, over all layers: the part that goes away without it."
        for point in isolation.points[:most]:
            yield from _point(point)
        yield "By module:"
    else:
        yield f"{title}:"
    for item in worst[:most]:
        yield f"  {item.share:6.1%}  {_introduced(item)}"
        for cause in item.causes[:causes]:
            yield (
                f"{_INDENT}without `{cause.point}` ({cause.kind}): relative L2 "
                f"{figure(cause.before)} → {figure(cause.after)}"
            )
            if cause.meaning and not grouped:
                yield f"{_INDENT}`{cause.point}`: {cause.meaning}"
            if not grouped:
                yield from _rounding(cause.rounding)
    yield from _rest([item.share for item in worst[most:]])
    for recovery in isolation.recoveries:
        yield _recovered(recovery)
    if isolation.unforced:
        names = list(dict.fromkeys(module_in_words(module) for module, _ in isolation.unforced))
        yield f"What follows {listed(names, FEW)} inherits an error: its form cannot be replaced."


def _group(group: IsolatedGroup) -> str:
    if group.modules == 1:
        return f"  {group.share:6.1%}  {module_in_words(group.worst)}"
    return (
        f"  {group.share:6.1%}  `{group.pattern}`: {group.modules} modules, the worst "
        f"{group.worst_share:.1%}"
    )


def _point(point: IsolatedPoint) -> Iterator[str]:
    part = "" if point.measured is None else f", looked at in {point.measured} of {point.modules}"
    name = f"  {point.share:6.1%}  `{point.pattern}` ({point.kind}{part})"
    yield f"{name}:" if point.meaning else name
    if point.meaning:
        yield f"{_INDENT}{point.meaning}"
    yield from _rounding(point.rounding)


def _rounding(rounding: Rounding | None) -> Iterator[str]:
    if words := rounding_in_words(rounding):
        yield f"{_INDENT}values there: {words}"


def _rest(shares: list[float]) -> Iterator[str]:
    if shares:
        yield f"  {math.fsum(shares):6.1%}  {len(shares)} more"


def _introduced(item: IsolatedModule) -> str:
    worst = item.worst
    own = in_its_own(worst)
    text = module_in_words(item.module) + (f" in {own}" if own else "")
    text += f" at `{worst.value}`" if worst.value != "output" and not worst.receiver else ""
    text += f", PEIR {figure(worst.introduced_peir)}, relative L2 {figure(worst.introduced)}"
    return text + (f", worst at call {worst.call} of {item.calls}" if item.calls > 1 else "")


def _recovered(recovery: Recovery) -> str:
    names = ", ".join(map(module_in_words, recovery.modules))
    text = (
        f"With the reference's {names}, the final output goes from PEIR "
        f"{figure(recovery.before)} to {figure(recovery.after)}, and from relative L2 "
        f"{figure(recovery.before_l2)} to {figure(recovery.after_l2)}."
    )
    if recovery.unswapped:
        kept = ", ".join(map(module_in_words, recovery.unswapped))
        text += f" Not swapped, for the form of their output: {kept}."
    return text
