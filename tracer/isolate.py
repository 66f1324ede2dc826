"""Isolation: how much of the error each module makes itself, and how much it was handed.

>>> isolation = tracer.compare(reference, candidate, inputs, isolate="leaves").isolation
>>> worst = isolation.modules[0]
>>> worst.module, worst.share, worst.causes[0].point
('model.layers.0.mlp.down_proj', 0.41, 'weight')

Both models run once more, and each chosen module of the candidate is given the reference's inputs,
so that the error of its output is its own. What it returns is then replaced with the reference's,
so that nothing goes on. `tracer.levels` says what can be chosen. Of chosen modules one inside the
other, the outer one is to show the error of the inner one too: each depth of nesting has a run of
its own.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tracer.comparer import Comparer
from tracer.difference import Tolerance
from tracer.errors import UsageError
from tracer.forcing import Forcing
from tracer.lockstep import Visitor
from tracer.phrases import figure, module_in_words
from tracer.rows import CallKey, CallRecord, Row, final_output
from tracer.swapping import Swapping
from tracer.switches import Cause, SwitchTrials
from tracer.words import listed

if TYPE_CHECKING:
    import pandas

# Whose causes are looked for: each of their points costs a call of the module.
_MOST_EXPLAINED = 5
# How many modules and causes are put into words.
_MOST_TOLD, _MOST_CAUSES_TOLD = 5, 2

# Runs both models with a visitor; raises what a model raises.
Rerun = Callable[[Visitor], None]


@dataclass(frozen=True)
class IsolatedCall:
    """The error that one call introduces.

    Attributes:
        module, call: the reference's name and the call index.
        value: which of its values is the worst: "output", "output.logits", "written....", or with
            `leaves` what it hands to a module that it calls: "o_proj.kwargs.input".
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
    """The error that each of some modules introduces; see this module's docstring.

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


def isolated(
    level: str,
    chosen: Collection[str] | None,
    free: Comparer,
    tolerance: Tolerance,
    rerun: Rerun,
    *,
    what_if: int = 0,
) -> Isolation:
    """Measures what each chosen module introduces, and finds causes for the worst.

    Costs one run of both models for each depth of nesting (one with `leaves`), another one of each
    depth in which the candidate has switches, and with `what_if` one for each module that is
    swapped and one for all of them.

    Args:
        level, chosen: what was asked for, and what `tracer.levels.choose` made of it.
        free: the finished run in which the candidate inherits its errors.
        rerun: runs both models again.
        what_if: how many of the worst modules are swapped for the reference's, each alone and then
            all together.

    Raises:
        UsageError: none of the chosen modules was called.
        ModelRunError: a model raised.
    """
    depths = _depths(chosen, free.records)
    if not depths:
        raise UsageError(f"isolate {level!r}: none of {listed(sorted(chosen or ()), 3)} was called")
    calls: list[IsolatedCall] = []
    unforced: set[CallKey] = set()
    for depth, modules in depths.items():
        forcing = Forcing(tolerance, modules, exact=True)
        rerun(forcing)
        unforced |= forcing.unforced
        calls += _shared(_measured(forcing, modules, free.records, depth))
    ranked = _by_module(calls)
    causes: dict[str, tuple[Cause, ...]] = {}
    for depth, modules in depths.items():
        worst = [item.module for item in ranked[:_MOST_EXPLAINED] if item.worst.depth == depth]
        trials = SwitchTrials(tolerance, modules, worst, own_lines=modules is None)
        if worst:
            rerun(trials)
            causes |= {module: trials.causes(module) for module in worst}
    order = {key: record.start for key, record in free.records.items()}
    return Isolation(
        level=level,
        calls=tuple(sorted(calls, key=lambda call: order.get((call.module, call.call), 0))),
        modules=tuple(replace(item, causes=causes.get(item.module, ())) for item in ranked),
        recoveries=tuple(_recoveries(ranked, what_if, free, tolerance, rerun)),
        unforced=tuple(sorted(unforced)),
    )


def _depths(
    chosen: Collection[str] | None, records: Mapping[CallKey, CallRecord]
) -> dict[int, frozenset[str] | None]:
    """The chosen modules by the number of other chosen ones that they are called in."""
    if chosen is None:
        return {0: None}
    deepest: dict[str, int] = {}
    for record in records.values():
        if record.module in chosen:
            depth = sum(name in chosen for name in _callers(record, records))
            deepest[record.module] = max(depth, deepest.get(record.module, 0))
    return {
        depth: frozenset(name for name, own in deepest.items() if own == depth)
        for depth in sorted(set(deepest.values()))
    }


def _callers(record: CallRecord, records: Mapping[CallKey, CallRecord]) -> set[str]:
    """The modules that a call was made in, but for its own."""
    names = set()
    parent = record.parent
    while parent is not None:
        names.add(parent[0])
        parent = records[parent].parent
    return names - {record.module}


def _measured(
    forcing: Forcing,
    modules: Collection[str] | None,
    free: Mapping[CallKey, CallRecord],
    depth: int,
) -> list[IsolatedCall]:
    """The worst value of each call in a run where it had the reference's inputs."""
    values: dict[CallKey, list[tuple[str, Row]]] = defaultdict(list)
    for key, value, row in _own_values(forcing, modules):
        values[key].append((value, row))
    calls = []
    for (module, call), own in values.items():
        value, row = max(own, key=lambda item: item[1].visible_errors[::-1])
        introduced_peir, introduced = row.visible_errors
        inputs = _rows_of(free.get((module, call)), inputs=True)
        freely = _rows_of(free.get((row.module, row.call)), inputs=not row.is_output)
        calls.append(
            IsolatedCall(
                module=module,
                call=call,
                value=value,
                depth=depth,
                input_peir=max(
                    (r.visible_errors[0] for r in inputs if not r.is_mask), default=None
                ),
                peir=next((r.visible_errors[0] for r in freely if r.value == row.value), None),
                introduced_peir=introduced_peir,
                introduced=introduced,
            )
        )
    return calls


