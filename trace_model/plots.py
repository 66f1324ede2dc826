"""Plots in characters, drawn by plotext."""

from typing import Any


def empty_figure(width: int, height: int) -> Any:
    """plotext's figure, without colours and as large as asked.

    It keeps one for the whole process, and cuts it to the size of the terminal unless told not to.

    Args:
        width, height: in characters, with the labels.
    """
    from plotext import figure, terminal

    terminal.limit(False, False)
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(width, height)
    return figure


def text_of(figure: Any, *, colour: bool) -> str:
    """What was drawn, without spaces at the ends of lines; the figure is empty then."""
    text = str(figure.build().string(colorless=not colour))
    figure.clear()
    return "\n".join(line.rstrip() for line in text.splitlines())
