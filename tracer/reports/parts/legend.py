"""What PEIR is and up to where it agrees, in one line, for where it is first met.

PEIR: largest error over the reference's max - min; float32 agrees up to 1e-05
"""

from collections.abc import Sequence

from tracer.measurement.rows import Row
from tracer.tensors.leaves import dtype_name
from tracer.tensors.tolerance import Tolerance
from tracer.text import figure

_MEANING = "PEIR: largest error over the reference's max - min"


def legend(rows: Sequence[Row]) -> str:
    """The line; without limits where nothing was compared that has one."""
    limits: dict[str, float] = {}
    for row in rows:
        if row.dtype is not None and row.candidate_dtype is not None and row.limit:
            coarser = max(row.dtype, row.candidate_dtype, key=lambda d: Tolerance().limit(d, d))
            limits.setdefault(dtype_name(coarser), row.limit)
    if len(set(limits.values())) == 1 and len(limits) > 1:
        return f"{_MEANING}; floats agree up to {figure(next(iter(limits.values())))}"
    said = ", ".join(f"{dtype} agrees up to {figure(limit)}" for dtype, limit in limits.items())
    return f"{_MEANING}; {said}" if said else _MEANING