def _own_values(
    forcing: Forcing, modules: Collection[str] | None
) -> Iterator[tuple[CallKey, str, Row]]:
    """What each call makes of right inputs: the call, the name of the value, and its row.

    Where everything is forced, an argument is made in the own lines of the call that hands it on.
    """
    for row in forcing.rows:
        if row.dtype is not None and not (row.dtype.is_floating_point or row.dtype.is_complex):
            continue
        key = row.module, row.call
        if row.is_output:
            if modules is None or row.module in modules:
                yield key, row.value, row
        elif modules is None and not row.is_mask:
            giver = forcing.records[key].parent
            if giver is not None:
                yield giver, f"{row.module.removeprefix(f'{giver[0]}.')}.{row.value}", row


def _rows_of(record: CallRecord | None, *, inputs: bool) -> list[Row]:
    if record is None:
        return []
    return list(record.arguments.values()) if inputs else record.outputs


def _shared(calls: Sequence[IsolatedCall]) -> list[IsolatedCall]:
    """The same calls with their shares."""
    infinite = sum(math.isinf(call.introduced) for call in calls)
    powers = [
        float(math.isinf(call.introduced)) if infinite else call.introduced**2 for call in calls
    ]
    total = math.fsum(powers)
    return [
        replace(call, share=power / total if total else 0.0)
        for call, power in zip(calls, powers, strict=True)
    ]


def _by_module(calls: Sequence[IsolatedCall]) -> list[IsolatedModule]:
    """The modules, the one of the largest share first."""
    grouped: dict[str, list[IsolatedCall]] = defaultdict(list)
    for call in calls:
        grouped[call.module].append(call)
    modules = [
        IsolatedModule(
            module=module,
            worst=max(own, key=lambda call: call.introduced),
            calls=len(own),
            share=math.fsum(call.share for call in own),
        )
        for module, own in grouped.items()
    ]
    return sorted(modules, key=lambda item: (item.share, item.worst.introduced), reverse=True)


def _recoveries(
    ranked: Sequence[IsolatedModule],
    count: int,
    free: Comparer,
    tolerance: Tolerance,
    rerun: Rerun,
) -> Iterator[Recovery]:
    """Swaps the worst modules, but for the model itself, each alone and then all together."""
    before = final_output(free.rows)
    names = tuple(item.module for item in ranked if item.module and item.share > 0.0)[:count]
    if before is None:
        return
    for swapped in (*((name,) for name in names), *((names,) if len(names) > 1 else ())):
        swapping = Swapping(tolerance, swapped)
        rerun(swapping)
        after = final_output(swapping.rows)
        errors = before.visible_errors, (math.inf,) * 2 if after is None else after.visible_errors
        yield Recovery(
            swapped,
            *(error for pair in zip(*errors, strict=True) for error in pair),
            unswapped=tuple(sorted(swapping.unswapped)),
        )


def _explained(isolation: Isolation) -> Iterator[str]:
    worst = [item for item in isolation.modules if item.share > 0.0]
    if not worst:
        yield "No module introduces an error of its own."
        return
    yield f"The error that modules introduce themselves ({isolation.level}):"
    for item in worst[:_MOST_TOLD]:
        calls = f", worst at call {item.worst.call} of {item.calls}" if item.calls > 1 else ""
        value = "" if item.worst.value.startswith("output") else f" at `{item.worst.value}`"
        yield (
            f"  {item.share:6.1%}  {module_in_words(item.module)}{value}, PEIR "
            f"{figure(item.worst.introduced_peir)}, relative L2 {figure(item.worst.introduced)}"
            f"{calls}"
        )
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
