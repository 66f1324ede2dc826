"""What explains that a step is the first unmatched one; `tracer.diagnosis.zoom.culprit` lists them.

Each rule looks at a case and answers with the steps to be named, or None where it does not apply.
"""

import math
from collections.abc import Iterable, Iterator

from tracer.diagnosis.zoom.case import Case, Culprit, SideLog, ZoomKind
from tracer.diagnosis.zoom.factors import HOMOGENEOUS, Factors, is_near, of_size, scaled_input
from tracer.diagnosis.zoom.matching import is_rearranged, is_same
from tracer.diagnosis.zoom.operations import OperationLog, Step


def nothing_unmatched(case: Case) -> Culprit | None:
    """Each value is the reference's, and the wrong one of them is returned."""
    if case.first is not None:
        return None
    reference, candidate = case.reference, case.candidate
    makers = (candidate.recording.makers[value] for value in candidate.known_results)
    made = next((maker for maker in makers if maker is not None), None)
    expected = case.expected
    if expected is None:
        expected = min(reference.recording.makers_of(reference.known_results), default=None)
    return Culprit(ZoomKind.MISSING, None, expected, made)


def wrong_factor(case: Case) -> Culprit | None:
    """A factor before the first unmatched step that is not among the reference's."""
    for value, other, factor in _taken_with_factor(case, _first(case)):
        own = of_size(_factors(case, case.candidate, value), factor)
        theirs = of_size(_factors(case, case.reference, other), factor)
        own, theirs = _without_common(case, own, theirs)
        product = math.prod(f for _, f in own) / math.prod(f for _, f in theirs)
        if not is_near(abs(product), abs(factor)):
            continue
        mine = [index for index, _ in own if index is not None]
        their = [index for index, _ in theirs if index is not None]
        if mine:
            return Culprit(ZoomKind.WRONG, mine[-1], their[-1] if their else case.expected)
        if their:
            made = case.candidate.recording.makers[value]
            return Culprit(ZoomKind.MISSING, case.first, their[-1], made)
    return None


def wrong_order_than_expected(case: Case) -> Culprit | None:
    """The first step that rearranges a value which the reference's step of the same kind takes in
    another order."""
    recording, reference = case.candidate.recording, case.reference.recording
    step = _first(case)
    other = next((i for i in case.missing if reference.steps[i].kind == step.kind), None)
    if other is None:
        return None
    for value, expected in zip(step.inputs, reference.steps[other].inputs, strict=False):
        mine, theirs = recording.values[value], reference.values[expected]
        if mine.shape != theirs.shape or is_same(mine, theirs, case.limit):
            continue
        if is_rearranged(mine, theirs, case.limit):
            rearranging = _first_view(case, value)
            if rearranging is not None:
                return Culprit(ZoomKind.WRONG, rearranging, case.expected)
    return None


def wrong_order(case: Case) -> Culprit | None:
    """A step before the first unmatched one that puts right elements in another order."""
    for index in sorted(case.candidate.recording.makers_of(_first(case).inputs)):
        if _reorders(case, index):
            return Culprit(ZoomKind.WRONG, index, case.expected)
    return None


def returned_as_it_is(case: Case) -> Culprit | None:
    """What the first unmatched step makes is right, and the reference computes on with it."""
    shared = _shared(case)
    if shared is None or shared not in _first(case).outputs:
        return None
    return Culprit(ZoomKind.MISSING, case.first, case.expected, case.first)


def left_out(case: Case) -> Culprit | None:
    """The first unmatched step is right, but for one of the reference's that belongs before it."""
    shared, expected = _shared(case), case.expected
    if shared is None or expected is None:
        return None
    step, reference = _first(case), case.reference.recording
    missing = reference.steps[expected]
    if step.kind == missing.kind:
        return None
    counterparts = case.counterparts([shared])
    if any(s.kind == step.kind and counterparts & set(s.inputs) for s in reference.steps):
        return None
    after = _following(reference, missing.outputs)
    later = (s for s in reference.steps[expected + 1 :] if s.kind == step.kind)
    if not any(not after.isdisjoint(s.inputs) for s in later):
        return None
    made = case.candidate.recording.makers[shared]
    neutral = _neutral(case, made)
    if neutral is not None:
        return Culprit(ZoomKind.WRONG, neutral, expected)
    return Culprit(ZoomKind.MISSING, case.first, expected, made)


def first_unmatched(case: Case) -> Culprit:
    """Nothing before it explains it."""
    return Culprit(ZoomKind.WRONG, case.first, case.expected)


def _first(case: Case) -> Step:
    assert case.first is not None, "rules after `nothing_unmatched` have a first unmatched step"
    return case.steps[case.first]


# Factors.


