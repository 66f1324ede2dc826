"""The table of rows in a given width."""

import pytest
import torch

from tracer.reports.console import as_text
from tracer.reports.parts.fold import Fold
from tracer.reports.parts.table import dtypes, shortened, statistic, table

NAME = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("width", "expected"),
    [(40, NAME), (24, "model…0.self_attn.q_proj"), (10, "…q_proj"), (4, "…roj"), (0, "")],
)
def test_shortened(width: int, expected: str) -> None:
    assert shortened(NAME, width) == expected


@pytest.mark.parametrize("width", [60, 80, 200])
def test_it_fits(make_row, make_comparison, width: int) -> None:
    comparison = make_comparison([make_row(NAME), make_row(f"{NAME}.{NAME}", 0.5)])
    items = [*comparison.rows, Fold(comparison.rows)]
    text = as_text(table(items, comparison.verdict.symptom, width=width), width)
    lines = [line.rstrip() for line in text.splitlines()]
    assert all(len(line) <= width for line in lines)
    assert lines[0].split()[:5] == ["module", "mean", "min", "max", "stddev"]
    assert lines[3].startswith("▶ ")
    assert lines[4].startswith("  … 1 row agree")
    assert ("status" in lines[0]) is (width == 200)


def test_cells(make_row) -> None:
    row = make_row("a", 0.5, candidate_dtype=torch.bfloat16)
    assert (statistic("PEIR")(row), dtypes(row)) == ("5.00e-01", "float32→bfloat16")
    assert statistic("mean")(make_row("a", None)) == "-"
