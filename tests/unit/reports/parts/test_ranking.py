"""Which modules make the error larger."""

import math

import pytest

from tracer.reports.parts.ranking import ranking


def test_by_growth(make_row) -> None:
    rows = [
        make_row("a.inner", 0.1, input_peir=0.0),
        make_row("a", 0.1, input_peir=0.0),  # holds the one before: the error is its
        make_row("b", 0.4, input_peir=0.1),
        make_row("c", 0.2, input_peir=0.4),
        make_row("exact", 0.0, input_peir=0.0),
        make_row("unknown", 0.5),
    ]
    found = [(item.module, item.growth) for item in ranking(rows)]
    assert found == [("a.inner", math.inf), ("b", 4.0), ("c", pytest.approx(0.5))]