def _taken_with_factor(case: Case, step: Step) -> Iterator[tuple[int, int, float]]:
    """Values that a step takes with a factor over what a step of its kind takes there: its own
    value, the reference's and the factor."""
    same = [
        other
        for other in case.reference.recording.steps
        if other.kind == step.kind and case.covered.isdisjoint(other.outputs)
    ]
    results = set(case.reference.known_results)
    # A factor goes through a product, so that it is not wrong there yet.
    inputs = () if step.kind in HOMOGENEOUS else step.inputs
    for value in (*inputs, *step.outputs):
        for match in case.found[value]:
            taken = any(match.other in other.inputs for other in same)
            if not match.is_exact and (taken or match.other in results):
                yield value, match.other, match.factor


def _factors(case: Case, side: SideLog, value: int) -> Factors:
    """The constants that went into a value, each as (step, factor); from outside as None."""
    recording = side.recording
    factors: Factors = []
    for index in sorted(recording.makers_of([value])):
        step = recording.steps[index]
        if step.is_call and side is case.candidate:
            matches = [case.found[output][0] for output in step.outputs if case.found[output]]
            factors += [(None, match.factor) for match in matches if not match.is_exact]
        elif (scaled := scaled_input(recording, step, case.limit)) is not None:
            factors.append((index, scaled[1]))
    return factors


def _without_common(case: Case, own: Factors, theirs: Factors) -> tuple[Factors, Factors]:
    """What is left of both sides' factors.

    First those go that multiply the same value as the reference's, then those that make one.
    """
    steps, reference = case.steps, case.reference.recording.steps

    def closeness(index: int | None, other: int | None) -> tuple[bool, bool]:
        if index is None:
            return False, False
        taken = case.counterparts(steps[index].inputs)
        is_same_value = other is not None and not taken.isdisjoint(reference[other].inputs)
        exact = any(match.is_exact for v in steps[index].outputs for match in case.found[v])
        return is_same_value, exact

    own, left = list(own), list(theirs)
    for scaling in theirs:
        same = [each for each in own if is_near(each[1], scaling[1])]
        if same:
            own.remove(max(same, key=lambda each: closeness(each[0], scaling[0])))
            left.remove(scaling)
    return own, left


# Order.


def _first_view(case: Case, value: int) -> int | None:
    """The first of the views by which a value was made of one that is found whole and in order."""
    recording, earlier = case.candidate.recording, None
    while True:
        maker = recording.makers[value]
        if maker is None or not recording.steps[maker].is_view:
            return earlier
        if any(match.is_whole and match.is_ordered for match in case.found[value]):
            return maker if earlier is None else earlier
        earlier, value = maker, recording.steps[maker].inputs[0]


def _reorders(case: Case, index: int) -> bool:
    """Whether a step makes a value that is none of the reference's out of the elements of one
    that is, and pieces of it are taken for the reference's."""
    recording = case.candidate.recording
    step = recording.steps[index]
    if step.is_call or len(step.outputs) != 1 or case.found[step.outputs[0]]:
        return False
    value = recording.values[step.outputs[0]]
    sources = {v for i in recording.makers_of(step.outputs) for v in recording.steps[i].inputs}
    whole = [v for v in sources if any(match.is_whole for match in case.found[v])]
    if not any(is_rearranged(value, recording.values[v], case.limit) for v in whole):
        return False
    return _pieces_match(case, step.outputs[0])


def _pieces_match(case: Case, value: int) -> bool:
    pieces = {value}
    for step in case.steps:
        if step.is_view and step.inputs and step.inputs[0] in pieces:
            if any(case.found[output] for output in step.outputs):
                return True
            pieces |= set(step.outputs)
    return False


# Steps that were left out.


def _shared(case: Case) -> int | None:
    """A value of the first unmatched step's that the expected one takes as well."""
    if case.expected is None:
        return None
    step, missing = _first(case), case.reference.recording.steps[case.expected]
    values = (*step.inputs, *step.outputs)
    return next((v for v in values if not case.counterparts([v]).isdisjoint(missing.inputs)), None)


def _following(recording: OperationLog, values: Iterable[int]) -> set[int]:
    """The values and all that are computed from them."""
    following = set(values)
    for step in recording.steps:
        if not following.isdisjoint(step.inputs):
            following.update(step.outputs)
    return following


def _neutral(case: Case, index: int | None) -> int | None:
    """What makes a step change nothing, where it is another step: a mask of zeros, say."""
    if index is None:
        return None
    recording = case.candidate.recording
    step = recording.steps[index]
    if step.is_call or step.is_view or len(step.inputs) != 2:
        return None
    made = recording.values[step.outputs[0]]
    for value, operand in (step.inputs, step.inputs[::-1]):
        if is_same(made, recording.values[value], case.limit):
            maker = recording.makers[operand]
            while maker is not None and recording.steps[maker].is_view:
                maker = recording.makers[recording.steps[maker].inputs[0]]
            return maker
    return None
