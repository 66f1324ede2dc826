"""The exact line in a backward: which operation makes the first gradient that is wrong.

The operations of both backward passes are recorded and matched as those of a forward are. An
operation of a backward that is written in Python has its own line. One of PyTorch's has that of the
forward whose gradient it computes.

Where one side's forward leaves the graph (`detach`, `.data`, a part without gradients), it is run
again without leaving it there: if the gradients then agree, that line is the culprit.
"""

import os
import sys
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tracer.diagnosis.zoom.case import SideLog, ZoomKind, case_of
from tracer.diagnosis.zoom.culprit import culprit_of
from tracer.diagnosis.zoom.matching import match
from tracer.diagnosis.zoom.operations import (
    Operation,
    OperationLog,
    at_line,
    frames,
    lines_from,
)
from tracer.diagnosis.zoom.zoom import Zoomed, zoomed_at
from tracer.errors import RecordingTooLargeError
from tracer.execution.backward import Forward, run_forward
from tracer.execution.hooks import Call, Location, definition
from tracer.execution.sources import Line
from tracer.execution.torch_internals import tree_leaves
from tracer.measurement.arguments import CallPair
from tracer.measurement.gradients import Parameter, TrainedPair, differentiated, leaves_given
from tracer.measurement.rows import Row
from tracer.tensors.difference import Difference
from tracer.tensors.roles import Roles
from tracer.tensors.value_path import ValuePath

# A module and what in it a gradient is of; what is looked into, with a limit for each gradient.
_Key = tuple[str, ValuePath]
_Given = tuple[TrainedPair, Mapping[_Key, float], Sequence[Parameter], Roles]

_MOST_CUTS = 8  # that are tried


def zoom_backward(
    pair: TrainedPair, wrong: Sequence[Row], parameters: Sequence[Parameter], roles: Roles
) -> tuple[Zoomed | None, bool]:
    """Looks for the operation that makes the first wrong gradient of a call.

    Args:
        wrong: the gradients that differ.
        parameters: those inside that were compared.

    Returns:
        What was found, None where the operations cannot be matched; and whether a run in which the
        graph is not left there has shown it.
    """
    given = pair, {(row.module, row.value): row.limit for row in wrong}, parameters, roles
    limit = min(row.limit for row in wrong)
    try:
        r = _recorded(*given)
        c = _recorded(*given, beside=r.call)
        found = match(c.log.recording.values, r.log.recording.values, limit, [])
        case = case_of((r.log, c.log), found, limit, is_wrong=True)
    except (NotImplementedError, RuntimeError, TypeError, ValueError, RecordingTooLargeError):
        return None, False  # kinds of tensors that lack the operators which values are matched by
    zoomed = zoomed_at(pair.key, case, culprit_of(case, edits=False), (), is_backward=True)
    zoomed = _with_source(zoomed, pair)
    cut = _cut_that_matters(given, 1, c, r)
    if cut is not None:
        kind = ZoomKind.WRONG
        return replace(zoomed, kind=kind, culprit=cut, expected=None, made=None), True
    missing = _cut_that_matters(given, 0, r, c)
    if missing is not None:
        if r.is_cut or zoomed.culprit is None:
            kind = ZoomKind.MISSING
            return replace(zoomed, kind=kind, culprit=None, expected=missing, made=None), True
        return replace(zoomed, expected=missing), True
    cuts = _first_cut(c, r), _first_cut(r, c)
    if cuts != (None, None):
        kind = ZoomKind.MISSING if cuts[0] is None else ZoomKind.WRONG
        zoomed = replace(zoomed, kind=kind, culprit=cuts[0], expected=cuts[1], made=None)
    return (None if zoomed.kind is ZoomKind.NONE else zoomed), False


def _with_source(zoomed: Zoomed, pair: TrainedPair) -> Zoomed:
    """The same with the module's own line for what PyTorch computes at no line of the model's."""

    def placed(operation: Operation | None, module: nn.Module) -> Operation | None:
        if operation is None or operation.line:
            return operation
        at = at_line(operation.name, definition(module))
        return None if at is None else replace(at, inputs=operation.inputs)

    return replace(
        zoomed,
        culprit=placed(zoomed.culprit, pair.candidate.module),
        expected=placed(zoomed.expected, pair.reference.module),
    )


@dataclass(frozen=True)
class _Backward:
    """One side's backward: what was recorded, and where its forward has left the graph.

    Attributes:
        call: the call whose backward it is.
        log: what was recorded.
        is_cut: a gradient that differs is none at all.
        cuts: the calls of PyTorch whose result has no gradient though what they take has one.
        gradients: those that differ.
    """

    call: Call
    log: SideLog
    is_cut: bool
    cuts: Sequence[tuple[str, Line]]
    gradients: Mapping[_Key, torch.Tensor]


def _recorded(
    pair: TrainedPair,
    limits: Mapping[_Key, float],
    parameters: Sequence[Parameter],
    roles: Roles,
    beside: Call | None = None,
) -> _Backward:
    """One side's backward, and which of its values are the gradients that differ.

    Args:
        beside: the reference's call, if this is the candidate's.
    """
    side = 0 if beside is None else 1
    graph = _Graph()
    with graph, run_forward((pair.reference, pair.candidate)[side]) as forward:
        of = _leaves(pair, parameters, forward, roles, beside)
        log = OperationLog(graph.lines)
        log.begin()
        try:
            gradients = differentiated(pair, side, forward, roles, list(of.values()))
        finally:
            log.end()
    found = {key: g for key, g in zip(of, gradients, strict=True) if key in limits}
    is_cut = any(none for key, none in zip(of, forward.unused, strict=True) if key in limits)
    results = [log.known(gradient) for gradient in found.values()]
    return _Backward(forward.call, SideLog(log, results), is_cut, graph.cuts, found)


