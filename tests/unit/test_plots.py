"""Points in a frame of characters."""

import math

import pytest

from trace_model.plots import BRAILLE, Axis, Points, even_ticks, plot


def axis(label: str = "", low: float = 0.0, high: float = 4.0, **ticks: float) -> Axis:
    return Axis(label, {value: name for name, value in ticks.items()}, low, high)


def drawn(*series: Points, x: Axis | None = None, y: Axis | None = None) -> list[str]:
    """A plot with five columns and five rows inside."""
    x, y = x or axis("x", a=0.0, b=4.0), y or axis("y", i=0.0, j=4.0)
    return plot(series, x, y, width=8, height=9).splitlines()


def test_points_ticks_and_labels_have_their_places() -> None:
    places = [(0.0, 0.0), (4.0, 4.0), (1.4, 3.0), (1.6, 2.9)]
    assert drawn(Points(places)) == [
        " ┌─────┐",
        "j┤    •│",
        " │ ••  │",
        " │     │",
        " │     │",
        "i┤•    │",
        " └┬───┬┘",
        "  a   b",
        "y   x",
    ]


def test_the_last_are_in_front_and_colours_are_escape_codes() -> None:
    lines = drawn(Points([(0, 0), (2, 0)], "o"), Points([(0, 0)], "x", "red"))
    assert lines[5] == "i┤\x1b[38;5;1mx\x1b[0m o  │"


def test_braille_has_eight_dots_in_a_character() -> None:
    along = Axis("", {}, 0.0, 19.0)
    text = plot([Points([(i, i) for i in range(20)], BRAILLE)], along, along, width=12, height=9)
    assert text.splitlines()[1:6] == [
        "│        ⡠⠊│",
        "│      ⡠⠊  │",
        "│    ⡠⠊    │",
        "│  ⡠⠊      │",
        "│⡠⠊        │",
    ]


def test_names_that_would_run_into_the_one_before_are_left_out() -> None:
    x = axis("x", first=0.0, second=2.0, z=4.0)
    assert drawn(Points([]), x=x)[6:8] == [" └┬─┬─┬┘", "  first"]
    assert drawn(Points([]), x=axis("x", a=0.0, bb=4.0))[7] == "  a  bb"


@pytest.mark.parametrize("value", [0.0, -3.0, 1e300])
def test_an_axis_of_one_value_has_it_in_its_middle(value: float) -> None:
    assert even_ticks(value, value, 5) == {value: f"{value:.3g}"}
    assert Axis("", {}, value, value).place(value, 5) == 2


def test_even_ticks_and_limits_too_far_apart() -> None:
    assert even_ticks(-1.0, 1.0, 5) == {-1.0: "-1", -0.5: "-0.5", 0.0: "0", 0.5: "0.5", 1.0: "1"}
    assert Axis("", {}, -math.inf, math.inf).place(1.0, 5) == 2


def test_it_is_never_smaller_than_one_point() -> None:
    text = plot([Points([(0, 0)])], axis("x"), axis("y", name=0.0), width=0, height=0)
    assert text.count("•") == 1
