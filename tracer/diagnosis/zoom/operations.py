"""The operations inside one call of a module: what was computed from what, and at which line.

A `OperationLog` is a dispatch mode that is in force for the time of the call. Each operation that
PyTorch dispatches becomes one `Step` with the values that go in and come out; a call of a module
that both models have is one step, whatever is computed in it. Views, operations in place and
constants count: a value that is edited later is copied first, and what shares its memory then has
new values, which the editing step has made.

Tensors are kept until the recording is dropped, which is as much memory as the call itself makes;
a call that makes more than `MOST_BYTES` cannot be recorded.
"""

import contextlib
import linecache
import os
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from tracer.errors import RecordingTooLargeError
from tracer.execution.hooks import Call, Location
from tracer.execution.sources import Line, Sourced, is_sourced
from tracer.execution.torch_internals import (
    TorchDispatchMode,
    is_hook_of_accelerate,
    is_loading,
    memory_of,
    tree_leaves,
    written_arguments,
)
from tracer.tensors.leaves import tensor_leaves

MOST_BYTES = 4 << 30
"""What one side may hold: a verdict that stands must not be lost for want of memory."""

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_CONTEXTS = contextlib.__file__
_TRACER = f"{Path(__file__).parents[2]}{os.sep}"


@dataclass(frozen=True)
class Operation:
    """One operation as it is reported.

    Attributes:
        name: PyTorch's name of it ("mul"), or of a call of a module ("call of `model.norm`").
        file, line, function: where it is; empty and 0 where there is no Python source.
        text: that line of source.
        inputs, outputs: the shapes of its tensors.
    """

    name: str
    file: str
    line: int
    function: str
    text: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]

    @property
    def location(self) -> str:
        """The file and the line."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Step:
    """One recorded operation.

    Attributes:
        name: PyTorch's name of it; for the call of a module the reference's name of that.
        inputs, outputs: indices of values.
        lines: where it was executed, the innermost first, up to the recorded module's own forward;
            for what PyTorch computes by itself the line that called the module.
        is_call: it is the call of a module.
        is_view: it computes nothing: its outputs are elements of its input.
        is_layout: a view that leaves the elements where they are, or permutes dimensions.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    lines: tuple[Line, ...]
    is_call: bool = False
    is_view: bool = False
    is_layout: bool = False

    @property
    def kind(self) -> str:
        """What it does, whether in place or not, and for how many dimensions."""
        name = _OF_ONNX.get(self.name, self.name).rstrip("_")
        return "matmul" if name in _MATRIX_PRODUCTS and not self.is_call else name

    @property
    def is_empty(self) -> bool:
        """Whether it makes memory that nothing has been written to yet."""
        return self.kind in ("empty", "empty_like", "empty_strided", "new_empty")


_MATRIX_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mv", "dot")
# Copies that are no views: of all elements as they are, and of some in another order.
_LAYOUTS = (
    "clone",
    "_unsafe_view",
    "_reshape_copy",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
)
_REARRANGEMENTS = (
    *(*_LAYOUTS, "roll", "flip", "index", "index_select", "repeat", "gather"),
    *("Slice", "Split", "Expand", "Tile", "GatherElements", "Flatten"),  # ONNX's
)
# PyTorch's names of what ONNX has as well; layouts are made by other operations there.
_OF_ONNX = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Neg": "neg", "MatMul": "matmul",
    "Gemm": "addmm", "Softmax": "_softmax", "Concat": "cat", "Pow": "pow", "ReduceMean": "mean",
    "Sqrt": "sqrt", "Sigmoid": "sigmoid", "Tanh": "tanh", "Where": "where", "Clip": "clamp",
    "Relu": "relu",
}  # fmt: skip


