"""What quantisation did to the outputs of a module: a box of figures, and a scatter of the values.

╭─ Quantization Error Summary: decode attention ─╮
│            mean |diff|       PEIR              │
│ output        0.087903  10.583212 %            │
│ new key       0.003758   1.324077 %            │
╰────────────────────────────────────────────────╯
"""

from collections.abc import Sequence

import torch
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from trace_model.plots import empty_figure, text_of
from tracer.tensors.difference import Difference

HEADLINE = "Quantization Error Summary"

_MOST_POINTS = 20_000
_TICKS = 5
_COLOUR = "blue"


def box(title: str, differences: Sequence[tuple[str, Difference]]) -> RenderableType:
    """The figures of each pair of tensors, mean |diff| and PEIR.

    Args:
        title: what was quantised.
        differences: each with the name of the output.
    """
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column("", overflow="fold")
    for header in ("mean |diff|", "PEIR"):
        grid.add_column(header, justify="right", no_wrap=True)
    notes = []
    for name, difference in differences:
        figures = (f"{difference.mean:.4g}", f"{100 * difference.peir:.4g} %")
        grid.add_row(Text(name), *(figures if difference.count else ("-", "-")))
        lost = difference.elements - difference.count
        if lost:
            notes.append(Text(f"{name}: {lost} of {difference.elements} values are not finite"))
    heading = Text(f"{HEADLINE}: {title}")
    return Panel(Group(grid, *notes), title=heading, title_align="left", expand=False)


def scatter(
    reference: torch.Tensor,
    quantized: torch.Tensor,
    *,
    width: int,
    height: int,
    colour: bool = False,
) -> str:
    """The quantised values over the float ones as lines of text; empty without finite pairs.

    Of many values it draws some, evenly spread over the tensor, and the extremes.

    Args:
        reference, quantized: of one shape.
        width, height: in characters.
        colour: with escape codes for colours.
    """
    xs, ys = _points(reference, quantized)
    if not len(xs):
        return ""
    from plotext import marker

    low = min(float(xs.min()), float(ys.min()))
    high = max(float(xs.max()), float(ys.max()))
    margin = (high - low) * 0.02 or abs(high) * 0.02 or 1.0
    figure = empty_figure(width, height)
    point = marker("•", pixel=_COLOUR if colour else None)
    figure.draw(figure.signal(xs.tolist(), ys.tolist(), marker=point))
    ticks = [low + (high - low) * i / (_TICKS - 1) for i in range(_TICKS if high > low else 1)]
    for axis, label in (("x", "float"), ("y", "quantised")):
        figure.ruler(axis).ticks(ticks, [f"{tick:.3g}" for tick in ticks])
        figure.ruler(axis).lim(low - margin, high + margin)
        figure.label(label, axis)
    return text_of(figure, colour=colour)


def _points(reference: torch.Tensor, quantized: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Finite pairs, at most `_MOST_POINTS` and the extremes of both, float64 [points]."""
    xs, ys = (
        reference.detach().flatten().cpu().double(),
        quantized.detach().flatten().cpu().double(),
    )
    finite = xs.isfinite() & ys.isfinite()
    xs, ys = xs[finite], ys[finite]
    if len(xs) > _MOST_POINTS:
        spread = torch.linspace(0, len(xs) - 1, _MOST_POINTS).long()
        extremes = torch.stack([xs.argmin(), xs.argmax(), ys.argmin(), ys.argmax()])
        chosen = torch.cat([spread, extremes])
        xs, ys = xs[chosen], ys[chosen]
    return xs, ys
