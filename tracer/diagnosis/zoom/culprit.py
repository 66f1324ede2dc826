"""Which recorded operation makes a result wrong: the rules in their order.

The first unmatched step is the culprit unless a rule explains it better: by a constant or an order
that is wrong before it, or by a step of the reference's that was left out.
"""

from collections.abc import Callable

from tracer.diagnosis.zoom import rules
from tracer.diagnosis.zoom.case import Case, Culprit, ZoomKind

RULES: tuple[Callable[[Case], Culprit | None], ...] = (
    rules.nothing_unmatched,
    rules.wrong_factor,
    rules.wrong_order_than_expected,
    rules.wrong_order,
    rules.returned_as_it_is,
    rules.left_out,
    rules.first_unmatched,
)
"""In the order in which they are asked; the first that answers is right."""


def culprit_of(case: Case, *, edits: bool) -> Culprit:
    """The operation that makes a result wrong.

    Args:
        case: both sides' operations.
        edits: an argument is edited in place by the candidate alone.
    """
    if not case.is_wrong:
        is_edit = edits and not case.reference.recording.edits
        edit = next((step for step, _ in case.candidate.recording.edits), None) if is_edit else None
        return Culprit(ZoomKind.NONE if edit is None else ZoomKind.EDIT, edit)
    return next(found for rule in RULES if (found := rule(case)) is not None)
