"""A comparison as a table and as values."""

from tracer.comparison.result import ROW_COLUMNS, row_fields
from tracer.measurement.remarks import Remark, RemarkKind


def test_one_line_for_each_row(make_row, make_comparison) -> None:
    comparison = make_comparison([make_row("a"), make_row("b", 0.5), make_row("c", None)])
    frame = comparison.to_frame()
    assert tuple(frame.columns) == ROW_COLUMNS
    assert list(frame.module) == ["a", "b", "c"]
    assert frame.peir[1] == 0.5
    assert frame["mean"].isna().tolist() == [False, False, True]


def test_remarks_are_data_beside_the_note(make_row) -> None:
    fields = row_fields(make_row("a", remarks=(Remark(RemarkKind.SHAPES, "[1]", "[2]"),)))
    assert fields["note"] == "shape [1]; candidate [2]"
    assert fields["remarks"] == [
        {"kind": "shapes", "reference": "[1]", "candidate": "[2]", "figure": None}
    ]
