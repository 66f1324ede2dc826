"""A `.circle` file as a model; see `tracer.adapters.graph`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from tracer.adapters.calls import Operation
from tracer.adapters.circle_engine import CircleEngine, onert_session
from tracer.adapters.circle_file import CircleFile, own_name, read_circle
from tracer.adapters.graph import Graph, Held, QuantisedTensor, Value
from tracer.adapters.lines import by_depth
from tracer.adapters.neighbours import Stack, Weights, filled
from tracer.adapters.ports import Port, PortedModel
from tracer.errors import UsageError
from tracer.text import brief, listed

if TYPE_CHECKING:
    from tico.circle.runtime.program import RuntimeOperator, RuntimeTensor

# Which of its operands an operator takes as parameters, and what they are called.
_PARAMETERS = {
    "FULLY_CONNECTED": {1: "weight", 2: "bias"},
    "CONV_2D": {1: "weight", 2: "bias"},
    "DEPTHWISE_CONV_2D": {1: "weight", 2: "bias"},
    "RMS_NORM": {1: "weight"},
    "GATHER": {0: "weight"},
}
# Constants of so few elements are sizes, axes and limits.
_SMALL = 16


class CircleModel(PortedModel):
    """See the module's docstring."""

    def __init__(self, file: CircleFile, other: nn.Module | None = None) -> None:
        """Opens a file.

        Args:
            other: a model whose modules have the same weights; for a file without a map.
        """
        self._file = file
        self._names_modules = bool(file.map.stacks) or other is not None
        program = file.program
        read = _Reader(file, other)
        names = [*file.map.inputs]
        if len(names) != len(program.inputs):
            names = [file.name(index) for index in program.inputs]
        ports = [
            Port(name, _dtype(file, index), program.tensors[index].shape)
            for name, index in zip(names, program.inputs, strict=True)
        ]
        graph = Graph(read.operations, program.inputs, program.outputs, read.held)
        super().__init__(graph, CircleEngine(file), ports)
        self.notes = (*file.notes, *_runtime_notes(file))

    @property
    def has_modules(self) -> bool:
        """Whether there is a map beside the file, or a model that it is named after."""
        return self._names_modules

    def named_after(self, other: nn.Module) -> "CircleModel":
        """The same file, with the modules of another model that holds its weights."""
        return CircleModel(self._file, other)

    def quantised(self) -> Sequence[QuantisedTensor]:
        """The tensors of the file that are integers with scales."""
        modules: dict[Value, str] = {}
        for each in self._graph.operations:
            module = each.stack[-1].name if each.stack else ""
            modules.update(dict.fromkeys(each.makes, module))
            for value in each.takes:
                modules.setdefault(value, module)
        found = []
        for tensor in self._file.program.tensors:
            if not tensor.is_quantized_integer or tensor.index not in modules:
                continue
            quantization = tensor.quantization
            assert quantization is not None
            found.append(
                QuantisedTensor(
                    own_name(tensor.name),
                    modules[tensor.index],
                    _kind(tensor),
                    torch.tensor(quantization.scale),
                    torch.tensor(quantization.zero_point),
                )
            )
        return found

    def deployed(
        self, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> Sequence[tuple[str, torch.Tensor, torch.Tensor]]:
        """The outputs operator by operator, and as onert computes the whole file; none where onert
        does not run it."""
        if self._file.is_quantised:
            return ()
        arguments = self.signature.bind_partial(*args, **kwargs).arguments
        given = [t.numpy() for t in self.read_inputs(arguments) if isinstance(t, torch.Tensor)]
        try:
            made = onert_session(self._file.path.read_bytes())(given)
        except Exception:  # the notes say so
            return ()
        plain = self.run(arguments)
        names = [self._file.name(index) for index in self._file.program.outputs]
        each = plain if isinstance(plain, tuple) else (plain,)
        tensors = [torch.from_numpy(array) for array in made]
        return [
            (name, one, two.reshape(one.shape) if one.numel() == two.numel() else two)
            for name, one, two in zip(names, each, tensors, strict=True)
            if isinstance(one, torch.Tensor)
        ]


def open_circle(path: Path, device: torch.device | None = None) -> CircleModel:
    """Opens a file.

    Raises:
        ModelLoadError: it cannot be read; see `tracer.adapters.circle_file.read_circle`.
        UsageError: it is to compute on another device than the CPU.
    """
    if device is not None and device.type != "cpu":
        raise UsageError(f"{path} is computed on the CPU: leave out the device {str(device)!r}")
    return CircleModel(read_circle(path))


def _runtime_notes(file: CircleFile) -> tuple[str, ...]:
    """What the runtime cannot run, and what runs it instead."""
    if file.is_quantised:
        kinds = sorted({str(t.dtype) for t in file.program.tensors if t.is_quantized_integer})
        return (
            f"onert takes no quantised types, and {file.path.name} has {listed(kinds)}: it is "
            "computed by tico's reference runtime",
        )
    try:
        session = onert_session(file.path.read_bytes())
        session([_zeros(file, index) for index in file.program.inputs])
    except Exception as error:
        return (
            f"onert cannot run {file.path.name} whole ({brief(error)}): its operators are computed "
            "one by one, by tico's reference runtime where onert does not know them",
        )
    return ()


def _kind(tensor: "RuntimeTensor") -> str:
    """The integers that a tensor holds, packed ones as well."""
    from tico.circle.runtime.program import tensor_type_name

    return str(tensor_type_name(tensor.tensor_type)).rpartition(".")[2].lower()


def _zeros(file: CircleFile, index: int) -> object:
    return torch.zeros(file.program.tensors[index].shape, dtype=_dtype(file, index)).numpy()


def _dtype(file: CircleFile, index: int) -> torch.dtype:
    tensor = file.program.tensors[index]
    if tensor.is_quantized_integer:
        return torch.float32
    name = str(tensor.dtype)
    found: torch.dtype = getattr(torch, name)
    return found


class _Reader:
    """Reads operators with their modules, and gives constants to those that use them."""

    def __init__(self, file: CircleFile, other: nn.Module | None) -> None:
        self.held: dict[Value, Held] = {}
        self._file = file
        self._own_names: set[str] = set()
        self._weights: dict[tuple[int, int], str] = {}
        operators = file.program.operators
        stacks: list[Stack | None] = [
            file.map.stacks.get(self._mapped_name(each)) for each in operators
        ]
        if other is not None:
            stacks = self._by_weights(other)
        found = filled(
            [[str(i) for i in each.inputs if not self._is_constant(i)] for each in operators],
            [[str(i) for i in each.outputs] for each in operators],
            stacks,
            [other is not None and each.name != "QUANTIZE" for each in operators],
        )
        self.operations = [
            self._operation(each, self._within(each, stack))
            for each, stack in zip(operators, found, strict=True)
        ]

    def _mapped_name(self, operator: "RuntimeOperator") -> str:
        """The name of an operation in the map; tico puts a line before some."""
        name = self._file.name(operator.outputs[0])
        return name if name in self._file.map.stacks else name.lstrip("_")

    def _within(self, operator: "RuntimeOperator", stack: Stack) -> Stack:
        """The modules of an operation up to the one whose class stands in its name."""
        name = self._file.program.tensors[operator.outputs[0]].name
        kind = name.rpartition("::")[0].rpartition(".")[2]
        ends = [end for end, module in enumerate(stack, 1) if module.class_name == kind]
        is_mapped = self._mapped_name(operator) in self._file.map.stacks
        return stack if is_mapped or not ends else stack[: ends[-1]]

    def _is_constant(self, index: int) -> bool:
        return index < 0 or self._file.program.tensors[index].is_constant

    def _is_held(self, index: int) -> bool:
        tensor = self._file.program.tensors[index]
        is_float = tensor.is_quantized_integer or tensor.dtype.kind == "f"
        return tensor.is_constant and is_float and len(tensor.shape) > 0

    def _by_weights(self, other: nn.Module) -> list[Stack | None]:
        known = Weights(other)
        stacks: list[Stack | None] = []
        for operator in self._file.program.operators:
            stacks.append(None)
            for index in operator.inputs:
                if index < 0 or not self._is_held(index):
                    continue
                quantization = self._file.program.tensors[index].quantization
                step = max(quantization.scale, default=0.0) if quantization else 0.0
                found = known.take(self._file.constant(index), step)
                if found is not None and not found[1]:
                    self._weights[operator.index, index] = found[0]
                    stacks[-1] = known.stack(found[0])
        return stacks

    def _operation(self, each: "RuntimeOperator", stack: Stack) -> Operation:
        file = self._file
        scope = f"{stack[-1].name}." if stack else ""
        takes = []
        for position, index in enumerate(each.inputs):
            if index < 0 or (self._is_constant(index) and not self._is_held(index)):
                continue
            takes.append(index)
            if self._is_held(index) and index not in self.held:
                kind = _PARAMETERS.get(each.name, {}).get(position, "")
                self.held[index] = self._hold(each.index, index, scope, kind)
        frames = file.map.frames.get(self._mapped_name(each), ())
        return Operation(
            name=each.name,
            takes=tuple(dict.fromkeys(takes)),
            makes=tuple(each.outputs),
            stack=stack,
            places=tuple(by_depth(frames, len(stack))),
            node=each,
        )

    def _hold(self, operator: int, index: int, scope: str, kind: str) -> Held:
        tensor, file = self._file.constant(index), self._file
        known = self._weights.get((operator, index)) or file.map.weights.get(file.name(index))
        is_parameter = tensor.numel() > _SMALL and bool(kind)
        name = known or (
            scope + kind if is_parameter else scope + file.name(index).replace(".", "_")
        )
        while name in self._own_names:
            name += "_"
        self._own_names.add(name)
        if known or is_parameter:
            tensor = nn.Parameter(tensor, requires_grad=False)
        return Held(name, tensor, is_persistent=False)
