"""Isolation: how much of the error each module makes itself, and how much it was handed.

>>> isolation = tracer.compare(reference, candidate, inputs, isolate="leaves").isolation
>>> worst = isolation.modules[0]
>>> worst.module, worst.share, worst.causes[0].point
('model.layers.0.mlp.down_proj', 0.41, 'weight')

Both models run once more, and each chosen module of the candidate is given the reference's inputs,
so that the error of its output is its own. What it returns is then replaced with the reference's,
so that nothing goes on. `tracer.isolation.levels` says what can be chosen. Of chosen modules one
inside the other, the outer one is to show the error of the inner one too: each depth of nesting
has a run of its own. An attention mask stays the candidate's, which may have a form of its own:
the error of a wrong one shows where it is used.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tracer.errors import ModelRunError, UsageError
from tracer.execution.pairing import Pairing
from tracer.execution.state import garbage_set_aside
from tracer.interventions.experiment import Experiment, Run
from tracer.interventions.forcing import Forcing, Replaced
from tracer.isolation.causes import Cause, explaining, switches_of
from tracer.isolation.groups import grouped, pattern_of, points_of
from tracer.isolation.result import IsolatedCall, IsolatedModule, Isolation, Recovery
from tracer.isolation.trials import KeptCalls, SwitchTrials
from tracer.isolation.what_if import Swapping
from tracer.measurement.comparer import Comparer
from tracer.measurement.rows import CallKey, CallRecord, Row, final_output
from tracer.text import listed

# Modules that are alike but for their layer, and introduce less of the error together, are not
# looked into.
_LEAST_SHARE = 0.01
_CAUSES = "looking for causes"


def isolated(
    level: str,
    chosen: Collection[str] | None,
    free: Comparer,
    experiment: Experiment,
    *,
    what_if: int,
    explain: bool | Literal["all"] = True,
) -> Isolation:
    """Measures what each chosen module introduces, and finds causes for the worst.

    Costs one run of both models for each depth of nesting (one with `leaves`), and with `what_if`
    one for each module that is swapped and one for all of them. For causes modules are called again
    with what they had in these runs; where that is too much to keep, or is not enough to make the
    same of it, in another run of that depth.

    Args:
        level, chosen: what was asked for, and what `tracer.isolation.levels.modules_at` made of it.
        free: the finished run in which the candidate inherits its errors.
        experiment: runs both models again; its candidate may have switches.
        what_if: how many of the worst modules are swapped for the reference's, each alone and then
            all together.
        explain: whether to look for causes, in the worst of modules that are alike or in "all".

    Raises:
        UsageError: none of the chosen modules was called.
        ModelRunError: a model raised.
    """
    depths = _depths(chosen, free.records)
    if not depths:
        raise UsageError(f"isolate {level!r}: none of {listed(sorted(chosen or ()), 3)} was called")
    explains = bool(explain) and any(switches_of(experiment.session.candidate))
    calls: list[IsolatedCall] = []
    runs: dict[int, _ForcedRun] = {}
    experiment.phases.begin("isolating", runs=len(depths))
    for depth, modules in depths.items():
        visited = None if modules is None else _visited(modules, free.records)
        forced = runs[depth] = _ForcedRun.of(modules, visited, experiment, keeps=explains)
        calls += _shared(_measured(forced.run, modules, free.records, depth))
    ranked = _by_module(calls)
    worst, like_them = _worst(ranked, experiment.session.pairing, explain)
    causes: dict[str, tuple[Cause, ...]] = {}
    if explains:
        watched = {depth: [i.module for i in worst if i.worst.depth == depth] for depth in depths}
        watched = {depth: names for depth, names in watched.items() if names}
        experiment.phases.begin(_CAUSES, runs=sum(map(len, watched.values())))
        used = _used(free.records)
        for depth, names in watched.items():
            causes |= runs[depth].causes(names, used, experiment)
    order = {key: record.start for key, record in free.records.items()}
    return Isolation(
        level=level,
        calls=tuple(sorted(calls, key=lambda call: order.get((call.module, call.call), 0))),
        modules=tuple(
            replace(item, causes=explaining(causes.get(item.module, ()))) for item in ranked
        ),
        recoveries=tuple(_recoveries(ranked, what_if, free, experiment)),
        unforced=tuple(sorted(key for each in runs.values() for key in each.forcing.unforced)),
        groups=grouped(ranked, experiment.session.pairing),
        points=points_of(causes, ranked, experiment.session.pairing, like_them),
    )


@dataclass(frozen=True)
class _ForcedRun:
    """A run in which modules have the reference's inputs, and what is kept of it.

    Attributes:
        modules: which; None for all.
        visited: those whose calls are compared; None for all.
    """

    modules: frozenset[str] | None
    visited: frozenset[str] | None
    forcing: Forcing
    kept: KeptCalls
    run: Run

    @classmethod
    def of(
        cls,
        modules: frozenset[str] | None,
        visited: frozenset[str] | None,
        experiment: Experiment,
        *,
        keeps: bool,
    ) -> "_ForcedRun":
        forcing, kept = (
            Forcing(modules, Replaced.INEXACT),
            KeptCalls(modules, experiment.session.pairing),
        )
        interventions = (forcing, kept) if keeps else (forcing,)
        run = experiment.must_rerun(*interventions, relates=False, only=visited)
        return cls(modules, visited, forcing, kept, run)

    def causes(
        self,
        names: Sequence[str],
        used: Container[tuple[str, int, str]],
        experiment: Experiment,
    ) -> dict[str, tuple[Cause, ...]]:
        """The switches of some of the modules, and what they do to the error."""
        pairing = experiment.session.pairing
        trials = SwitchTrials(used, pairing, own_lines=self.modules is None)
        with garbage_set_aside():
            for name in names:
                experiment.phases.next_run()
                if not trials.try_kept(name, self.kept.of(name), self.run.comparer):
                    trials.watched.append(name)
        if trials.watched:
            experiment.phases.begin(_CAUSES)
            forcing = Forcing(self.modules, Replaced.INEXACT)
            try:
                experiment.must_rerun(forcing, trials, relates=False, only=self.visited)
            except ModelRunError as error:
                raise trials.raised or error from error.__cause__
        return {name: trials.found(name) for name in names}


def _worst(
    ranked: Sequence[IsolatedModule], pairing: Pairing, explain: bool | Literal["all"]
) -> tuple[list[IsolatedModule], list[IsolatedModule]]:
    """The modules to look for causes in, and those that are taken to be like these: of modules that
    are alike but for their layer the worst one stands for all."""
    alike: dict[tuple[int, str], list[IsolatedModule]] = defaultdict(list)
    for item in ranked:
        if item.share > 0.0:
            pattern = pattern_of(item.module, pairing.reference)
            alike[item.worst.depth, pattern].append(item)
    if explain == "all":
        return [item for items in alike.values() for item in items], []
    named = [i for i in alike.values() if math.fsum(item.share for item in i) >= _LEAST_SHARE]
    return [items[0] for items in named], [item for items in named for item in items[1:]]


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


def _visited(modules: Collection[str], records: Mapping[CallKey, CallRecord]) -> frozenset[str]:
    """Modules, those that they are called in, and what else is given a mask: it says what is
    padding."""
    calls = records.values()
    around = (_callers(record, records) for record in calls if record.module in modules)
    masked = (
        record.module
        for record in calls
        if any(row.is_mask for row in record.arguments.values())
        or any(form.is_mask for form in record.form_differences)
    )
    return frozenset(modules).union(masked, *around)


def _callers(record: CallRecord, records: Mapping[CallKey, CallRecord]) -> set[str]:
    """The modules that a call was made in, but for its own."""
    names = set()
    parent = record.parent
    while parent is not None:
        names.add(parent[0])
        parent = records[parent].parent
    return names - {record.module}


def _measured(
    run: Run, modules: Collection[str] | None, free: Mapping[CallKey, CallRecord], depth: int
) -> list[IsolatedCall]:
    """The worst value of each call in a run where it had the reference's inputs."""
    values: dict[CallKey, list[tuple[str, Row]]] = defaultdict(list)
    for key, receiver, row in _own_values(run, modules, _used(free) | _used(run.records)):
        values[key].append((receiver, row))
    calls = []
    for (module, call), own in values.items():
        receiver, row = max(own, key=lambda item: item[1].visible_errors[::-1])
        given = run.records[row.module, row.call].arguments.values() if receiver else ()
        introduced_peir, introduced = row.visible_errors
        freely = _same_value(row, free.get((row.module, row.call)))
        calls.append(
            IsolatedCall(
                module=module,
                call=call,
                value=f"{receiver}.{row.value}" if receiver else row.value,
                own_lines=modules is None and bool(run.records[module, call].children),
                depth=depth,
                input_peir=_input_peir(free.get((module, call))),
                peir=None if freely is None else freely.visible_errors[0],
                introduced_peir=introduced_peir,
                introduced=introduced,
                receiver=receiver,
                passed_as=row.value.label if sum(not each.is_mask for each in given) > 1 else "",
            )
        )
    return calls


