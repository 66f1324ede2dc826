"""Remarks on rows, as labels of a few words."""

import pytest

from tracer.measurement.remarks import Remark, RemarkKind


@pytest.mark.parametrize(
    ("remark", "text"),
    [
        (Remark(RemarkKind.BY_MEANING), "compared by what they let through"),
        (Remark(RemarkKind.SHAPES, "[1]", "[2]"), "shape [1]; candidate [2]"),
        (Remark(RemarkKind.NONFINITE, 2, 0), "2 non-finite elements; candidate 0"),
        (Remark(RemarkKind.RELATIVE_L2, figure=1.5e-6), "relative L2 1.5e-06"),
        (Remark(RemarkKind.PADDED, figure=0.5), "at padded positions PEIR 0.5, left out"),
    ],
)
def test_texts(remark: Remark, text: str) -> None:
    assert str(remark) == text


def test_each_kind_has_one() -> None:
    assert all(str(Remark(kind, "a", "b", 1.0)) for kind in RemarkKind)
