"""Which recorded operation makes a result wrong: the rules in their order.

The first unmatched step is the culprit unless a rule explains it better: by the first difference
between sides that run the same operations, by a constant or an order that is wrong before it, or by
a step of the reference's that was left out.
"""

from collections.abc import Callable, Sequence

from tracer.diagnosis.zoom import alignment
from tracer.diagnosis.zoom import rules as by_value
from tracer.diagnosis.zoom.case import Case, Culprit, ZoomKind

Rule = Callable[[Case], Culprit | None]

ALIGNED: Sequence[Rule] = (alignment.same_operations,)
"""For sides that run the same operations, where nothing is guessed."""

RULES: Sequence[Rule] = (
    *ALIGNED,
    by_value.nothing_unmatched,
    by_value.wrong_factor,
    by_value.wrong_order_than_expected,
    by_value.wrong_order,
    by_value.returned_as_it_is,
    by_value.left_out,
    by_value.first_unmatched,
)
"""In the order in which they are asked; the first that answers is right."""


def culprit_of(case: Case, rules: Sequence[Rule] = RULES, *, edits: bool) -> Culprit:
    """The operation that makes a result wrong.

    Args:
        case: both sides' operations.
        rules: asked in this order; with none that answers there is no culprit.
        edits: an argument is edited in place by the candidate alone.
    """
    if not case.is_wrong:
        is_edit = edits and not case.reference.recording.edits
        edit = next((step for step, _ in case.candidate.recording.edits), None) if is_edit else None
        return Culprit(ZoomKind.NONE if edit is None else ZoomKind.EDIT, edit)
    answers = (found for rule in rules if (found := rule(case)) is not None)
    return next(answers, Culprit(ZoomKind.NONE))
