"""All origins of a divergence, not only the first.

In one more run the candidate goes on with the reference's values after each call (`Forcing`), so
that no error is inherited: what still disagrees begins right there. Each such value is examined as
the first divergence is, with runs of the same kind, until all are explained.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from tracer.diagnosis.finding import Finding
from tracer.diagnosis.origin import Search
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
    left_over = math.inf
    if is_otherwise and first.trial is not None:
        left_over = search.evidence.output_error([first.trial])
    examined = 0
    while (left := [row for row in left if not _is_known(row, run, found)]) and (
        examined < _MOST_ORIGINS
    ):
        examined += 1
        finding = again.examine(left[0])
        left = left[1:]
        if is_otherwise:
            trials = [trial for each in (*found, finding) if (trial := each.trial) is not None]
            error = search.evidence.output_error(trials)
            if finding.trial is None or error > _BETTER * left_over:
                continue
            left_over = error
        if finding.confirmed and finding.trial is not None:
            left = _still_there(left, again, finding.trial)
        if all(_kind(finding) != _kind(other) for other in found):
            found.append(finding)
    if left and len(found) > 1:
        found[-1] = replace(found[-1], unexplained=len(left))
    return found[1:]


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
