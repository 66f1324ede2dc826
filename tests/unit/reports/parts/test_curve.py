"""The curve of PEIR over the calls."""

from tracer.reports.parts.curve import curve


def test_too_few_points_or_none_that_differ(make_row) -> None:
    assert curve([make_row("a", 0.1)], width=60, height=10) == ""
    assert curve([make_row(name) for name in "abcd"], width=60, height=10) == ""


def test_one_point_for_each_call(make_row) -> None:
    rows = [make_row(name, 10.0**-power) for power, name in enumerate("abcde", 1)]
    text = curve(rows, width=60, height=12)
    assert text.count("•") == 5
    assert "1e-5" in text
    assert "PEIR" in text
    assert all(len(line) <= 60 for line in text.splitlines())
