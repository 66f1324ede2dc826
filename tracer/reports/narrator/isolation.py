"""What isolation found, in words.

The error that modules introduce themselves (leaves):
    9.1%  `model.layers.0.mlp.down_proj`, PEIR 0.0596, relative L2 0.106
          without `weight` (uint4 weight): relative L2 0.106 → 0.000131
"""

import math
from collections.abc import Iterator

from tracer.isolation.result import IsolatedModule, Isolation, Recovery
from tracer.text import FEW, figure, listed, module_in_words

_MOST_MODULES, _MOST_CAUSES = 5, 2


def lines(isolation: Isolation) -> list[str]:
    """The worst modules with their shares and causes, and what swapping did."""
    return list(_lines(isolation))


def _lines(isolation: Isolation) -> Iterator[str]:
    worst = [item for item in isolation.modules if item.share > 0.0]
    if not worst:
        yield "No module introduces an error of its own."
        return
    yield f"The error that modules introduce themselves ({isolation.level}):"
    for item in worst[:_MOST_MODULES]:
        yield f"  {item.share:6.1%}  {_introduced(item)}"
        for cause in item.causes[:_MOST_CAUSES]:
            yield (
                f"          without `{cause.point}` ({cause.kind}): relative L2 "
                f"{figure(cause.before)} → {figure(cause.after)}"
            )
    if len(worst) > _MOST_MODULES:
        rest = math.fsum(item.share for item in worst[_MOST_MODULES:])
        yield f"  {rest:6.1%}  {len(worst) - _MOST_MODULES} more"
    for recovery in isolation.recoveries:
        yield _recovered(recovery)
    if isolation.unforced:
        names = list(dict.fromkeys(module_in_words(module) for module, _ in isolation.unforced))
        yield f"What follows {listed(names, FEW)} inherits an error: its form cannot be replaced."


def _introduced(item: IsolatedModule) -> str:
    worst = item.worst
    text = module_in_words(item.module)
    text += " in its own forward" if worst.own_lines else ""
    text += f" at `{worst.value}`" if worst.value != "output" else ""
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
