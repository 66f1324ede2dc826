"""What a zoom found, in words.

Inside `model.norm`: 6 operations, 6 in the reference; 4 match the reference, 0 lead to a match;
the first that does neither is the culprit:
  reference: mean at transformers/models/llama/modeling_llama.py:66
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
"""

from collections.abc import Mapping

from tracer.diagnosis.zoom.case import ZoomKind
from tracer.diagnosis.zoom.operations import Operation
from tracer.diagnosis.zoom.zoom import Zoomed
from tracer.reports.narrator.names import both_names
from tracer.text import few, short_line

_WHAT: Mapping[ZoomKind, str] = {
    ZoomKind.WRONG: "the first that does neither, or what explains it, is the culprit",
    ZoomKind.MISSING: "an operation of the reference was left out",
    ZoomKind.EDIT: "one edits in place what it was given",
}


def lines(zoomed: Zoomed) -> list[str]:
    """The lines that say which operation is the culprit, and what the reference does there."""
    name = both_names(zoomed.module, zoomed.candidate_module)
    name += f" (call {zoomed.call})" if zoomed.call else ""
    counted = (
        f"{zoomed.operations[1]} operations, {zoomed.operations[0]} in the reference; "
        f"{zoomed.matched} match the reference, {zoomed.leading_to_match} lead to a match"
    )
    where = f"the backward of {name}" if zoomed.is_backward else name
    given = []
    if zoomed.given:
        names = few([f"`{name}`" for name in zoomed.given], " and ")
        given = [f"{name} was given the reference's {names}, which had differed."]
    if zoomed.kind is ZoomKind.NONE:
        return [*given, f"Inside {name} there is no culprit: {counted}."]
    return [
        *given,
        f"Inside {where}: {counted}; {_WHAT[zoomed.kind]}:",
        *_at("reference", zoomed.expected),
        *(_at("candidate, before", zoomed.made) if _is_elsewhere(zoomed) else ()),
        *_at("candidate", zoomed.culprit),
    ]


def _is_elsewhere(zoomed: Zoomed) -> bool:
    """Whether what made the value is to be shown beside the culprit."""
    made, culprit = zoomed.made, zoomed.culprit
    return made is not None and (culprit is None or made.location != culprit.location)


def _at(side: str, operation: Operation | None) -> list[str]:
    if operation is None:
        return []
    where = short_line(operation.location) if operation.line else "(no source)"
    return [f"  {side}: {operation.name} at {where}", f"    {operation.text}"]
