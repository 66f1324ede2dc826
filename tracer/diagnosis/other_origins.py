"""All origins of a divergence, not only the first.

In one more run the candidate goes on with the reference's values after each call (`Forcing`), so
that no error is inherited: what still disagrees begins right there. Each such value is examined as
the first divergence is, with runs of the same kind, until all are explained. The same mistake in
other layers, whose code is the same, is confirmed for all of them in one run.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tracer.diagnosis.alike import layers_of
from tracer.diagnosis.finding import Finding, FindingKind
from tracer.diagnosis.origin import Search
from tracer.diagnosis.trials import Outcome, Proof
from tracer.interventions.experiment import Run
from tracer.interventions.forcing import Forcing
from tracer.interventions.trial import Replacements
from tracer.measurement.rows import Row

# Each takes a few more runs of both models.
_MOST_ORIGINS = 8
# Below this part of the error that the output had, it has become better.
_BETTER = 0.95


def other_findings(
    first: Finding, start: Row, search: Search, *, is_otherwise: bool = False
) -> list[Finding]:
    """Finds the origins that the first divergence hides, in execution order.

    Args:
        first: what was found for the first divergence.
        start: the value that it was found for.
        search: the search that found it.
        is_otherwise: the candidate is laid out otherwise: what differs by itself may be made good,
            and is no origin unless the model's output gets better with it.
    """
    forcing = Forcing()
    run = search.experiment.rerun(forcing)
    if run.failure is not None:
        return []
    again = search.forced(run.comparer)
    left = _without(_beginnings(run, forcing), [start])
    if first.confirmed and first.trial is not None:
        left = _still_there(left, again, first.trial)
    found = [first]
    starts = {id(first): start.order}
    if not is_otherwise:
        same, left = _in_other_layers(first, start, left, run, again)
        starts |= {id(finding): order for order, finding in same}
        found += [finding for _, finding in same]
    left_over = math.inf
    if is_otherwise and first.trial is not None:
        left_over = search.evidence.output_error([first.trial])
    examined = 0
    while (left := [row for row in left if not _is_known(row, run, found)]) and (
        examined < _MOST_ORIGINS
    ):
        examined += 1
        begins_at, *left = left
        finding = again.examine(begins_at)
        if is_otherwise:
            trials = [trial for each in (*found, finding) if (trial := each.trial) is not None]
            error = search.evidence.output_error(trials)
            if finding.trial is None or error > _BETTER * left_over:
                continue
            left_over = error
        if finding.confirmed and finding.trial is not None:
            left = _still_there(left, again, finding.trial)
        if all(_kind(finding) != _kind(other) for other in found):
            starts[id(finding)] = begins_at.order
            found.append(finding)
            if not is_otherwise:
                same, left = _in_other_layers(finding, begins_at, left, run, again)
                starts |= {id(other): order for order, other in same}
                found += [other for _, other in same]
    others = sorted(found[1:], key=lambda finding: starts[id(finding)])
    if left and others:
        others[-1] = replace(others[-1], unexplained=len(left))
    return others


def _in_other_layers(
    finding: Finding, start: Row, left: Sequence[Row], run: Run, search: Search
) -> tuple[list[tuple[int, Finding]], list[Row]]:
    """The same mistake in other layers, which one run of all of them confirms.

    Returns:
        What was found, each with the place of its value; and the values that are left.
    """
    trial, origin = finding.trial, finding.origin
    if trial is None or not finding.confirmed or finding.kind is FindingKind.PARAMETERS:
        return [], list(left)
    moved: list[tuple[Row, Replacements, Finding]] = []
    for row in left:
        layers = _layers(start, row)
        there = None if layers is None else trial.moved(*layers)
        if layers is None or there is None or not _has_same_code(origin.module, layers, run):
            continue
        moved.append((row, there, _moved(finding, layers, run)))
    if not moved:
        return [], list(left)
    after = search.evidence.run_together([there for _, there, _ in moved])
    if after.failure is not None:
        return [], list(left)
    found = []
    for row, there, other in moved:
        now = after.row(row)
        if now is not None and now.agrees:
            found.append((row.order, replace(other, proof=Proof(Outcome.FALLS, there, (row, now)))))
    remaining = ((row, after.row(row)) for row in left)
    return found, [row for row, now in remaining if now is not None and not now.agrees]


def _layers(row: Row, other: Row) -> tuple[str, str] | None:
    """The names of the layers that two values are in, if these alone tell them apart."""
    if (row.call, row.value) != (other.call, other.value):
        return None
    names = row.module.split("."), other.module.split(".")
    if layers_of(row.module, [other.module]) is None:
        return None
    end = 1 + next(i for i, both in enumerate(zip(*names, strict=True)) if both[0] != both[1])
    return ".".join(names[0][:end]), ".".join(names[1][:end])


def _has_same_code(module: str, layers: tuple[str, str], run: Run) -> bool:
    """Whether a module in one layer and its counterpart in another run the same lines."""
    if not f"{module}.".startswith(f"{layers[0]}."):
        return False
    both = run.records.get((module, 0)), run.records.get((_in_layer(module, layers), 0))
    code = [
        None if record is None else (record.reference_definition, record.candidate_definition)
        for record in both
    ]
    return code[0] is not None and code[0] == code[1]


def _moved(finding: Finding, layers: tuple[str, str], run: Run) -> Finding:
    """A finding as it would be in another layer."""
    module = _in_layer(finding.origin.module, layers)
    own_name = run.records[module, 0].other_name
    return replace(
        finding,
        origin=replace(finding.origin, module=module, candidate_module=own_name),
        other=None if finding.other is None else _in_layer(finding.other, layers),
        since=None if finding.since is None else _in_layer(finding.since, layers),
        settings=(),
        unexplained=0,
    )


def _in_layer(module: str, layers: tuple[str, str]) -> str:
    old, new = layers
    return new + module[len(old) :] if f"{module}.".startswith(f"{old}.") else module


def _is_known(row: Row, run: Run, found: Iterable[Finding]) -> bool:
    """Whether a value begins where an origin was found: in another call of that module, say, or in
    another of its values. An argument that is passed wrongly is another origin than the rest."""
    parent = run.records[row.module, row.call].parent
    begins_in = row.module if row.is_output else "" if parent is None else parent[0]
    origins = [finding.origin for finding in found]
    return any(o.module == begins_in and o.argument in (None, row.argument) for o in origins)


def _kind(finding: Finding) -> tuple[str, str | None, str]:
    """What tells origins apart: a module's own forward may spoil several values, in variables that
    go on from one to the next."""
    origin = finding.origin
    return origin.module, origin.argument, origin.kind


def _beginnings(run: Run, forcing: Forcing) -> list[Row]:
    """The values that disagree without having inherited it.

    Masks are left out: where a wrong one has an effect, what it is used for disagrees.
    """
    wrong = [row for row in run.rows if not row.agrees and not row.is_mask]
    return [row for row in wrong if not any(map(forcing.goes_on, run.inputs(row)))]


def _still_there(rows: Iterable[Row], search: Search, trial: Replacements) -> list[Row]:
    """Those that disagree in a forced run with a trial as well."""
    experiment = search.evidence.run(trial)
    if experiment.failure is not None:
        return list(rows)
    after = ((row, experiment.row(row)) for row in rows)
    return [row for row, now in after if now is not None and not now.agrees]


def _without(rows: Iterable[Row], others: Iterable[Row]) -> list[Row]:
    known = {(row.module, row.call, row.value) for row in others}
    return [row for row in rows if (row.module, row.call, row.value) not in known]
