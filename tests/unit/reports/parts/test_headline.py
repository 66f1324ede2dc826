"""The verdict in one line."""

import pytest

from tracer.reports.parts.headline import headline


@pytest.mark.parametrize(
    ("peir", "expected", "tone", "line"),
    [
        (0.0, False, "agrees", "agrees"),
        (0.5, False, "diverges", "diverges: /b/model.py:5, in `mlp`"),
        (
            0.5,
            True,
            "expected",
            "diverges at mlp, call 2, PEIR 5.00e-01, as expected of a quantised candidate",
        ),
    ],
)
def test_lines(make_row, make_comparison, peir, expected, tone, line) -> None:
    rows = [make_row("mlp", peir, call=2), make_row("", peir)]
    found = headline(make_comparison(rows), expected=expected)
    assert (found.tone, found.line) == (tone, line)
    assert found.text