class OperationLog(TorchDispatchMode):
    """Records one call; see the module's docstring.

    Attributes:
        steps: in execution order.
        values: every value with its content, as it was when it was made.
        makers: by value the step that made it; None for what came from outside.
        edits: steps that edit in place what came from outside, each with the values that it edits.
        finished: the call has ended.
    """

    def __init__(self, lines_of: Mapping[Any, tuple[Line, ...]] | None = None) -> None:
        """Not in force yet.

        Args:
            lines_of: for a backward pass, where the forward made the nodes of its graph.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._lines_of = lines_of or {}
        self.steps: list[Step] = []
        self.values: list[torch.Tensor] = []
        self.makers: list[int | None] = []
        self.edits: list[tuple[int, tuple[int, ...]]] = []
        self.finished = False
        self._open: list[Call] = []
        self._outside: FrameType | None = None
        self._indices: dict[int, tuple[torch.Tensor, int]] = {}
        self._sharing: dict[int, list[torch.Tensor]] = {}
        self._pending: list[int] = []
        self._call: tuple[tuple[int, ...], tuple[Line, ...]] = (), ()
        self._bytes = 0

    def begin(self) -> None:
        """Comes into force; the module's call has begun."""
        self._outside = next(frames(sys._getframe(1)), None)
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Goes out of force; the module's call has ended."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._outside = None
        self.finished = True

    def begin_call(self, call: Call) -> None:
        """A module that both models have is called."""
        if not self._open:
            inputs = tuple(self.index(leaf) for _, leaf in tensor_leaves(call.arguments, ""))
            self._call = inputs, self._lines()
        self._open.append(call)

    def end_call(self, name: str, call: Call) -> None:
        """Such a call has ended; `name` is the reference's of the module."""
        # Those above it were left by an exception that the model caught.
        while self._open.pop() is not call:
            pass
        if self._open:
            return
        inputs, lines = self._call
        returned = [leaf for _, leaf in tensor_leaves(call.output, "")]
        outputs = [self._made(leaf) for leaf in returned] + self._pending
        self._pending = []
        self._add(name, inputs, outputs, lines, is_call=True)

    def index(self, tensor: torch.Tensor) -> int:
        """The value that a tensor holds now; one from outside if it is seen for the first time."""
        known = self.known(tensor)
        if known is not None:
            return known
        sharing = self._sharing.get(memory_of(tensor), ())
        maker = self.makers[self._indices[id(sharing[-1])][1]] if sharing else None
        index = self._make(tensor)
        self.makers[index] = maker
        return index

    def known(self, tensor: torch.Tensor) -> int | None:
        """The value that a tensor holds, if it has been seen."""
        found = self._indices.get(id(tensor))
        return None if found is None else found[1]

    def behind(self, values: Iterable[int]) -> set[int]:
        """The values that some values were computed from, directly and indirectly, and these."""
        found: set[int] = set()
        left = list(values)
        while left:
            value = left.pop()
            maker = self.makers[value]
            if value not in found and maker is not None:
                left += self.steps[maker].inputs
            found.add(value)
        return found

    def makers_of(self, values: Iterable[int]) -> set[int]:
        """The steps that some values were computed by, directly and indirectly."""
        return {maker for v in self.behind(values) if (maker := self.makers[v]) is not None}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _is_loading(sys._getframe(1)):
            return func(*args, **kwargs)
        written = _written(func, args, kwargs)
        targets = {id(tensor) for tensor in written}
        if self._open:
            edited = {memory_of(tensor) for tensor in written} & self._sharing.keys()
            for memory in edited:
                self._preserve(memory)
            result = func(*args, **kwargs)
            self._pending += [i for memory in edited for i in self._renew(memory, targets)]
            return result
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        inputs = tuple(self.index(tensor) for tensor in given)
        edited = {memory_of(tensor) for tensor in written}
        from_outside = tuple(
            index
            for memory in edited
            for tensor in self._sharing[memory]
            if self.makers[index := self.index(tensor)] is None
        )
        for memory in edited:
            self._preserve(memory)
        result = func(*args, **kwargs)
        renewed = [index for memory in edited for index in self._renew(memory, targets)]
        returned = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        outputs = [self._made(leaf) for leaf in returned] + renewed
        if outputs:
            if from_outside:
                self.edits.append((len(self.steps), from_outside))
            name = func.overloadpacket.__name__
            is_view = bool(func.is_view) or name in _REARRANGEMENTS
            is_layout = (
                (bool(func.is_view) or name in _LAYOUTS)
                and len(returned) == 1
                and returned[0].numel() == given[0].numel()
            )
            lines = self._lines()
            self._add(name, inputs, outputs, lines, is_view=is_view, is_layout=is_layout)
        return result

    def _add(
        self,
        name: str,
        inputs: tuple[int, ...],
        outputs: list[int],
        lines: tuple[Line, ...],
        *,
        is_call: bool = False,
        is_view: bool = False,
        is_layout: bool = False,
    ) -> None:
        # What is returned as it was given is not made here.
        made = tuple(index for index in dict.fromkeys(outputs) if index not in inputs)
        for index in made:
            self.makers[index] = len(self.steps)
        self.steps.append(Step(name, inputs, made, lines, is_call, is_view, is_layout))

    def _made(self, tensor: torch.Tensor) -> int:
        known = self.known(tensor)
        return self._make(tensor) if known is None else known

    def _make(self, tensor: torch.Tensor) -> int:
        self.values.append(tensor)
        self.makers.append(None)
        self._indices[id(tensor)] = tensor, len(self.values) - 1
        memory = memory_of(tensor)
        if memory not in self._sharing:
            self._hold(tensor)
        self._sharing.setdefault(memory, []).append(tensor)
        return len(self.values) - 1

    def _hold(self, tensor: torch.Tensor) -> None:
        self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes > MOST_BYTES:
            raise RecordingTooLargeError(
                f"the operations make more than {MOST_BYTES / 2**30:.3g} GiB of values"
            )

    def _preserve(self, memory: int) -> None:
        """Copies the values in a piece of memory that is about to be edited."""
        for tensor in self._sharing[memory]:
            index = self._indices[id(tensor)][1]
            self._hold(tensor)
            self.values[index] = self.values[index].clone()

    def _renew(self, memory: int, edited: Container[int]) -> list[int]:
        """New values for the tensors in a piece of memory that have changed; `edited` are the ids
        of those that were written to, whether that has changed them or not."""
        renewed = []
        for tensor in self._sharing[memory]:
            before = self.values[self._indices[id(tensor)][1]]
            if id(tensor) not in edited and torch.equal(before, tensor):
                continue
            self.values.append(tensor)
            self.makers.append(None)
            self._indices[id(tensor)] = tensor, len(self.values) - 1
            renewed.append(len(self.values) - 1)
        return renewed

    def _lines(self) -> tuple[Line, ...]:
        found = lines_from(sys._getframe(1), self._outside)
        if found:
            return found
        node = torch._C._current_autograd_node()
        if self._lines_of:
            return self._lines_of.get(node, ())
        return () if self._outside is None else _lines_of(self._outside)[:1]


