"""Both sides' operations inside one call of a module, and which of the candidate's values match.

A value of the candidate is right where the reference has it, in whatever form; an operation that
makes another one leads to a match where a right value follows from it. What does neither, and leads
to a wrong result, is unmatched.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch

from tracer.diagnosis.zoom.factors import scaled_input
from tracer.diagnosis.zoom.matching import Match
from tracer.diagnosis.zoom.operations import OperationLog, Step
from tracer.execution.hooks import Call
from tracer.measurement.rows import Row
from tracer.tensors.value_path import OUTPUT, ValuePath


class ZoomKind(StrEnum):
    """What was found inside a call.

    WRONG: an operation makes another value. MISSING: one of the reference's was left out. EDIT: an
    argument is edited in place that others still read.
    """

    WRONG = "wrong"
    MISSING = "missing"
    EDIT = "edit"
    NONE = "none"


@dataclass(frozen=True)
class Culprit:
    """The steps to be named; see `tracer.diagnosis.zoom.zoom.Zoomed`.

    Attributes:
        step, made: indices of the candidate's steps.
        expected: index of the reference's step.
    """

    kind: ZoomKind
    step: int | None = None
    expected: int | None = None
    made: int | None = None


@dataclass(frozen=True)
class SideLog:
    """One side's recording, and the values that count as its results; None where one was not seen.

    Where the candidate's results are wrong, these are the wrong ones.
    """

    recording: OperationLog
    results: Sequence[int | None]

    @property
    def known_results(self) -> list[int]:
        return [value for value in self.results if value is not None]

    def unmatched(self, right: set[int], results: set[int]) -> list[int]:
        """The steps that a result depends on, and from which nothing right follows."""
        recording = self.recording
        lost = recording.behind(self.known_results) - (
            _leading(recording, right, results) - results
        )
        return sorted({maker for value in lost if (maker := recording.makers[value]) is not None})


@dataclass(frozen=True)
class Case:
    """What the rules look at.

    Attributes:
        found: by the candidate's value what it was found as among the reference's.
        limit: how far two values may lie apart.
        is_wrong: the candidate's results are.
        right: the candidate's values that are found; a wrong result is none.
        covered: the reference's values that some of the candidate's are.
        unmatched: the candidate's steps that lead to a wrong result, and to no right value.
        missing: the reference's steps whose values the candidate does not have.
        first: the first unmatched step; None where there is none.
        expected: what the reference makes there.
        matched, leading_to_match: how many steps of the candidate's are.
    """

    reference: SideLog
    candidate: SideLog
    found: list[list[Match]]
    limit: float
    is_wrong: bool
    right: set[int]
    covered: set[int]
    unmatched: list[int]
    missing: list[int]
    first: int | None
    expected: int | None
    matched: int
    leading_to_match: int

    @property
    def steps(self) -> list[Step]:
        """The candidate's."""
        return self.candidate.recording.steps

    def counterparts(self, values: Iterable[int]) -> set[int]:
        """The reference's values that some of the candidate's were found as."""
        return {match.other for value in values for match in self.found[value]}

    def takes_right_values(self, index: int) -> bool:
        """Whether every value that a step takes is found, without a factor and in order."""
        return all(
            any(match.is_exact and match.is_ordered for match in self.found[value])
            for value in self.steps[index].inputs
        )


def case_of(
    sides: tuple[SideLog, SideLog], found: list[list[Match]], limit: float, *, is_wrong: bool
) -> Case:
    """What is known of both sides' values.

    Args:
        sides: the reference and the candidate.
        found: by the candidate's value what it was found as among the reference's.
        limit: how far two values may lie apart.
        is_wrong: the candidate's results are.
    """
    reference, candidate = sides
    recording = candidate.recording
    uninitialised = _uninitialised(recording)
    found = [[] if value in uninitialised else each for value, each in enumerate(found)]
    found = _without_unrelated(_inherited(recording, found, limit), sides)
    wrong, expected_results = (set(s.known_results) if is_wrong else set() for s in sides[::-1])
    right = {value for value, matches in enumerate(found) if matches and value not in wrong}
    right |= set() if is_wrong else set(candidate.known_results)
    covered = {match.other for matches in found for match in matches} - expected_results
    unmatched = candidate.unmatched(right, wrong) if is_wrong else []
    missing = reference.unmatched(covered, expected_results)
    filled = [i for i in unmatched if not uninitialised.issuperset(recording.steps[i].outputs)]
    first = _first_of(filled or unmatched, recording, found)
    taken = set() if first is None else set(recording.steps[first].inputs)
    made = [set(step.outputs) for step in recording.steps if step.outputs]
    leading = _leading(recording, right, wrong)
    matched = sum(not right.isdisjoint(outputs) for outputs in made)
    return Case(
        reference,
        candidate,
        found,
        limit,
        is_wrong,
        right,
        covered,
        unmatched,
        missing,
        first,
        _expected({m.other for v in taken for m in found[v]}, missing, reference.recording),
        matched,
        sum(not leading.isdisjoint(outputs) for outputs in made) - matched,
    )