def _own_values(
    run: Run, modules: Collection[str] | None, used: Container[tuple[str, int, str]]
) -> Iterator[tuple[CallKey, str, Row]]:
    """What each call makes of right inputs: the call, whom it passes that to, and its row.

    Where everything is forced, an argument is made in the forward of the call that passes it on.
    Of an output with several parts those that are not `used` are left out.
    """
    for row in run.rows:
        if not row.is_inexact:
            continue
        key = row.module, row.call
        if row.is_output:
            chosen = modules is None or row.module in modules
            if chosen and (row.module, row.call, row.value) in used:
                yield key, "", row
        elif modules is None and not row.is_mask:
            giver = run.records[key].parent
            if giver is not None:
                yield giver, row.module.removeprefix(f"{giver[0]}."), row


def _used(records: Mapping[CallKey, CallRecord]) -> set[tuple[str, int, str]]:
    """The outputs that something is made of, as far as that can be seen.

    Those are the first part of each output, what is handed to another call as it is, and what is
    left in caches. Attention weights, which most callers drop, are neither.
    """
    rows = [row for record in records.values() for row in record.arguments.values()]
    for record in records.values():
        inexact = [row for row in record.outputs if row.is_inexact]
        rows += [row for row in inexact if row.is_written or not row.module or row is inexact[0]]
    return {(row.module, row.call, row.value) for row in rows}


