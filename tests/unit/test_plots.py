"""plotext's figure, as wide as asked and empty every time."""

import pytest

from trace_model.plots import empty_figure, text_of


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_figure_is_as_wide_as_asked_whatever_the_terminal(monkeypatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    texts = []
    for _ in range(2):
        figure = empty_figure(width, 10)
        figure.draw(figure.signal([1, 2, 3], [3, 1, 2]))
        texts.append(text_of(figure, colour=False))
    lines = texts[0].splitlines()
    assert len(lines) == 10
    assert max(map(len, lines)) == width
    assert texts[0] == texts[1]  # nothing is left of what was drawn before
    assert "\x1b" not in texts[0]
