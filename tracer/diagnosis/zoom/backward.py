"""The exact line in a backward: which operation makes the first gradient that is wrong.

The operations of both backward passes are recorded and matched as those of a forward are. An
operation of a backward that is written in Python has its own line. One of PyTorch's has that of the
forward whose gradient it computes.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tracer.diagnosis.zoom.case import SideLog, ZoomKind, case_of
from tracer.diagnosis.zoom.culprit import culprit_of
from tracer.diagnosis.zoom.matching import match
from tracer.diagnosis.zoom.operations import (
    Line,
    Operation,
    OperationLog,
    at_line,
    frames,
    lines_from,
)
from tracer.diagnosis.zoom.zoom import Zoomed, zoomed_at
from tracer.errors import RecordingTooLargeError
from tracer.execution.backward import run_forward
from tracer.execution.hooks import Location
from tracer.execution.torch_internals import tree_leaves
from tracer.measurement.gradients import Parameter, TrainedPair, differentiated, leaves_given
from tracer.measurement.rows import Row
from tracer.tensors.roles import Roles
from tracer.tensors.value_path import ValuePath


def zoom_backward(
    pair: TrainedPair, wrong: Sequence[Row], parameters: Sequence[Parameter], roles: Roles
) -> Zoomed | None:
    """Looks for the operation that makes the first wrong gradient of a call.

    Args:
        wrong: the gradients that differ.
        parameters: those inside that were compared.

    Returns:
        What was found; None where the operations cannot be matched.
    """
    keys = {(row.module, row.value) for row in wrong}
    limit = min(row.limit for row in wrong)
    try:
        r, c = (_recorded(pair, side, keys, parameters, roles) for side in range(2))
        found = match(c.log.recording.values, r.log.recording.values, limit, [])
        case = case_of((r.log, c.log), found, limit, is_wrong=True)
    except (NotImplementedError, RuntimeError, TypeError, ValueError, RecordingTooLargeError):
        return None  # kinds of tensors that lack the operators which values are matched by
    zoomed = zoomed_at(pair.key, case, culprit_of(case, edits=False), (), is_backward=True)
    cut = _first_cut(c, r), _first_cut(r, c)
    if cut != (None, None):
        kind = ZoomKind.MISSING if cut[0] is None else ZoomKind.WRONG
        zoomed = replace(zoomed, kind=kind, culprit=cut[0], expected=cut[1], made=None)
    return None if zoomed.kind is ZoomKind.NONE else zoomed


@dataclass(frozen=True)
class _Backward:
    """One side's backward: what was recorded, and where its forward has left the graph.

    Attributes:
        is_cut: a gradient that differs is none at all.
        cuts: the calls of PyTorch whose result has no gradient though what they take has one.
    """

    log: SideLog
    is_cut: bool
    cuts: Sequence[tuple[str, Line]]


def _recorded(
    pair: TrainedPair,
    side: int,
    keys: set[tuple[str, ValuePath]],
    parameters: Sequence[Parameter],
    roles: Roles,
) -> _Backward:
    """One side's backward, and which of its values are the gradients that differ."""
    graph = _Graph()
    with graph, run_forward((pair.reference, pair.candidate)[side]) as forward:
        of = {
            (pair.key[0], ValuePath.of_gradient(path.in_argument)): leaf
            for path, leaf in leaves_given(forward).items()
        }
        of |= {
            (p.module, ValuePath.of_gradient(p.name)): (p.reference, p.candidate)[side]
            for p in parameters
        }
        log = OperationLog(graph.lines)
        log.begin()
        try:
            gradients = differentiated(pair, side, forward, roles, list(of.values()))
        finally:
            log.end()
    results = [log.known(g) for key, g in zip(of, gradients, strict=True) if key in keys]
    is_cut = any(none for key, none in zip(of, forward.unused, strict=True) if key in keys)
    return _Backward(SideLog(log, results), is_cut, graph.cuts)


def _first_cut(side: _Backward, other: _Backward) -> Operation | None:
    """Where one side's forward leaves the graph first and the other's does not."""
    if not side.is_cut:
        return None
    left = Counter(name for name, _ in other.cuts)
    for name, (code, number) in side.cuts:
        if not left[name]:
            return at_line(name, Location(code.co_filename, number, code.co_qualname))
        left[name] -= 1
    return None


class _Graph(TorchFunctionMode):
    """Takes down at which line of a forward each node of the graph is made, and where it is left.

    Attributes:
        lines: those of each node, the innermost first.
        cuts: as for `_Backward`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Any, tuple[Line, ...]] = {}
        self.cuts: list[tuple[str, Line]] = []
        self._outside = next(frames(sys._getframe(1)), None)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        lines: tuple[Line, ...] = ()
        for value in made:
            if value.grad_fn is not None and value.grad_fn not in self.lines:
                lines = lines or lines_from(sys._getframe(1), self._outside)
                self.lines[value.grad_fn] = lines
        if any(value.is_floating_point() and not value.requires_grad for value in made):
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            if any(tensor.requires_grad for tensor in given):
                lines = lines or lines_from(sys._getframe(1), self._outside)
                name = getattr(func, "__name__", "")
                name = name if name != "__get__" else "data"
                self.cuts += [(name, line) for line in lines[:1]]
        return result
