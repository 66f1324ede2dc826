"""The result of isolation: what each module adds to the error, and what causes it.

The error that modules introduce themselves (leaves):
    9.1%  `model.layers.0.mlp.down_proj`, PEIR 0.0596, relative L2 0.106
          without `weight` (uint4 weight): relative L2 0.106 → 0.000131
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.isolation.causes import Cause
from tracer.measurement.rows import CallKey
from tracer.text import FEW, figure, listed, module_in_words

if TYPE_CHECKING:
    import pandas

# How many modules and causes are put into words.
_MOST_TOLD, _MOST_CAUSES_TOLD = 5, 2


@dataclass(frozen=True)
class IsolatedCall:
    """The error that one call introduces.

    Attributes:
        module, call: the reference's name and the call index.
        value: which of its values is the worst: "output", "output.logits", "written....", or with
            `leaves` what it hands to a module that it calls: "o_proj.kwargs.input".
        own_lines: it calls others, and this is what it computes in its own lines.
        depth: in how many other chosen modules it is; 0 with `leaves`.
        input_peir: the largest PEIR among its inputs where both models run freely; None where no
            input is compared.
        peir: that of the value in the same run; None where it was not compared there.
        introduced_peir: that of the value where the inputs are the reference's.
        introduced: its relative L2 error there, sqrt(sum d^2 / sum r^2).
        share: `introduced` squared over the sum of these squares of all calls of this depth, so
            noise power over the power of the signal that it is in. Shares sum to 1, or are all 0
            where there is no error; calls of infinite error (other shapes, values that are not
            finite on one side) share all of it. How much of it reaches the model's output is
            another question, which `what_if` answers.
    """

    module: str
    call: int
    value: str
    own_lines: bool
    depth: int
    input_peir: float | None
    peir: float | None
    introduced_peir: float
    introduced: float
    share: float = 0.0


@dataclass(frozen=True)
class IsolatedModule:
    """The error that a module introduces in all its calls, and what causes it.

    Attributes:
        module: the reference's name.
        worst: its call of the largest introduced error.
        calls: how many calls it has.
        share: the sum of their shares.
        causes: of the few worst modules, the switches of the candidate that explain most.
    """

    module: str
    worst: IsolatedCall
    calls: int
    share: float
    causes: tuple[Cause, ...] = ()


@dataclass(frozen=True)
class Recovery:
    """How far the model's own output recovers with modules of the reference's in it.

    Attributes:
        modules: the reference's names of the modules that computed in the place of the candidate's,
            from the candidate's inputs; each with the modules that it calls.
        before, after: PEIR of the model's first output.
        before_l2, after_l2: its relative L2 error, which a single value does not decide.
        unswapped: those of them whose output could not take the place of the candidate's.
    """

    modules: tuple[str, ...]
    before: float
    after: float
    before_l2: float
    after_l2: float
    unswapped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Isolation:
    """The error that each of some modules introduces; see `tracer.isolation.measure`.

    Attributes:
        level: what was chosen: "leaves", "blocks", "layers" or a glob.
        calls: one for each chosen call, in execution order.
        modules: the same by module, those that introduce most first.
        recoveries: one for each module that was swapped, and one for all of them together.
        unforced: (module, call) of those that could not be given the reference's values; what comes
            after them inherits their error.
    """

    level: str
    calls: tuple[IsolatedCall, ...]
    modules: tuple[IsolatedModule, ...]
    recoveries: tuple[Recovery, ...] = ()
    unforced: tuple[CallKey, ...] = ()

    @property
    def explanation(self) -> str:
        """The worst modules with their shares and causes, and what swapping did, in words."""
        return "\n".join(_explained(self))

    def to_frame(self) -> "pandas.DataFrame":
        """One row per call, in execution order, with the attributes of `IsolatedCall`."""
        import pandas

        columns = list(IsolatedCall.__dataclass_fields__)
        records = [[getattr(call, name) for name in columns] for call in self.calls]
        return pandas.DataFrame(records, columns=columns)


def _explained(isolation: Isolation) -> Iterator[str]:
    worst = [item for item in isolation.modules if item.share > 0.0]
    if not worst:
        yield "No module introduces an error of its own."
        return
    yield f"The error that modules introduce themselves ({isolation.level}):"
    for item in worst[:_MOST_TOLD]:
        yield f"  {item.share:6.1%}  {_introduced(item)}"
        for cause in item.causes[:_MOST_CAUSES_TOLD]:
            yield (
                f"          without `{cause.point}` ({cause.kind}): relative L2 "
                f"{figure(cause.before)} → {figure(cause.after)}"
            )
    if len(worst) > _MOST_TOLD:
        rest = math.fsum(item.share for item in worst[_MOST_TOLD:])
        yield f"  {rest:6.1%}  {len(worst) - _MOST_TOLD} more"
    for recovery in isolation.recoveries:
        yield _recovered(recovery)
    if isolation.unforced:
        names = list(dict.fromkeys(module_in_words(module) for module, _ in isolation.unforced))
        yield f"What follows {listed(names, FEW)} inherits an error: its form cannot be replaced."


def _introduced(item: IsolatedModule) -> str:
    worst = item.worst
    text = module_in_words(item.module)
    text += " in its own lines" if worst.own_lines else ""
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
