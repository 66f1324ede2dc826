"""Sides that run the same operations but for a few: paired in their order, and compared strictly.

Where a candidate has another form its values are looked for wherever they may be, in any order and
with any factor. Where both sides run the same operations none of that is needed: each operation has
its counterpart, and what it takes and makes must be the same, whole numbers, booleans, shapes and
single numbers included.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch

from tracer.diagnosis.zoom.case import Case, Culprit, ZoomKind, begins
from tracer.diagnosis.zoom.matching import is_same
from tracer.diagnosis.zoom.operations import OperationLog, Step
from tracer.tensors.kinds import plain

# How much of both sides is paired where they run the same operations.
_SAME_FORM = 0.75


@dataclass(frozen=True)
class Alignment:
    """Which of the candidate's steps are which of the reference's.

    Attributes:
        others: by the candidate's step the reference's.
        own: by the reference's step the candidate's.
        instead: by the candidate's step without a counterpart the reference's that stand there.
    """

    others: dict[int, int]
    own: dict[int, int]
    instead: dict[int, range]


def align(reference: OperationLog, candidate: OperationLog) -> Alignment | None:
    """Pairs the steps of both sides in order; None where they do not run the same operations."""
    ours, theirs = ([(s.is_call, s.kind) for s in side.steps] for side in (candidate, reference))
    shorter = min(len(ours), len(theirs))
    start = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
    left = shorter - start
    end = next((i for i in range(left) if ours[-1 - i] != theirs[-1 - i]), left)
    middle = SequenceMatcher(
        None,
        ours[start : len(ours) - end],
        theirs[start : len(theirs) - end],
        autojunk=False,
    )
    others = {i: i for i in range(start)}
    instead: dict[int, range] = {}
    for kind, a, b, c, d in middle.get_opcodes():
        if kind == "equal":
            others.update(
                zip(range(start + a, start + b), range(start + c, start + d), strict=True)
            )
        else:
            instead.update(dict.fromkeys(range(start + a, start + b), range(start + c, start + d)))
    others.update({len(ours) - i: len(theirs) - i for i in range(1, end + 1)})
    if 2 * len(others) < _SAME_FORM * (len(ours) + len(theirs)):
        return None
    return Alignment(others, {other: own for own, other in others.items()}, instead)


def same_operations(case: Case) -> Culprit | None:
    """The first difference between sides that run the same operations, if it stays one."""
    aligned = align(case.reference.recording, case.candidate.recording)
    return None if aligned is None else _Aligned(case, aligned).culprit()


@dataclass(frozen=True)
class _Aligned:
    case: Case
    alignment: Alignment

    def culprit(self) -> Culprit | None:
        case = self.case
        results = set(case.candidate.known_results)
        right = {v for step in self.alignment.others for v in self._right_outputs(step)}
        for step in self.alignment.instead:
            right.update(v for v in case.steps[step].outputs if self._is_found(v, step))
        right -= results
        unmatched = case.candidate.unmatched(right, results)
        first = next(iter(begins(unmatched, case.candidate.recording)), None)
        if first is None:
            return None
        other = self.alignment.others.get(first)
        if other is None:
            there = next(iter(self.alignment.instead[first]), case.expected)
            return Culprit(ZoomKind.WRONG, first, there)
        return self._of_pair(first, other)

    def _of_pair(self, first: int, other: int) -> Culprit | None:
        own, theirs = self.case.candidate.recording, self.case.reference.recording
        step, expected = own.steps[first], theirs.steps[other]
        if len(self._right_outputs(first)) == len(step.outputs):
            return self._returned(first, expected)
        for value, wanted in zip(step.inputs, expected.inputs, strict=False):
            if self._is_same(value, wanted):
                continue
            made, maker = own.makers[value], theirs.makers[wanted]
            if maker is None:
                continue
            if maker not in self.alignment.own:
                return Culprit(ZoomKind.MISSING, first, self._first_left_out(maker), made)
            exchanged = self._exchanged(made, self.alignment.own[maker])
            return Culprit(ZoomKind.WRONG, first if exchanged is None else exchanged, other)
        return Culprit(ZoomKind.WRONG, first, other)

    def _first_left_out(self, index: int) -> int:
        """The first of the reference's steps without a counterpart that lead to one of them."""
        recording = self.case.reference.recording
        while True:
            makers = (recording.makers[value] for value in recording.steps[index].inputs)
            before = [m for m in makers if m is not None and m not in self.alignment.own]
            if not before:
                return index
            index = min(before)

    def _returned(self, first: int, expected: Step) -> Culprit | None:
        """What is right is returned as it is, and the reference computes on with it."""
        steps = self.case.reference.recording.steps
        onward = (
            index
            for index, step in enumerate(steps)
            if index not in self.alignment.own and not set(expected.outputs).isdisjoint(step.inputs)
        )
        missing = next(onward, None)
        return None if missing is None else Culprit(ZoomKind.MISSING, first, missing, first)

    def _exchanged(self, made: int | None, instead_of: int) -> int | None:
        """What makes a value that is taken instead of another one, where both were made by one
        line and all that follows has them exchanged."""
        steps = self.case.steps
        if made is None or not set(steps[made].lines) & set(steps[instead_of].lines):
            return None
        values = {*steps[made].outputs, *steps[instead_of].outputs}
        places = {}
        for index, other in self.alignment.others.items():
            taken, wanted = steps[index].inputs, self.case.reference.recording.steps[other].inputs
            for value, theirs in zip(taken, wanted, strict=False):
                if value in values:
                    if self._is_same(value, theirs):
                        return None
                    places[steps[index].lines] = index
        is_by_itself = len(places) < 2 or any(
            set(lines) & set(steps[made].lines) for lines in places
        )
        return None if is_by_itself else made

    def _is_found(self, value: int, step: int) -> bool:
        """Whether the reference has a value, or a part of it is one, where no step of its own is
        the counterpart; what is computed it must have had by then."""
        makers, end = self.case.reference.recording.makers, self.alignment.instead[step].stop
        end = len(makers) if self.case.steps[step].is_view else end
        return any(
            match.is_exact and match.is_ordered and (makers[match.other] or 0) < end
            for match in self.case.found[value]
        )

    def _right_outputs(self, index: int) -> list[int]:
        step = self.case.steps[index]
        other = self.case.reference.recording.steps[self.alignment.others[index]]
        pairs: Iterable[tuple[int, int]] = zip(step.outputs, other.outputs, strict=False)
        return [value for value, theirs in pairs if self._is_same(value, theirs)]

    def _is_same(self, value: int, other: int) -> bool:
        one = self.case.candidate.recording.values[value]
        two = self.case.reference.recording.values[other]
        if one.shape != two.shape and self._is_taken_alike(value):
            return False
        if not one.dtype.is_floating_point and not two.dtype.is_floating_point:
            one, two = plain(one), plain(two)
            return torch.equal(one.flatten(), two.to(one.dtype).flatten())
        return is_same(one, two, self.case.limit)

    def _is_taken_alike(self, value: int) -> bool:
        """Whether the operations that take a value have counterparts: its shape must be right."""
        taking = [i for i, step in enumerate(self.case.steps) if value in step.inputs]
        return not taking or any(index in self.alignment.others for index in taking)
