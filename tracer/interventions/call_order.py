"""Calls of one module that come in another order on the other side, paired by what they return.

A table of rotations for each kind of layer, say, is made in a loop: which kind comes first is no
difference.
"""

from collections import defaultdict

import torch

from tracer.execution.hooks import Call
from tracer.execution.session import Session
from tracer.measurement.comparer import Comparer
from tracer.measurement.intervention import Intervention
from tracer.measurement.rows import CallKey, CallRecord
from tracer.tensors.leaves import tensor_leaves

# How many elements of each tensor tell outputs apart, and how far apart the same may lie.
_LOOKED_AT = 256
_SAME = 1e-2


class _Returned(Intervention):
    """Keeps a few elements of what some calls return.

    Attributes:
        values: by the side, and the call.
    """

    def __init__(self, calls: set[CallKey]) -> None:
        self.values: dict[str, dict[CallKey, torch.Tensor]] = defaultdict(dict)
        self._calls = calls

    def begins(self, side: str, name: str, call: Call) -> None:
        """Nothing is known of it yet."""

    def ends(self, side: str, name: str, call: Call) -> None:
        """Keeps what it returns."""
        if (name, call.index) in self._calls:
            parts = [
                tensor.detach().flatten()[:: -(-tensor.numel() // _LOOKED_AT)].double().cpu()
                for _, tensor in tensor_leaves(call.output, "")
                if tensor.numel() and not tensor.is_complex() and not tensor.is_meta
            ]
            self.values[side][name, call.index] = torch.cat(parts or [torch.empty(0)])


def reorder_calls(session: Session, comparer: Comparer) -> bool:
    """Pairs the calls of a module in one caller by what they return, where values first part there.

    Returns:
        Whether calls are paired in another order now.
    """
    first = next((row for row in comparer.rows if not row.agrees), None)
    record = None if first is None else comparer.records.get((first.module, first.call))
    calls = [] if record is None else _beside(record, comparer)
    if len(calls) < 2:
        return False
    returned = _Returned(set(calls))
    again = Comparer(comparer.tolerance, (returned,), roles=comparer.roles)
    if session.run(again, frozenset()).failure is not None:
        return False
    references, candidates = (returned.values[side] for side in ("reference", "candidate"))
    left = dict(references)
    order = {}
    for key, value in candidates.items():
        near = [other for other, r in left.items() if _is_same(r, value)]
        if not near:
            return False
        order[key] = key if key in near else near[0]
        del left[order[key]]
    if left or all(key == other for key, other in order.items()):
        return False
    session.call_order.update({key: other[1] for key, other in order.items()})
    return True


def _beside(record: CallRecord, comparer: Comparer) -> list[CallKey]:
    """The calls of a record's module in the same caller."""
    return [
        key
        for key, other in comparer.records.items()
        if (other.module, other.parent) == (record.module, record.parent)
    ]


def _is_same(r: torch.Tensor, c: torch.Tensor) -> bool:
    return r.shape == c.shape and bool((r - c).norm() <= _SAME * r.norm())