def _uninitialised(recording: OperationLog) -> set[int]:
    """Memory that nothing has been written to yet may hold the elements of an earlier value."""
    found: set[int] = set()
    for step in recording.steps:
        if step.is_empty or (step.is_view and found.issuperset(step.inputs[:1])):
            found.update(step.outputs)
    return found


def _inherited(
    recording: OperationLog, found: list[list[Match]], limit: float
) -> list[list[Match]]:
    """What another layout or a multiple of a value that was found makes is found as well."""
    found = list(found)
    for step in recording.steps:
        if not step.outputs or found[step.outputs[0]]:
            continue
        if step.is_layout:
            taken, factor = step.inputs[0], 1.0
        else:
            taken, factor = scaled_input(recording, step, limit) or (-1, 0.0)
        if factor:
            found[step.outputs[0]] = [
                replace(match, is_ordered=False, factor=match.factor * factor)
                for match in found[taken]
            ]
    return found


def _without_unrelated(
    found: list[list[Match]], sides: tuple[SideLog, SideLog]
) -> list[list[Match]]:
    """Leaves out what a value was found as that does not depend on all modules that it does.

    Where all keys are alike, say, an attention returns the very values that it was given.
    """
    theirs, own = (_modules_behind(side.recording) for side in sides)
    return [
        [match for match in matches if own[value] <= theirs[match.other]]
        for value, matches in enumerate(found)
    ]


def _modules_behind(recording: OperationLog) -> list[set[str]]:
    """The modules whose outputs each value was computed from, not by way of other modules."""
    behind: list[set[str]] = [set() for _ in recording.values]
    for step in recording.steps:
        taken = {name for value in step.inputs for name in behind[value]}
        for value in step.outputs:
            behind[value] = {step.name} if step.is_call else taken
    return behind


def _first_of(
    unmatched: Sequence[int], recording: OperationLog, found: list[list[Match]]
) -> int | None:
    """The first unmatched step whose value is not put together of what is right.

    The halves of a sine table may have signs of their own, which other steps undo.
    """
    for index in begins(unmatched, recording):
        step = recording.steps[index]
        if step.kind not in ("cat", "stack") or not all(found[value] for value in step.inputs):
            return index
    return next(iter(unmatched), None)


def begins(unmatched: Sequence[int], recording: OperationLog) -> list[int]:
    """The unmatched steps that take nothing from one another."""
    lost = set(unmatched)
    return [
        index
        for index in unmatched
        if all(recording.makers[value] not in lost for value in recording.steps[index].inputs)
    ]


def _expected(taken: set[int], missing: list[int], recording: OperationLog) -> int | None:
    """The first step of the reference's whose value is missing, of those that take what the
    culprit takes, else of all."""
    near = (i for i in missing if not taken.isdisjoint(recording.steps[i].inputs))
    return next(near, next(iter(missing), None))


def _leading(recording: OperationLog, right: set[int], results: set[int]) -> set[int]:
    """The values that are right, or from which a right one follows, not by way of wrong results."""
    leading = set(right)
    for step in reversed(recording.steps):
        if not leading.isdisjoint(set(step.outputs) - results):
            leading.update(step.inputs)
    return leading


def wrong_values(call: Call, recording: OperationLog, wrong: Sequence[Row]) -> list[int | None]:
    """The values that a call returns or leaves in its arguments where these are wrong."""
    returned = OUTPUT.tensors(call.output)
    if not wrong:
        return [recording.known(leaf) for leaf in returned.values()]
    left = {
        path: leaf
        for name, value in call.arguments.items()
        for path, leaf in ValuePath.of_written(name).tensors(value).items()
    }
    found: list[torch.Tensor] = []
    for row in wrong:
        places = left if row.is_written else returned
        if row.value in places and not hasattr(call.module, "to_reference_output"):
            found.append(places[row.value])
        else:
            found += places.values() if not row.is_written else ()
    return list(dict.fromkeys(recording.known(leaf) for leaf in found))