def _same_value(row: Row, record: CallRecord | None) -> Row | None:
    """The row of the same value in another run."""
    return None if record is None else record.row(row.value)


def _input_peir(record: CallRecord | None) -> float | None:
    if record is None:
        return None
    inputs = (row for row in record.arguments.values() if not row.is_mask)
    return max((row.visible_errors[0] for row in inputs), default=None)


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
    ranked: Sequence[IsolatedModule], count: int, free: Comparer, experiment: Experiment
) -> Iterator[Recovery]:
    """Swaps the worst modules, but for the model itself, each alone and then all together."""
    before = final_output(free.rows)
    assert before is not None  # a comparison without any has failed by now
    names = tuple(item.module for item in ranked if item.module and item.share > 0.0)[:count]
    runs = (*((name,) for name in names), *((names,) if len(names) > 1 else ()))
    experiment.phases.begin("swapping", runs=len(runs))
    for swapped in runs:
        swapping = Swapping(swapped)
        visited = _visited({"", *swapped}, free.records)
        after = final_output(experiment.must_rerun(swapping, relates=False, only=visited).rows)
        errors = (math.inf, math.inf) if after is None else after.visible_errors
        yield Recovery(
            modules=swapped,
            before=before.visible_errors[0],
            after=errors[0],
            before_l2=before.visible_errors[1],
            after_l2=errors[1],
            unswapped=tuple(sorted(swapping.unswapped)),
        )
