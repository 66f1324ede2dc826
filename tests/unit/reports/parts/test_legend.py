"""PEIR and its limits in a line."""

import torch

from tracer.reports.parts.legend import legend

MEANING = "PEIR: largest error over the reference's max - min"


def test_the_limit_of_the_dtype_that_counts(make_row) -> None:
    assert legend([make_row("a")]) == f"{MEANING}; float32 agrees up to 1e-05"
    rows = [make_row("a"), make_row("b", candidate_dtype=torch.bfloat16, limit=0.08)]
    text = f"{MEANING}; float32 agrees up to 1e-05, bfloat16 agrees up to 0.08"
    assert legend(rows) == text


def test_one_limit_for_all(make_row) -> None:
    rows = [make_row("a", limit=0.5), make_row("b", dtype=torch.float64, limit=0.5)]
    rows.append(make_row("c", candidate_dtype=torch.float16, limit=0.5))
    assert legend(rows) == f"{MEANING}; floats agree up to 0.5"


def test_it_fits_in_80_columns(make_row) -> None:
    assert len(legend([make_row("a")])) < 80


def test_nothing_with_a_limit() -> None:
    assert legend([]) == MEANING