def described(recording: OperationLog, index: int, line: Line | None = None) -> Operation:
    """A step as it is reported, at one of its lines; the innermost by default."""
    step = recording.steps[index]
    line = line or next(iter(step.lines), None)
    code, number = line if line is not None else (None, 0)
    file = "" if code is None else code.co_filename
    return Operation(
        name=f"call of `{step.name}`" if step.is_call else step.name,
        file=file,
        line=number,
        function="" if code is None else code.co_qualname,
        text=linecache.getline(file, number).strip(),
        inputs=tuple(tuple(recording.values[value].shape) for value in step.inputs),
        outputs=tuple(tuple(recording.values[value].shape) for value in step.outputs),
    )


def at_line(name: str, location: Location | None) -> Operation | None:
    """What is reported of a line where nothing was computed; None where there is no source."""
    if location is None:
        return None
    text = linecache.getline(location.file, location.line).strip()
    return Operation(name, location.file, location.line, location.function, text, (), ())


def lines_from(frame: FrameType, outside: FrameType | None = None) -> tuple[Line, ...]:
    """The lines that are executed, the innermost first, up to a frame."""
    found: list[Line] = []
    last: object = None
    for each in frames(frame):
        if each is outside:
            break
        owner = _foreign_owner(each)
        if owner is None or owner is not last:  # which has several frames of its own
            found += _lines_of(each)
        last = owner
    return tuple(found)


def _lines_of(frame: FrameType) -> tuple[Line, ...]:
    """The line that a frame executes; the lines of the source where it runs what was written
    elsewhere."""
    owner = _foreign_owner(frame)
    return ((frame.f_code, frame.f_lineno),) if owner is None else owner.computing_at()


def _foreign_owner(frame: FrameType) -> Sourced | None:
    """The module that a frame of the tracer's computes what was written elsewhere for."""
    if not frame.f_code.co_filename.startswith(_TRACER):
        return None
    owner = frame.f_locals.get("self")
    return owner if is_sourced(owner) else None


def frames(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames outside PyTorch and the tracer, going up."""
    while frame is not None:
        file = frame.f_code.co_filename
        is_tracers = file.startswith(_TRACER) and not isinstance(
            frame.f_locals.get("self"), nn.Module
        )
        is_others = file.startswith((_TORCH, _CONTEXTS, "<frozen")) or is_hook_of_accelerate(
            frame.f_code
        )
        if not is_tracers and not is_others:
            yield frame
        frame = frame.f_back


def _is_loading(frame: FrameType | None) -> bool:
    """Whether weights are being loaded, or let go of: no operation of the model's."""
    while frame is not None and not is_hook_of_accelerate(frame.f_code):
        if isinstance(frame.f_locals.get("self"), nn.Module):
            return False
        frame = frame.f_back
    return frame is not None and is_loading(frame.f_code)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that an operation writes to."""
    found: list[torch.Tensor] = []
    for position, name in written_arguments(func):
        value = args[position] if position < len(args) else kwargs.get(name)
        found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return found
