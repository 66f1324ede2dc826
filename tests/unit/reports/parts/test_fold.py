"""Which rows are shown, and what is said of the rest."""

import pytest

from tracer.measurement.rows import Row
from tracer.reports.parts.fold import Fold, around, arrange, is_symptom, number


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (1.234e-7, "1.23e-07"), (float("inf"), "inf")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_a_short_table_is_not_folded(make_row, make_comparison) -> None:
    rows = make_comparison([make_row(str(i)) for i in range(18)]).rows
    assert arrange(rows, None) == list(rows)


def test_around_a_divergence_everything_is_open(make_row, make_comparison) -> None:
    rows = [make_row(str(i)) for i in range(30)] + [make_row(str(i), 0.5) for i in range(30, 60)]
    comparison = make_comparison(rows)
    symptom = comparison.verdict.symptom
    items = arrange(comparison.rows, symptom)
    shown = [item.module for item in items if isinstance(item, Row)]
    assert shown[:5] == ["0", "1", "27", "28", "29"]
    assert shown[-2:] == ["58", "59"]
    folds = [str(item) for item in items if isinstance(item, Fold)]
    assert folds[0] == "… 25 rows agree, all of them equal"
    assert folds[-1].endswith("rows differ, PEIR 5.00e-01")
    near = around(items, symptom, 4)
    assert len(near) == 4
    assert any(isinstance(item, Row) and is_symptom(item, symptom) for item in near)
    assert arrange(comparison.rows, symptom, all_rows=True) == list(comparison.rows)