def _leaves(
    pair: TrainedPair,
    parameters: Sequence[Parameter],
    forward: Forward,
    roles: Roles,
    beside: Call | None,
) -> dict[_Key, torch.Tensor]:
    """What is differentiated by, with what the reference's gradients are called."""
    names = {} if beside is None else CallPair(beside, forward.call, roles).names()
    of_own = {own: name for name, own in names.items()}
    inputs = {}
    for path, leaf in leaves_given(forward).items():
        name = path.argument or ""
        shared = ValuePath(path.kind, of_own.get(name, name), path.inside)
        inputs[pair.key[0], ValuePath.of_gradient(shared.in_argument)] = leaf
    held = {
        (p.module, ValuePath.of_gradient(p.name)): p.reference if beside is None else p.candidate
        for p in parameters
    }
    return inputs | held


def _cut_that_matters(
    given: _Given, side: int, own: _Backward, other: _Backward
) -> Operation | None:
    """Where one side's forward leaves the graph, and gradients agree if it does not."""
    lines = list(dict.fromkeys(line for _, line in own.cuts))
    # One line, or all that a function leaves it at.
    tried = [[line] for line in lines[:_MOST_CUTS]]
    by_code = {code: [each for each in lines if each[0] is code] for code, _ in lines}
    tried += [each for each in by_code.values() if len(each) > 1][:_MOST_CUTS]
    pair, limits, parameters, roles = given
    counts = [Counter(name for name, _ in side.cuts) for side in (own, other)]
    for cut in tried if counts[0] != counts[1] else ():
        codes = frozenset(code for code, _ in cut) if len(cut) > 1 else frozenset()
        try:
            with (
                _Whole(frozenset(cut), codes),
                run_forward((pair.reference, pair.candidate)[side]) as forward,
            ):
                of = _leaves(pair, parameters, forward, roles, other.call if side else None)
                gradients = differentiated(pair, side, forward, roles, list(of.values()))
        except (NotImplementedError, RuntimeError, TypeError, ValueError):
            continue  # a model that cannot do without it
        found = dict(zip(of, gradients, strict=True))
        if all(
            key in found and _is_near(other.gradients[key], found[key], limits[key])
            for key in limits
        ):
            name = next(name for name, line in own.cuts if line == cut[0])
            code, number = cut[0]
            return at_line(name, Location(code.co_filename, number, code.co_qualname))
    return None


def _is_near(gradient: torch.Tensor, found: torch.Tensor, limit: float) -> bool:
    return Difference.of(gradient, found.reshape(gradient.shape)).relative_peak <= limit


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


class _Mode(TorchFunctionMode):
    """Knows at which lines of a forward PyTorch is called."""

    def __init__(self) -> None:
        super().__init__()
        self._outside = next(frames(sys._getframe(1)), None)

    def _lines(self) -> tuple[Line, ...]:
        return lines_from(sys._getframe(2), self._outside)


class _Graph(_Mode):
    """Takes down at which line of a forward each node of the graph is made, and where it is left.

    Attributes:
        lines: those of each node, the innermost first.
        cuts: as for `_Backward`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Any, tuple[Line, ...]] = {}
        self.cuts: list[tuple[str, Line]] = []

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
                lines = lines or self._lines()
                self.lines[value.grad_fn] = lines
        name = _name_of(func)
        leaves = any(value.is_floating_point() and not value.requires_grad for value in made)
        if leaves or name in _TO_PYTHON:
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            is_own = not _is_in_function(sys._getframe(1))
            if is_own and any(tensor.requires_grad for tensor in given):
                lines = lines or self._lines()
                self.cuts += [(name, line) for line in lines[:1]]
        return result


class _Whole(_Mode):
    """Does not leave the graph at some lines, or in some functions."""

    def __init__(self, lines: Container[Line], codes: Container[CodeType]) -> None:
        super().__init__()
        self._at = lines
        self._in = codes

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        line = next(iter(self._lines()), None)
        if line is None or not (line in self._at or line[0] in self._in):
            return func(*args, **(kwargs or {}))
        if _name_of(func) in ("detach", "data"):
            return args[0].view_as(args[0])
        with torch.enable_grad():
            return func(*args, **(kwargs or {}))


def _name_of(func: Any) -> str:
    is_attribute = getattr(func, "__name__", "") == "__get__"
    return str(getattr(func.__self__ if is_attribute else func, "__name__", ""))


# Ways to take a tensor's numbers out of PyTorch.
_TO_PYTHON = ("tolist", "item", "numpy", "__array__")


def _is_in_function(frame: FrameType | None) -> bool:
    """Whether the forward of a `torch.autograd.Function` is computed, outside the graph."""
    while frame is not None:
        if frame.f_code.co_filename.endswith(_FUNCTIONS):
            return True
        frame = frame.f_back
    return False


_FUNCTIONS = f"autograd{os.sep}function.py"
