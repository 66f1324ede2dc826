"""Computes a Circle graph, each operator by itself, as a file that holds nothing else.

A file without quantisation is computed by onert, and where that does not know an operator by the
reference runtime of tico. Onert takes no quantised types; those are computed by the latter alone,
which keeps floats and rounds each to what its tensor can hold. What onert makes of the whole file
is compared with that apart: it is known to overwrite values that are still used.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tracer.adapters.calls import Operation
from tracer.adapters.circle_file import CircleFile
from tracer.adapters.graph import Value, Values
from tracer.execution.torch_internals import as_operator, is_dispatched
from tracer.text import brief, first_line

if TYPE_CHECKING:
    from tico.circle.runtime.program import RuntimeOperator


class OnertFailedError(Exception):
    """What onert says of an operator that it cannot compute."""


@dataclass(eq=False)
class CircleEngine:
    """See the module's docstring.

    Attributes:
        beyond_onert: kinds of operators that it did not compute.
    """

    file: CircleFile
    beyond_onert: set[str] = field(default_factory=set)
    _sessions: dict[object, Any] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, object]) -> CircleEngine:
        return self

    def split(self, operations: Sequence[Operation]) -> Iterator[Sequence[Operation]]:
        """One by one."""
        for operation in operations:
            yield (operation,)

    def run(
        self, operations: Sequence[Operation], values: Values, wanted: Sequence[Value]
    ) -> Sequence[object]:
        """Computes an operator."""
        (operation,) = operations
        operator: Any = operation.node
        given = {key: value for key, value in values.items() if isinstance(value, torch.Tensor)}

        def compute() -> list[torch.Tensor]:
            made = dict(zip(operator.outputs, self._run(operator, given), strict=True))
            return [made[key] for key in wanted]

        if not is_dispatched():
            return compute()
        return as_operator(operation.name, [*given.values()], compute)

    def _run(
        self, operator: RuntimeOperator, given: dict[Value, torch.Tensor]
    ) -> list[torch.Tensor]:
        order = [index for index in dict.fromkeys(operator.inputs) if index in given]
        arrays = [given[index].detach().contiguous().cpu().numpy() for index in order]
        try:
            made = self._made(operator, order, arrays)
            # onert takes the output of a linear layer for a matrix.
            shapes = (self.file.program.tensors[index].shape for index in operator.outputs)
            return [
                torch.from_numpy(np.ascontiguousarray(each).reshape(shape))
                for each, shape in zip(made, shapes, strict=True)
            ]
        except Exception as error:
            raise RuntimeError(
                f"neither onert nor tico can compute {operator.name} of {self.file.path}: "
                f"{brief(error)}"
            ) from error

    def _made(
        self, operator: RuntimeOperator, order: Sequence[int], arrays: Sequence[np.ndarray]
    ) -> Sequence[np.ndarray]:
        """The outputs of an operator; of tico's reference runtime where onert does not know it."""
        if operator.index in self._sessions:
            return list(self._sessions[operator.index](arrays))
        data = part_of(self.file, operator, order)
        session = reference_session(data) if self.file.is_quantised else onert_session(data)
        try:
            made = list(session(arrays))
        except OnertFailedError:
            self.beyond_onert.add(operator.name)
            session = reference_session(data)
            made = list(session(arrays))
        self._sessions[operator.index] = session
        return made


def reference_session(data: bytes) -> Any:
    """Runs a model by tico's reference runtime: floats, rounded to what each tensor holds."""
    from tico.circle.runtime import CircleReferenceRuntime, ExecutionMode

    runtime = CircleReferenceRuntime(data, verify=False)
    mode = ExecutionMode.FAKE_QUANTIZE
    return lambda arrays: runtime.run(arrays, mode=mode).outputs


def onert_session(data: bytes) -> Any:
    """Runs a model by onert."""
    import onert

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.circle"
        path.write_bytes(data)
        session = onert.infer.session(str(path))

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with _said() as said:
            try:
                return [each.copy() for each in session.infer(list(arrays))]
            except Exception as error:
                raise OnertFailedError(said() or brief(error)) from error

    return run


@contextmanager
def _said() -> Iterator[Callable[[], str]]:
    """Catches what a library written in C++ prints as an error: its exceptions say less."""
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        before = os.dup(2)
        os.dup2(file.fileno(), 2)

        def read() -> str:
            file.seek(0)
            return first_line(file.read().decode(errors="replace").strip())

        try:
            yield read
        finally:
            os.dup2(before, 2)
            os.close(before)


def part_of(file: CircleFile, operator: RuntimeOperator, given: Sequence[int]) -> bytes:
    """A model of one operator, which takes some tensors and holds its other constants."""
    from tico.circle.document import CircleDocument

    source, program = file.program.document.model, file.program
    graph = source.subgraphs[0]
    model, part, empty = type(source)(), type(graph)(), type(source.buffers[0])()
    model.version, model.operatorCodes, model.buffers = (
        source.version,
        source.operatorCodes,
        [empty],
    )
    part.tensors, places = [], {}
    for index in dict.fromkeys((*operator.inputs, *operator.outputs)):
        if index < 0:  # an operand that is left out
            continue
        tensor = copy.copy(graph.tensors[index])
        places[index] = len(part.tensors)
        part.tensors.append(tensor)
        tensor.buffer = 0
        if program.tensors[index].is_constant and index not in given:
            tensor.buffer = len(model.buffers)
            model.buffers.append(source.buffers[graph.tensors[index].buffer])
        elif program.tensors[index].is_constant and program.tensors[index].is_quantized_integer:
            # It is handed over as the numbers that it stands for.
            tensor.type, tensor.quantization = 0, None
    own = copy.copy(graph.operators[operator.index])
    own.inputs = [places.get(index, -1) for index in operator.inputs]
    own.outputs = [places[index] for index in operator.outputs]
    part.operators, part.inputs = [own], [places[index] for index in given]
    part.outputs = own.outputs
    model.subgraphs = [part]
    data: bytes = CircleDocument(model).to_bytes()
    return data
