"""When there is no verdict: nothing that the models return was compared."""

from collections.abc import Mapping
from dataclasses import replace

from tracer.comparison.result import Comparison
from tracer.errors import NothingComparedError
from tracer.execution.lockstep import Outcome
from tracer.measurement.comparer import Comparer
from tracer.measurement.leaf_pairs import LeafKind


def check_something_compared(
    comparison: Comparison, comparer: Comparer, outcome: Outcome, pairs: Mapping[str, str]
) -> None:
    """Checks that what was compared says something of the models.

    Args:
        comparer, outcome: of the run in which the candidate inherits its errors.
        pairs: the reference's module name by the candidate's.

    Raises:
        NothingComparedError: it does not; the error holds the comparison.
    """
    none = replace(comparison, verdict=replace(comparison.verdict, agrees=False))
    compared = [row for row in comparison.rows if row.is_output and row.difference is not None]
    called, others = (
        [name for name in calls if name]
        for calls in (outcome.reference_calls, outcome.candidate_calls)
    )
    known = {*pairs.values()} & {*called}  # by its name, even if the candidate does not call it
    hint = "Are these the same model? If only the names differ, give rename rules"
    if not compared:
        raise NothingComparedError(
            "no output of the candidate could be compared with the reference's: none of its "
            f"{len(others) + 1} called modules has an output of the same shape as its counterpart "
            f"among the reference's {len(called) + 1}. {hint}",
            none,
        )
    if called and others and not comparison.verdict.agrees and not known:
        raise NothingComparedError(
            f"the outputs differ, and none of the reference's {len(called)} called modules (such "
            f"as {', '.join(called[:3])}) has a counterpart among the candidate's {len(others)} "
            f"(such as {', '.join(others[:3])}). {hint}",
            none,
        )
    unseen = _why_no_verdict(comparer, outcome)
    if comparison.verdict.agrees and unseen:
        raise NothingComparedError(
            f"no verdict: {unseen}; nothing that was compared disagrees, which says nothing of "
            "what the models return",
            none,
        )


def _why_no_verdict(comparer: Comparer, outcome: Outcome) -> str:
    """Why nothing is known of the models' own outputs; empty where they were compared."""
    if any(not name for name, _ in (*outcome.unmatched_reference, *outcome.unmatched_candidate)):
        return "one side called its root module where the other did not"
    skipped = comparer.skipped
    is_known = any(not record.module for record in comparer.records.values())
    if not is_known or skipped[LeafKind.LEFT_OUT]:
        return ""  # its outputs are not asked for, or not in a recording
    if not comparer.final.compared:
        kinds = "of a kind that cannot be compared" if skipped[LeafKind.NOT_COMPARABLE] else "empty"
        return f"the models' outputs are {kinds}"
    return "" if comparer.final.finite else "no element of the models' outputs is finite"
