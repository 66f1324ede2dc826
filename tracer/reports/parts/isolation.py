"""The table of what modules introduce themselves, those that introduce most first.

where the error is introduced (leaves): each module with the reference's inputs
   share   PEIR in  PEIR out  own PEIR    own L2  module
   9.1 %  1.32e-01  1.51e-01  5.96e-02  1.06e-01  model.layers.0.mlp.down_proj
"""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from tracer.isolation.result import IsolatedModule, Isolation
from tracer.measurement.rows import CallKey
from tracer.reports.parts.fold import number
from tracer.reports.parts.table import shortened

_MOST_RANKED = 10
_COLUMNS = ("PEIR in", "PEIR out", "own PEIR", "own L2")
_COLUMN_WIDTH = 8
# The share, the columns and the gaps before the name.
_NAME_AT = 2 + 6 + len(_COLUMNS) * (2 + _COLUMN_WIDTH) + 2


def section(isolation: Isolation, width: int) -> Iterator[RenderableType]:
    """The lines of the table; nothing where no module introduces an error.

    The calls are the worst of each module: "PEIR in" and "PEIR out" are those of the run in which
    errors are inherited.

    Args:
        width: in characters.
    """
    worst = [item for item in isolation.modules if item.share > 0.0]
    if not worst:
        return
    yield Text(
        f"where the error is introduced ({isolation.level}): each module with the reference's "
        "inputs",
        "bold",
    )
    heads = "".join(f"  {head:>{_COLUMN_WIDTH}}" for head in _COLUMNS)
    yield Text(f"  {'share':>6}{heads}  module", "dim", no_wrap=True)
    for item in worst[:_MOST_RANKED]:
        yield Text(_line(item, width), no_wrap=True)
    if len(worst) > _MOST_RANKED:
        rest = sum(item.share for item in worst[_MOST_RANKED:])
        yield Text(f"  {rest:6.1%}  … {len(worst) - _MOST_RANKED} more", "dim")
    yield ""


def introduced(isolation: Isolation | None) -> dict[CallKey, float]:
    """The PEIR that each call introduces, for another table; empty without isolation."""
    calls = () if isolation is None else isolation.calls
    return {(call.module, call.call): call.introduced_peir for call in calls}


def _line(item: IsolatedModule, width: int) -> str:
    call = item.worst
    figures = (call.input_peir, call.peir, call.introduced_peir, call.introduced)
    cells = "".join(
        f"  {'-' if figure is None else number(figure):>{_COLUMN_WIDTH}}" for figure in figures
    )
    name = f"{item.module or 'the root'}{f'#{call.call}' if call.call else ''}"
    name += f" ({call.value})" if call.value != "output" and width >= 2 * _NAME_AT else ""
    return f"  {item.share:6.1%}{cells}  {shortened(name, max(width - _NAME_AT, 8))}"
