"""Which recorded operation is to blame for a wrong result; see `tracer.diagnosis.zoom`."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tracer.diagnosis.zoom.matching import Match, factor_between, is_rearranged, is_same
from tracer.diagnosis.zoom.operations import OperationLog, Step

# Operations that may multiply by a constant.
_SCALING = ("mul", "div", "neg")
# Operations that hand on a factor of what they take.
_HOMOGENEOUS = ("matmul", *_SCALING)
# Constants by which a step multiplies; by a module that is called, or from outside, without one.
_Factors = list[tuple[int | None, float]]
# How close the factors of two operations are, to be the same.
_SAME_FACTOR = 1e-4


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


@dataclass(frozen=True)
class Blame:
    """The steps to be named; see `tracer.diagnosis.zoom.zoom.Zoomed`.

    Attributes:
        guilty, made: indices of the candidate's steps.
        expected: index of the reference's step.
        inputs_agree: each value that the guilty step takes is one of the reference's as it is.
    """

    kind: str
    guilty: int | None = None
    expected: int | None = None
    made: int | None = None
    inputs_agree: bool = False
    matched: int = 0
    leading_back: int = 0
    astray: int = 0


def blame(
    sides: tuple[SideLog, SideLog],
    found: list[list[Match]],
    limit: float,
    *,
    is_wrong: bool,
    edits: bool,
) -> Blame:
    """Finds the guilty step.

    Args:
        found: by the candidate's value what it was found as among the reference's.
        limit: how far two values may lie apart.
        is_wrong: the candidate's results are.
        edits: the candidate alone edits an argument in place.
    """
    case = _Case(*sides, found, limit, is_wrong)
    counts = case.counts()
    if not is_wrong:
        is_edit = edits and not sides[0].recording.edits
        edit = next((step for step, _ in sides[1].recording.edits), None) if is_edit else None
        kind = "none" if edit is None else "edit"
        return Blame(kind, edit, matched=counts[0], leading_back=counts[1])
    astray = case.astray()
    steps = sides[1].recording.steps
    filled = [step for step in astray if not case.void.issuperset(steps[step].outputs)]
    guilty = case.first_of(filled or astray)
    verdict = case.explained(guilty)
    return Blame(
        verdict.kind,
        verdict.guilty,
        verdict.expected,
        verdict.made,
        verdict.guilty is not None and case.takes_right_values(verdict.guilty),
        *counts,
    )


@dataclass
class _Case:
    """Both recordings and what is known of their values."""

    reference: SideLog
    candidate: SideLog
    found: list[list[Match]]
    limit: float
    is_wrong: bool
    right: set[int] = field(init=False)
    covered: set[int] = field(init=False)
    void: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._leave_out_void()
        self._inherit()
        self._leave_out_strangers()
        results = self._results(self.candidate)
        self.right = {
            value for value, matches in enumerate(self.found) if matches and value not in results
        }
        if not self.is_wrong:
            self.right |= set(self.candidate.known_results)
        expected = self._results(self.reference)
        self.covered = {match.other for matches in self.found for match in matches} - expected

    def _leave_out_void(self) -> None:
        """Memory that nothing has been written to yet may hold the elements of an earlier value."""
        for step in self.candidate.recording.steps:
            if _is_empty(step) or (step.is_view and self.void.issuperset(step.inputs[:1])):
                self.void.update(step.outputs)
        for value in self.void:
            self.found[value] = []

    def _inherit(self) -> None:
        """What another layout or a multiple of a value that was found makes is found as well."""
        for step in self.candidate.recording.steps:
            if not step.outputs or self.found[step.outputs[0]]:
                continue
            if step.is_layout:
                taken, factor = step.inputs[0], 1.0
            else:
                taken, factor = self._scaled_input(self.candidate.recording, step) or (-1, 0.0)
            if factor:
                self.found[step.outputs[0]] = [
                    replace(match, is_ordered=False, factor=match.factor * factor)
                    for match in self.found[taken]
                ]

    def _scaled_input(self, recording: OperationLog, step: Step) -> tuple[int, float] | None:
        """The value that a step multiplies by a constant, and that constant."""
        if step.kind not in _SCALING or not step.outputs:
            return None
        made = recording.values[step.outputs[0]]
        for taken in step.inputs:
            factor = factor_between(made, recording.values[taken], self.limit)
            if factor is not None:
                return taken, factor
        return None

    def _leave_out_strangers(self) -> None:
        """Leaves out what a value was found as that does not depend on all modules that it does.

        Where all keys are alike, say, an attention returns the very values that it was given.
        """
        own = _modules_behind(self.candidate.recording)
        theirs = _modules_behind(self.reference.recording)
        for value, matches in enumerate(self.found):
            self.found[value] = [m for m in matches if own[value] <= theirs[m.other]]

    def counts(self) -> tuple[int, int, int]:
        """Steps of the candidate that are matched, that lead back, and that go astray."""
        recording = self.candidate.recording
        leading = _leading(recording, self.right, self._results(self.candidate))
        made = [step for step in recording.steps if step.outputs]
        matched = sum(not self.right.isdisjoint(step.outputs) for step in made)
        back = sum(not leading.isdisjoint(step.outputs) for step in made) - matched
        return matched, back, len(self.astray()) if self.is_wrong else 0

    def astray(self) -> list[int]:
        """The candidate's steps that lead to a wrong result, and to no right value."""
        return _astray(self.candidate, self.right, self._results(self.candidate))

    def first_of(self, astray: Sequence[int]) -> int | None:
        """The first step where something goes astray that is not put together of what is right.

        The halves of a sine table may have signs of their own, which other steps undo.
        """
        recording = self.candidate.recording
        lost = set(astray)
        begins = [
            index
            for index in astray
            if all(recording.makers[value] not in lost for value in recording.steps[index].inputs)
        ]
        whole = (index for index in begins if not self._is_put_together(index))
        return next(whole, next(iter(astray), None))

    def _is_put_together(self, index: int) -> bool:
        step = self.candidate.recording.steps[index]
        return step.kind in ("cat", "stack") and all(self.found[value] for value in step.inputs)

    def explained(self, guilty: int | None) -> Blame:
        """What explains that a step is the first of those astray."""
        expected = self._expected(guilty)
        if guilty is None:
            made = self._maker_of_result()
            first = expected if expected is not None else self._first_of_reference()
            return Blame("missing", None, first, made)
        scale = self._wrong_scale(guilty, expected)
        if scale is not None:
            return scale
        order = self._wrong_order(guilty)
        if order is not None:
            return Blame("wrong", order, expected)
        left_out = self._left_out(guilty, expected)
        if left_out is not None:
            return left_out
        return Blame("wrong", guilty, expected)

    def takes_right_values(self, index: int) -> bool:
        """Whether every value that a step takes is found, without a factor and in order."""
        step = self.candidate.recording.steps[index]
        return all(
            any(match.is_exact and match.is_ordered for match in self.found[value])
            for value in step.inputs
        )

    # The reference's side.

    def _expected(self, guilty: int | None) -> int | None:
        """The first step of the reference's whose value is missing, of those that take what the
        guilty step takes, else of all."""
        recording = self.reference.recording
        missing = self._missing()
        if guilty is not None:
            step = self.candidate.recording.steps[guilty]
            taken = self._counterparts(step.inputs)
            near = [i for i in missing if not taken.isdisjoint(recording.steps[i].inputs)]
            missing = near or missing
        return missing[0] if missing else None

    def _missing(self) -> list[int]:
        return _astray(self.reference, self.covered, self._results(self.reference))

    def _results(self, side: SideLog) -> set[int]:
        """Results that are wrong, whatever else follows from them."""
        return set(side.known_results) if self.is_wrong else set()

    def _counterparts(self, values: Iterable[int]) -> set[int]:
        return {match.other for value in values for match in self.found[value]}

    def _first_of_reference(self) -> int | None:
        steps = self.reference.recording.makers_of(self.reference.known_results)
        return min(steps, default=None)

    def _maker_of_result(self) -> int | None:
        makers = self.candidate.recording.makers
        return next(
            (makers[v] for v in self.candidate.known_results if makers[v] is not None), None
        )

    # Explanations.

    def _wrong_scale(self, guilty: int, expected: int | None) -> Blame | None:
        """A factor before the guilty step that is not among the reference's."""
        step = self.candidate.recording.steps[guilty]
        for value, other, factor in self._scaled_inputs(step):
            own = _of_size(self._factors(self.candidate, value), factor)
            theirs = _of_size(self._factors(self.reference, other), factor)
            own, theirs = self._without_common(own, theirs)
            product = math.prod(f for _, f in own) / math.prod(f for _, f in theirs)
            if not _is_near(abs(product), abs(factor)):
                continue
            mine = [index for index, _ in own if index is not None]
            their = [index for index, _ in theirs if index is not None]
            if mine:
                return Blame("wrong", mine[-1], their[-1] if their else expected)
            if their:
                made = self.candidate.recording.makers[value]
                return Blame("missing", guilty, their[-1], made)
        return None

    def _without_common(self, own: _Factors, theirs: _Factors) -> tuple[_Factors, _Factors]:
        """What is left of both sides' factors.

        First those go that multiply the same value as the reference's, then those that make one.
        """
        own, left = list(own), list(theirs)
        for scaling in theirs:
            same = [each for each in own if _is_near(each[1], scaling[1])]
            if same:
                own.remove(
                    max(same, key=lambda e: (self._is_twin(e[0], scaling[0]), self._is_exact(e[0])))
                )
                left.remove(scaling)
        return own, left

    def _is_twin(self, index: int | None, other: int | None) -> bool:
        """Whether a step takes, but for a factor, what a step of the reference's takes."""
        if index is None or other is None:
            return False
        taken = self.candidate.recording.steps[index].inputs
        return not self._counterparts(taken).isdisjoint(
            self.reference.recording.steps[other].inputs
        )

    def _scaled_inputs(self, step: Step) -> Iterable[tuple[int, int, float]]:
        """Values that a step takes with a factor over what a step of its kind takes there: its own
        value, the reference's and the factor."""
        recording = self.reference.recording
        same = [
            other
            for index, other in enumerate(recording.steps)
            if other.kind == step.kind and self.covered.isdisjoint(other.outputs)
        ]
        results = set(self.reference.known_results)
        # A factor goes through a product, so that it is not wrong there yet.
        taken_in = () if step.kind in _HOMOGENEOUS else step.inputs
        for value in (*taken_in, *step.outputs):
            for match in self.found[value]:
                taken = any(match.other in other.inputs for other in same)
                if not match.is_exact and (taken or match.other in results):
                    yield value, match.other, match.factor

    def _factors(self, side: SideLog, value: int) -> _Factors:
        """The constants that went into a value, each as (step, factor); from outside as None."""
        recording = side.recording
        found: _Factors = []
        for index in sorted(recording.makers_of([value])):
            step = recording.steps[index]
            if step.is_call and side is self.candidate:
                found += [(None, f) for f in map(self._own_factor, step.outputs) if f is not None]
            elif (scaled := self._scaled_input(recording, step)) is not None:
                found.append((index, scaled[1]))
        return found

    def _own_factor(self, value: int) -> float | None:
        """The factor of a value that another module has made with it."""
        matches = self.found[value]
        return None if not matches or matches[0].is_exact else matches[0].factor

    def _is_exact(self, step: int | None) -> bool:
        outputs = () if step is None else self.candidate.recording.steps[step].outputs
        return any(match.is_exact for value in outputs for match in self.found[value])

    def _wrong_order(self, guilty: int) -> int | None:
        """A step before the guilty one that puts right elements in another order."""
        steps = self.candidate.recording.steps
        twin = self._twin(guilty)
        if twin is not None:
            found = self._out_of_order(guilty, twin)
            if found is not None:
                return found
        for index in sorted(self.candidate.recording.makers_of(list(steps[guilty].inputs))):
            if self._reorders(index):
                return index
        return None

    def _twin(self, guilty: int) -> int | None:
        """The reference's step of the same kind, of those whose value is missing."""
        steps = self.reference.recording.steps
        kind = self.candidate.recording.steps[guilty].kind
        missing = self._missing()
        return next((index for index in missing if steps[index].kind == kind), None)

    def _out_of_order(self, guilty: int, expected: int) -> int | None:
        """The first step that rearranges a value which the reference takes in another order."""
        recording, reference = self.candidate.recording, self.reference.recording
        pairs = zip(recording.steps[guilty].inputs, reference.steps[expected].inputs, strict=False)
        for value, other in pairs:
            mine, theirs = recording.values[value], reference.values[other]
            if mine.shape != theirs.shape or is_same(mine, theirs, self.limit):
                continue
            if not is_rearranged(mine, theirs, self.limit):
                continue
            earlier = None
            while not any(match.is_whole and match.is_ordered for match in self.found[value]):
                maker = recording.makers[value]
                if maker is None or not recording.steps[maker].is_view:
                    break
                earlier, value = maker, recording.steps[maker].inputs[0]
            if earlier is not None:
                return earlier
            maker = recording.makers[value]
            if maker is not None and recording.steps[maker].is_view:
                return maker
        return None

    def _reorders(self, index: int) -> bool:
        """Whether a step makes a value that is none of the reference's out of the elements of one
        that is, and pieces of it are taken for the reference's."""
        recording = self.candidate.recording
        step = recording.steps[index]
        if step.is_call or len(step.outputs) != 1 or self.found[step.outputs[0]]:
            return False
        value = recording.values[step.outputs[0]]
        sources = {
            v
            for i in recording.makers_of(list(step.outputs))
            for v in (*recording.steps[i].inputs,)
        }
        whole = [v for v in sources if any(m.is_whole for m in self.found[v])]
        if not any(is_rearranged(value, recording.values[v], self.limit) for v in whole):
            return False
        return self._pieces_match(step.outputs[0])

    def _pieces_match(self, value: int) -> bool:
        recording = self.candidate.recording
        pieces = {value}
        for step in recording.steps:
            if step.is_view and step.inputs and step.inputs[0] in pieces:
                if any(self.found[output] for output in step.outputs):
                    return True
                pieces |= set(step.outputs)
        return False

    def _left_out(self, guilty: int, expected: int | None) -> Blame | None:
        """The guilty step is right, but for one of the reference's that belongs before it."""
        if expected is None:
            return None
        recording, reference = self.candidate.recording, self.reference.recording
        step, missing = recording.steps[guilty], reference.steps[expected]
        shared = next(
            (
                value
                for value in (*step.inputs, *step.outputs)
                if not {m.other for m in self.found[value]}.isdisjoint(missing.inputs)
            ),
            None,
        )
        if shared is None or (step.kind == missing.kind and shared in step.inputs):
            return None
        if shared in step.outputs:
            # Right by itself, but returned as it is.
            return Blame("missing", guilty, expected, guilty)
        counterparts = self._counterparts([shared])
        if any(s.kind == step.kind and counterparts & set(s.inputs) for s in reference.steps):
            return None
        later = [s for s in reference.steps[expected + 1 :] if s.kind == step.kind]
        after = _following(reference, missing.outputs)
        if any(not after.isdisjoint(s.inputs) for s in later):
            made = recording.makers[shared]
            neutral = self._neutral(made)
            if neutral is not None:
                return Blame("wrong", neutral, expected)
            return Blame("missing", guilty, expected, made)
        return None

    def _neutral(self, index: int | None) -> int | None:
        """What makes a step change nothing, where it is another step: a mask of zeros, say."""
        if index is None:
            return None
        recording = self.candidate.recording
        step = recording.steps[index]
        if step.is_call or step.is_view or len(step.inputs) != 2:
            return None
        made = recording.values[step.outputs[0]]
        for value, operand in (step.inputs, step.inputs[::-1]):
            if is_same(made, recording.values[value], self.limit):
                maker = recording.makers[operand]
                while maker is not None and recording.steps[maker].is_view:
                    maker = recording.makers[recording.steps[maker].inputs[0]]
                return maker
        return None


