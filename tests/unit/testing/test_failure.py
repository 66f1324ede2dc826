"""The text of a failed assertion."""

from tracer.testing.failure import render


def test_the_verdict_the_rows_and_both_lines(make_row, make_comparison) -> None:
    comparison = make_comparison([make_row("a"), make_row("b", 0.5), make_row("c", 0.5)])
    text = render(comparison)
    assert text.startswith("diverges: /b/model.py:5, in `b`\n")
    assert "▶ b" in text
    assert "\nreference: /a/model.py:3\ncandidate: /b/model.py:5\n" in text
    assert all(len(line) <= 92 for line in text.splitlines())


def test_another_reason(make_row, make_comparison) -> None:
    text = render(make_comparison([make_row("a")]), "too few modules were compared")
    assert text.startswith("too few modules were compared\n")
