"""The cause in one line, of each kind."""

from dataclasses import replace

import pytest

from tracer.diagnosis.checkpoints import Checkpoints
from tracer.diagnosis.finding import Finding, FindingKind, Origin, OriginKind
from tracer.diagnosis.parameters import ParameterDifference, ParameterKind
from tracer.diagnosis.trials import Outcome, Proof
from tracer.diagnosis.verdict import Divergence, Ended, Verdict
from tracer.diagnosis.zoom.case import ZoomKind
from tracer.diagnosis.zoom.operations import at_line
from tracer.diagnosis.zoom.zoom import Zoomed
from tracer.execution.hooks import Location
from tracer.reports.narrator.cause import cause, lines_of

ORIGIN = Origin("m", None, OriginKind.COMPUTATION, "r.py:3", "c.py:5", "own")
PROOF = Proof(Outcome.ALL_AGREES)
WEIGHT = {"w": ParameterDifference(ParameterKind.VALUES, True, 0.5, 0.75, 0.125, (1, 2))}
OWN = "`own` (reference: `m`)"


def said(*findings: Finding, zoomed: Zoomed | None = None, **fields) -> str | None:
    return cause(Verdict(False, None, ORIGIN, True, Divergence(findings, **fields)), zoomed)


@pytest.mark.parametrize(("kind", "fields", "text"), [
    (FindingKind.INSIDE, {}, f"c.py:5, in {OWN}"),
    (FindingKind.EDITED, {"names": ("x",)}, f"c.py:5, {OWN} edits its argument `x` in place"),
    (FindingKind.LEFT, {"names": ("x",)}, f"c.py:5, {OWN} leaves a wrong `x`"),
    (FindingKind.PARAMETERS, {"parameters": WEIGHT}, f"`w` of {OWN} differs"),
    (FindingKind.RAISES, {}, f"c.py:5, {OWN} raises"),
    (FindingKind.BACKWARD, {"names": ("x",)}, f"c.py:5, in the backward of {OWN}"),
])  # fmt: skip
def test_each_kind(kind, fields, text) -> None:
    assert said(Finding(ORIGIN, kind, PROOF, **fields)) == text


def test_a_wrong_argument_and_who_passes_it() -> None:
    origin = replace(ORIGIN, argument="mask", kind=OriginKind.ARGUMENT)
    finding = Finding(origin, FindingKind.PASSED, PROOF)
    assert said(finding) == f"c.py:5, {OWN} passes a wrong `mask`"
    outside = replace(finding, from_outside=True)
    assert said(outside) == "c.py:5, what runs the model passes a wrong `mask`"


def test_rounding_that_grows(make_row) -> None:
    growth = make_row("a", 1e-6), make_row("m", 3e-5)
    text = said(Finding(ORIGIN, FindingKind.GROWS, growth=growth))
    assert text == "no single cause; the error grows as rounding does, to PEIR 3e-05"


def test_what_is_not_confirmed_is_suspected_and_the_rest_is_counted() -> None:
    finding = Finding(ORIGIN, FindingKind.INSIDE)
    other = Finding(Origin("n", None, OriginKind.COMPUTATION, None, "c.py:9"), FindingKind.INSIDE)
    assert said(finding) == f"suspected: c.py:5, in {OWN}"
    confirmed = replace(finding, proof=PROOF)
    assert said(confirmed, replace(other, proof=PROOF)) == f"c.py:5, in {OWN}; 1 more origin"
    assert said(confirmed, other) == f"c.py:5, in {OWN}"


def test_another_checkpoint_and_what_was_not_looked_for() -> None:
    finding = Finding(ORIGIN, FindingKind.INSIDE, PROOF)
    assert said(finding, checkpoints=Checkpoints(59, 2, 57, 0.5)) == (
        "another checkpoint? 2 of 59 modules with parameters hold equal ones"
    )
    assert cause(Verdict(False, None, None, False, Ended(None)), None) is None


def test_the_line_is_the_culprits_where_zoom_has_found_it() -> None:
    culprit = at_line("mul", Location("port.py", 27, "forward"))
    zoomed = Zoomed("m", 0, ZoomKind.WRONG, culprit, None, None, (), (1, 1), 0, 0, 1)
    assert lines_of(ORIGIN, zoomed) == ("r.py:3", "port.py:27")
    assert lines_of(ORIGIN, replace(zoomed, module="n")) == ("r.py:3", "c.py:5")
    finding = Finding(ORIGIN, FindingKind.INSIDE, PROOF)
    assert said(finding, zoomed=zoomed) == f"port.py:27, in {OWN}"
    passed = replace(ORIGIN, argument="mask", kind=OriginKind.ARGUMENT)
    assert lines_of(passed, zoomed) == ("r.py:3", "port.py:27")
    assert lines_of(passed, replace(zoomed, kind=ZoomKind.MISSING)) == ("r.py:3", "c.py:5")