def _leading(recording: OperationLog, right: set[int], results: set[int]) -> set[int]:
    """The values that are right, or from which a right one follows, not by way of wrong results."""
    leading = set(right)
    for step in reversed(recording.steps):
        if not leading.isdisjoint(set(step.outputs) - results):
            leading.update(step.inputs)
    return leading


def _astray(side: SideLog, right: set[int], results: set[int]) -> list[int]:
    """The steps that make what a result depends on, and from which nothing right follows."""
    recording = side.recording
    leading = _leading(recording, right, results) - results
    lost = recording.behind(side.known_results) - leading
    return sorted({maker for value in lost if (maker := recording.makers[value]) is not None})


def _modules_behind(recording: OperationLog) -> list[set[str]]:
    """The modules whose outputs each value was computed from, not by way of other modules."""
    behind: list[set[str]] = [set() for _ in recording.values]
    for step in recording.steps:
        taken = {name for value in step.inputs for name in behind[value]}
        for value in step.outputs:
            behind[value] = {step.name} if step.is_call else taken
    return behind


def _following(recording: OperationLog, values: Iterable[int]) -> set[int]:
    """The values and all that are computed from them."""
    following = set(values)
    for step in recording.steps:
        if not following.isdisjoint(step.inputs):
            following.update(step.outputs)
    return following


def _of_size(factors: _Factors, factor: float) -> _Factors:
    """Those that can have made a factor: signs for a sign, else what is not undone again."""
    if _is_near(abs(factor), 1.0):
        return [each for each in factors if _is_near(abs(each[1]), 1.0)]
    left = [each for each in factors if not _is_near(abs(each[1]), 1.0) or each[1] == 1.0]
    steps = [(index, f) for index, f in left if index is not None and f != 1.0]
    pairs = [(a, b) for a, b in itertools.combinations(steps, 2) if _is_near(a[1] * b[1], 1.0)]
    for a, b in sorted(pairs, key=lambda pair: pair[1][0] - pair[0][0]):
        if a in left and b in left:
            left.remove(a)
            left.remove(b)
    return left


def _is_empty(step: Step) -> bool:
    return step.kind in ("empty", "empty_like", "empty_strided", "new_empty")


def _is_near(one: float, other: float) -> bool:
    return abs(one - other) <= _SAME_FACTOR * max(abs(one), abs(other))
