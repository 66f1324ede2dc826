"""The tables of what modules introduce themselves: over all layers, by quantization point, alone.

where the error is introduced (leaves): each module with the reference's inputs
   share  modules    worst    own L2  over all layers
  49.6 %        4   17.5 %  1.06e-01  model.layers.*.self_attn
   share  modules  quantization point: what goes away without it
  37.2 %   1 of 4  model.layers.*.self_attn.mask_add (uint8 activation)
                   the attention scores with the mask added, before the softmax
                   values there: 12.5% zero, 0.0123% saturated
   share   PEIR in  PEIR out  own PEIR    own L2  module
  17.5 %  1.32e-01  1.51e-01  5.96e-02  1.06e-01  model.layers.1.self_attn (to o_proj)
"""

import math
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from tracer.isolation.result import IsolatedCall, IsolatedModule, IsolatedPoint, Isolation
from tracer.measurement.rows import CallKey
from tracer.reports.narrator.isolation import rounding_in_words
from tracer.reports.parts.fold import number
from tracer.reports.parts.table import shortened

MOST_RANKED = 10
# Single modules beside the groups, which say more.
MOST_BESIDE = 5
_COLUMNS = ("PEIR in", "PEIR out", "own PEIR", "own L2")
_COLUMN_WIDTH = 8
# The share, the columns and the gaps before the name.
_NAME_AT = 2 + 6 + len(_COLUMNS) * (2 + _COLUMN_WIDTH) + 2
_GROUP_AT = 2 + 6 + 2 + 7 + 2 + 7 + 2 + _COLUMN_WIDTH + 2
_POINT_AT = 2 + 6 + 2 + 7 + 2


def section(isolation: Isolation, width: int) -> Iterator[RenderableType]:
    """The lines of the tables; nothing where no module introduces an error.

    The calls are the worst of each module: "PEIR in" and "PEIR out" are those of the run in which
    errors are inherited.

    Args:
        width: in characters.
    """
    worst = introducing(isolation)
    if not worst:
        return
    yield Text(
        f"where the error is introduced ({isolation.level}): each module with the reference's "
        "inputs",
        "bold",
    )
    if isolation.is_repetitive:
        yield from _groups(isolation, width)
        yield from _points(isolation, width)
    heads = "".join(f"  {head:>{_COLUMN_WIDTH}}" for head in _COLUMNS)
    yield Text(f"  {'share':>6}{heads}  module", "dim", no_wrap=True)
    most = most_modules(isolation)
    for item in worst[:most]:
        yield Text(_line(item, width), no_wrap=True)
    yield from _rest([item.share for item in worst[most:]])
    yield ""


def introducing(isolation: Isolation | None) -> list[IsolatedModule]:
    """The modules that introduce an error, the worst first."""
    modules = () if isolation is None else isolation.modules
    return [item for item in modules if item.share > 0.0]


def most_modules(isolation: Isolation) -> int:
    """How many single modules a report shows."""
    return MOST_BESIDE if isolation.is_repetitive else MOST_RANKED


def introduced(isolation: Isolation | None) -> dict[CallKey, float]:
    """The PEIR that each call introduces, for another table; empty without isolation."""
    calls = () if isolation is None else isolation.calls
    return {(call.module, call.call): call.introduced_peir for call in calls}


def where(call: IsolatedCall) -> str:
    """Which value of a call it is, where that is not its output: "to o_proj"."""
    if call.receiver:
        return f"to {call.receiver}" + (f" as {call.passed_as}" if call.passed_as else "")
    return "" if call.value == "output" else call.value


def modules_of(point: IsolatedPoint) -> str:
    """How many modules have a point, and in how many it was looked at: "1 of 4"."""
    return f"{'' if point.measured is None else f'{point.measured} of '}{point.modules}"


def _groups(isolation: Isolation, width: int) -> Iterator[Text]:
    heads = f"  {'share':>6}  modules  {'worst':>7}  {'own L2':>{_COLUMN_WIDTH}}  over all layers"
    yield Text(heads, "dim", no_wrap=True)
    for group in isolation.groups[:MOST_RANKED]:
        name = group.pattern if group.modules > 1 else group.worst or "the root"
        yield Text(
            f"  {group.share:6.1%}  {group.modules:7}  {group.worst_share:7.1%}  "
            f"{number(group.introduced):>{_COLUMN_WIDTH}}  "
            f"{shortened(name, max(width - _GROUP_AT, 8))}",
            no_wrap=True,
        )
    yield from _rest([group.share for group in isolation.groups[MOST_RANKED:]])


def _points(isolation: Isolation, width: int) -> Iterator[Text]:
    if not isolation.points:
        return
    head = f"  {'share':>6}  modules  quantization point: what goes away without it"
    yield Text(head, "dim", no_wrap=True)
    for point in isolation.points[:MOST_RANKED]:
        kind = f" ({point.kind})"
        name = shortened(point.pattern, max(width - _POINT_AT - len(kind), 8))
        count = modules_of(point)
        yield Text(f"  {point.share:6.1%}  {count:>7}  {name}{kind}", no_wrap=True)
        words = rounding_in_words(point.rounding)
        for line in filter(None, (point.meaning, words and f"values there: {words}")):
            yield Text(f"{'':{_POINT_AT}}{line}", "dim", no_wrap=True)
    more = len(isolation.points) - MOST_RANKED
    if more > 0:
        yield Text(f"  {'':6}  … {more} more", "dim")


def _rest(shares: Sequence[float]) -> Iterator[Text]:
    if shares:
        yield Text(f"  {math.fsum(shares):6.1%}  … {len(shares)} more", "dim")


def _line(item: IsolatedModule, width: int) -> str:
    call = item.worst
    figures = (call.input_peir, call.peir, call.introduced_peir, call.introduced)
    cells = "".join(
        f"  {'-' if figure is None else number(figure):>{_COLUMN_WIDTH}}" for figure in figures
    )
    name = f"{item.module or 'the root'}{f'#{call.call}' if call.call else ''}"
    value = where(call)
    name += f" ({value})" if value and width >= 2 * _NAME_AT else ""
    return f"  {item.share:6.1%}{cells}  {shortened(name, max(width - _NAME_AT, 8))}"
