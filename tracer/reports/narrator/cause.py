"""The cause of a divergence in one line, for headlines.

port.py:27, in `blocks.0.attn` (reference: `model.layers.0.self_attn`), the same in blocks 1 to 4
"""

from tracer.diagnosis.alike import Alike, alike
from tracer.diagnosis.checkpoints import Checkpoints
from tracer.diagnosis.finding import Finding, FindingKind, Origin
from tracer.diagnosis.verdict import Divergence, Verdict
from tracer.diagnosis.zoom.case import ZoomKind
from tracer.diagnosis.zoom.zoom import Zoomed
from tracer.reports.narrator.names import Names, both_names
from tracer.reports.narrator.verdict import elsewhere
from tracer.text import few, figure, short_line


def lines_of(origin: Origin, zoomed: Zoomed | None) -> tuple[str | None, str | None]:
    """The "file:line" of an origin on each side; those of the operations that zoom has found there,
    where it has."""
    lines = origin.reference_line, origin.candidate_line
    if zoomed is None or zoomed.module != origin.module:
        return lines
    if origin.argument is not None and zoomed.kind is ZoomKind.MISSING:
        return lines  # where it is passed says more than where nothing is done
    found = (
        None if each is None or not each.line else each.location
        for each in (zoomed.expected, zoomed.culprit)
    )
    reference, candidate = (exact or line for exact, line in zip(found, lines, strict=True))
    return reference, candidate


def is_at_a_line(verdict: Verdict) -> bool:
    """Whether the cause is a line of code, and neither a parameter nor another checkpoint."""
    details = verdict.details
    if not isinstance(details, Divergence) or details.checkpoints is not None:
        return False
    return details.findings[0].kind not in _WITHOUT_LINE


def cause(verdict: Verdict, zoomed: Zoomed | None) -> str | None:
    """The cause in a clause; None where none was looked for."""
    if not isinstance(verdict.details, Divergence):
        return None
    if verdict.details.checkpoints is not None:
        return _checkpoints(verdict.details.checkpoints)
    groups = alike(verdict.details.findings)
    group, *others = groups
    finding = group.first
    _, line = lines_of(finding.origin, zoomed)
    is_placed = line is not None and finding.kind not in _WITHOUT_LINE
    said = f"{short_line(line)}, {_clause(finding)}" if is_placed else _clause(finding)
    if not finding.confirmed and finding.kind not in _WITHOUT_PROOF:
        said = f"suspected: {said}"
    if group.others:
        said += f", the same in {elsewhere(group, Names(verdict.names))}"
    return said + _further(others)


_WITHOUT_LINE = (FindingKind.PARAMETERS, FindingKind.OPTIMISED, FindingKind.GROWS)
_WITHOUT_PROOF = (FindingKind.RAISES, FindingKind.OPTIMISED, FindingKind.GROWS)
_CLAUSES = {
    FindingKind.EDITED: "{module} edits its argument {names} in place",
    FindingKind.PASSED: "{module} passes a wrong `{argument}`",
    FindingKind.LEFT: "{module} leaves a wrong {names}",
    FindingKind.PARAMETERS: "{names} of {module} {differ}",
    FindingKind.RAISES: "{module} raises",
    FindingKind.COMPILED: "in {module}, which is compiled",
    FindingKind.SCRIPTED: "in {module}, which is scripted",
    FindingKind.MISCOMPILED: "compiled, {module} differs",
    FindingKind.BACKWARD: "in the backward of {module}",
    FindingKind.OPTIMISED: "the runtime's optimisations",
    FindingKind.GROWS: "no single cause; the error grows as rounding does, to PEIR {peir}",
}


def _clause(finding: Finding) -> str:
    origin = finding.origin
    module = both_names(origin.module, origin.candidate_module)
    names = finding.parameters or finding.names
    return _CLAUSES.get(finding.kind, "in {module}").format(
        module="what runs the model" if finding.from_outside else module,
        argument=origin.argument,
        names=few([f"`{name}`" for name in names], " and "),
        differ="differs" if len(names) == 1 else "differ",
        peir="" if finding.growth is None else figure(finding.growth[1].peir),
    )


def _further(others: list[Alike]) -> str:
    count = sum(group.first.confirmed for group in others)
    return f"; {count} more origin{'' if count == 1 else 's'}" if count else ""


def _checkpoints(found: Checkpoints) -> str:
    return (
        f"another checkpoint? {found.equal} of {found.modules} modules with parameters hold equal "
        "ones"
    )
