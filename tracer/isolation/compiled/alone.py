"""Each module compiled alone, on the reference's inputs: down to where it differs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tracer.execution.compilation import Stage
from tracer.interventions.experiment import Run, failure_in_words
from tracer.interventions.forcing import Forcing, Replaced
from tracer.isolation.compiled.result import AloneCompiled
from tracer.isolation.compiled.trials import Trials
from tracer.isolation.levels import modules_at
from tracer.measurement.rows import CallRecord, Row

# By the module, the call index and the value, the PEIR that rounding alone makes of right inputs.
Floors = Mapping[tuple[str, int, str], float]


@dataclass(frozen=True)
class Descent:
    """What was measured on the way down.

    Attributes:
        alone: every module that was compiled alone, in the order of their calls.
        culprits: the innermost that differ; the compiled parts where nothing in them does.
    """

    alone: tuple[AloneCompiled, ...]
    culprits: tuple[str, ...]


def descend(
    trials: Trials,
    stage: Stage,
    written: Run,
    rounding: Callable[[frozenset[str]], Floors],
) -> Descent:
    """Compiles the modules that the compiled parts call, each alone, and those that are called in
    what differs.

    Args:
        stage: as far as which.
        written: the run of the candidate with nothing compiled, which knows who calls whom.
        rounding: measures the noise floor of some modules on the reference's inputs.
    """
    called = callees(written.records.values())
    culprits = list(trials.whole)
    alone: list[AloneCompiled] = []
    if len(culprits) > 1:
        alone = measure(trials, stage, culprits, rounding)
        culprits = [item.module for item in alone if item.agrees is False]
    left = list(culprits)
    while left:
        inside = {name: called.get(name, ()) for name in left}
        frontier = list(dict.fromkeys(name for own in inside.values() for name in own))
        found = measure(trials, stage, frontier, rounding) if frontier else []
        alone += found
        left = [item.module for item in found if item.agrees is False]
        through = {name for name, own in inside.items() if set(own) & set(left)}
        culprits = [name for name in culprits if name not in through] + left
    order = list(dict.fromkeys(record.module for record in written.records.values()))
    alone.sort(key=lambda item: order.index(item.module))
    return Descent(tuple(alone), tuple(dict.fromkeys(culprits)))


def at_level(
    trials: Trials,
    stage: Stage,
    written: Run,
    rounding: Callable[[frozenset[str]], Floors],
    level: str,
) -> Descent:
    """Compiles the modules of a level, each alone; see `tracer.isolation.levels`.

    Raises:
        UsageError: there are none.
    """
    called = callees(written.records.values())
    names = dict.fromkeys(record.module for record in written.records.values())
    chosen = modules_at(level, trials.written_pairing)
    if chosen is None:
        chosen = frozenset(name for name in names if name not in called)
    left = [name for name in names if name in chosen and trials.is_in_part(name)]
    alone: list[AloneCompiled] = []
    while left:  # of those inside one another the inner ones are hidden
        outer = [name for name in left if not _is_inside(name, left)]
        alone += measure(trials, stage, outer, rounding)
        left = [name for name in left if name not in outer]
    differing = [item.module for item in alone if item.agrees is False]
    innermost = [name for name in differing if not any(_is_inside(n, [name]) for n in differing)]
    return Descent(tuple(alone), tuple(innermost) or trials.whole)


def _is_inside(name: str, others: Iterable[str]) -> bool:
    return any(name != other and (not other or name.startswith(f"{other}.")) for other in others)


def callees(records: Iterable[CallRecord]) -> dict[str, tuple[str, ...]]:
    """The modules that each module calls, in order."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        if record.parent is not None and record.module != record.parent[0]:
            found.setdefault(record.parent[0], {})[record.module] = None
    return {name: tuple(own) for name, own in found.items()}


def measure(
    trials: Trials,
    stage: Stage,
    names: Sequence[str],
    rounding: Callable[[frozenset[str]], Floors],
) -> list[AloneCompiled]:
    """What each module makes of the reference's inputs when it alone is compiled.

    One that raises is taken out, and the rest run again.
    """
    left, raised = list(names), []
    while left:
        run = trials.alone(left, stage).rerun(Forcing(frozenset(left), Replaced.INEXACT))
        if run.failure is None:
            break
        call = run.failure.call
        while call is not None and call.name not in left:
            call = call.parent
        if call is None:
            raised += [AloneCompiled(n, None, error=failure_in_words(run.failure)) for n in left]
            return raised
        left.remove(call.name)
        raised.append(AloneCompiled(call.name, None, error=failure_in_words(run.failure)))
    if not left:
        return raised
    found = list(_measured(left, run))
    if any(item.agrees is False for item in found):
        floors = rounding(frozenset(left))
        found = [_with_floor(item, floors) for item in found]
    return [*found, *raised]


def _measured(names: Iterable[str], run: Run) -> Iterator[AloneCompiled]:
    outputs: dict[str, list[Row]] = {name: [] for name in names}
    for row in run.rows:
        if row.is_output and row.module in outputs:
            outputs[row.module].append(row)
    for name, rows in outputs.items():
        if rows:  # else what it returns was made by another, or it is not called
            worst = max(rows, key=lambda row: (not row.agrees, row.error))
            yield AloneCompiled(name, worst.agrees, worst)


def _with_floor(item: AloneCompiled, floors: Floors) -> AloneCompiled:
    """The same with its noise floor, within which it agrees."""
    assert item.row is not None
    floor = floors.get((item.row.module, item.row.call, item.row.value))
    measured = replace(item, floor=floor)
    return replace(measured, agrees=item.agrees or measured.is_rounding)
