"""With which value the first divergence begins, among values of another layout.

Where both models are laid out alike, that is the first value that differs. A model may also be
folded, smoothed, permuted or rotated, and then much differs that other modules make good: replaced
by the reference's it makes the model's output worse. So values that differ although nothing
unexcused went in are tried in execution order, until the model's output gets better with one. Of a
relation to the reference's values that turned out to be made good, further ones are tried last.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tracer.diagnosis.finding import Finding
from tracer.diagnosis.healing import Healing
from tracer.diagnosis.origin import Search
from tracer.diagnosis.trials import Outcome
from tracer.interventions.trial import Replacements
from tracer.measurement.rows import Row, inputs_of

# Each takes a few more runs of both models.
_MOST_TRIED, _MOST_HIDDEN = 12, 3
# Of the limit, what an output is off by at least where an error may be hidden; and of that, what is
# left once it is gone.
_NOTICEABLE, _GONE = 0.1, 0.25


@dataclass(frozen=True)
class _Tried:
    """A value that was tried, without making the model's output better."""

    row: Row
    finding: Finding


def first_origin(search: Search, healing: Healing, symptoms: Sequence[Row]) -> tuple[Row, Finding]:
    """The value with which the first divergence begins, and what was found for it.

    Args:
        symptoms: the values that differ and do not heal, in execution order.
    """
    first = next((row for row in symptoms if not healing.is_made_good(row)), symptoms[0])
    search.trail.excused.update(row.order for row in symptoms if row.order < first.order)
    start = search.trail.introduced_at(first)
    finding = search.examine(start)
    if start is not first and not finding.confirmed:
        finding = search.examine(first)
        if not finding.confirmed and search.evidence.may_run:
            finding = search.gradual(start, first, finding)
        start = first
    untried = finding.proof is not None and finding.proof.outcome is Outcome.NOT_REPLACED
    if finding.confirmed or not search.evidence.may_run or untried:
        return start, finding
    if not healing.is_otherwise():
        return start, finding
    search.trail.excused.add(first.order)
    tried = [_Tried(start, finding)]
    for row in _beginnings(search, healing, symptoms, first):
        found = search.examine(row)
        if found.confirmed:
            return _before(search, healing, tried, _Tried(row, found))
        tried.append(_Tried(row, found))
        search.trail.excused.add(row.order)
    blamed = next((each for each in tried if _is_unrelated(search, each.row)), tried[0])
    return blamed.row, blamed.finding


def hidden_by_tolerance(search: Search, healing: Healing) -> list[Row]:
    """The result, if there is one, that is far off and reaches an output that agrees all the same.

    A coarse tolerance, as of half precision, may let an error pass. With the reference's
    result the output is then as good as equal; where a result is made good, it gets worse.
    """
    distance = healing.output_distance()
    limit = max((row.limit for row in healing.final_rows()), default=0.0)
    if not search.evidence.may_run or distance <= _NOTICEABLE * limit:
        return []
    for row in list(healing.gross())[:_MOST_HIDDEN]:
        replaced = Replacements(output=(row.module, row.call))
        if search.evidence.output_distance(replaced) < _GONE * distance:
            return [row]
    return []


def _beginnings(
    search: Search, healing: Healing, symptoms: Sequence[Row], first: Row
) -> Iterator[Row]:
    """The values to try, one after the other; those that were tried are excused by then."""
    excused, differing = search.trail.excused, {row.order for row in symptoms}
    known = {first.relation} - {None}
    later: list[Row] = []
    tried = 0
    for row in symptoms:
        inputs = {each.order for each in inputs_of(row, search.trail.records)}
        if row.order in excused or inputs & differing - excused:
            continue
        if healing.is_made_good(row):
            excused.add(row.order)
        elif row.relation in known:
            later.append(row)
            excused.add(row.order)
        elif tried < _MOST_TRIED:
            tried += 1
            known.update({row.relation} - {None})
            yield row
    for row in later[:_MOST_TRIED]:
        excused.discard(row.order)
        yield row


def _before(
    search: Search, healing: Healing, tried: Sequence[_Tried], found: _Tried
) -> tuple[Row, Finding]:
    """What was found, or what went into it and could not be shown, for the layout that it is in.

    That is a result that is unrelated to the reference's, or the one value that all of several
    such results were made of.
    """
    caller = found.row.module.rpartition(".")[0]
    near = [each for each in tried if each.row.module.rpartition(".")[0] == caller]
    unrelated = [each for each in near if _is_unrelated(search, each.row)]
    modules = {each.row.module for each in (*unrelated, found)}
    for each in tried:
        takers = healing.takers(each.row)
        if len(takers) > 1 and takers <= modules:
            return each.row, replace(each.finding, proof=found.finding.proof)
    if unrelated:
        return unrelated[0].row, replace(unrelated[0].finding, proof=found.finding.proof)
    return found.row, found.finding


def _is_unrelated(search: Search, row: Row) -> bool:
    """Whether a result, and the parameters that it is made with, are the reference's in no layout
    that is known."""
    return row.is_output and row.relation is None and search.has_unrelated_parameters(row)
