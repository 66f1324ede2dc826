"""What a zoom found, in words."""

from dataclasses import replace

from tracer.diagnosis.zoom.case import ZoomKind
from tracer.diagnosis.zoom.operations import Operation
from tracer.diagnosis.zoom.zoom import Zoomed
from tracer.reports.narrator.zoom import lines

SUM = Operation("sum", "/x/site-packages/port/norm.py", 7, "forward", "x.sum(-1)", (), ())
MEAN = replace(SUM, name="mean", line=9, text="x.mean(-1)")
FOUND = Zoomed("norm", 1, ZoomKind.WRONG, SUM, MEAN, None, ("x",), (6, 7), 4, 1, 2)


def test_both_lines_and_what_was_given() -> None:
    assert lines(FOUND) == [
        "`norm` (call 1) was given the reference's `x`, which had differed.",
        "Inside `norm` (call 1): 7 operations, 6 in the reference; 4 match the reference, 1 lead "
        "to a match; the first that does neither, or what explains it, is the culprit:",
        "  reference: mean at port/norm.py:9",
        "    x.mean(-1)",
        "  candidate: sum at port/norm.py:7",
        "    x.sum(-1)",
    ]


def test_no_culprit() -> None:
    found = replace(FOUND, kind=ZoomKind.NONE, given=(), call=0)
    assert lines(found)[0].startswith("Inside `norm` there is no culprit: 7 operations")


def test_where_the_value_was_made() -> None:
    made = replace(FOUND, kind=ZoomKind.MISSING, given=(), made=MEAN, expected=None)
    assert lines(made)[1:3] == ["  candidate, before: mean at port/norm.py:9", "    x.mean(-1)"]
