"""Which modules make the error larger, for a candidate that is expected to differ.

The growth of a call is the PEIR of its output over the largest PEIR among its inputs. It is a
guide and no measure of a module's own error: what comes in inexact goes on through the module, and
may be damped or amplified there as it would be in the reference.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tracer.measurement.rows import Row


@dataclass(frozen=True)
class Ranked:
    """One call in the ranking.

    Attributes:
        module, call, value: of its worst output.
        input_peir: the largest PEIR among its inputs.
        peir: of that output.
        growth: `peir` over `input_peir`; infinite where the inputs are exact.
    """

    module: str
    call: int
    value: str
    input_peir: float
    peir: float
    growth: float


def ranking(rows: Sequence[Row]) -> list[Ranked]:
    """The calls with inexact outputs, those that let PEIR grow most first.

    Calls with exact inputs come before all others, by their PEIR; but a module around others that
    are ranked (the model itself) is then left out, since the error is theirs.
    """
    worst: dict[tuple[str, int], Row] = {}
    for row in rows:
        if row.is_output and row.input_peir is not None and row.peir > 0.0:
            key = row.module, row.call
            if key not in worst or row.peir > worst[key].peir:
                worst[key] = row
    ranked = [
        Ranked(
            module=row.module,
            call=row.call,
            value=row.value,
            input_peir=row.input_peir,
            peir=row.peir,
            growth=row.peir / row.input_peir if row.input_peir else math.inf,
        )
        for row in worst.values()
        if row.input_peir is not None and (row.input_peir > 0.0 or not _holds(row.module, worst))
    ]
    return sorted(ranked, key=lambda item: (item.growth, item.peir), reverse=True)


def _holds(module: str, worst: Iterable[tuple[str, int]]) -> bool:
    """Whether other modules of the ranking are inside this one."""
    prefix = f"{module}." if module else ""
    return any(name != module and name.startswith(prefix) for name, _ in worst)
