"""Computes parts of an ONNX graph by ONNX Runtime, with its optimisations off.

Operations that stand together are one session over the part of the graph, made when it is first
computed. What a session takes, parameters as well, is handed over where it lies, so that parts of
the same make (one for each layer) share a session and no weight is there twice. Under a dispatch
mode of PyTorch, as the zoom is one, each operation is a session and an operator of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tracer.adapters.calls import Operation
from tracer.adapters.graph import Value, Values
from tracer.adapters.onnx_file import DTYPES, OnnxFile
from tracer.errors import UsageError
from tracer.execution.torch_internals import as_operator, from_dlpack, is_dispatched, to_dlpack
from tracer.text import brief, listed

if TYPE_CHECKING:
    from onnx import NodeProto

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "xpu": "OpenVINOExecutionProvider",
    "mps": "CoreMLExecutionProvider",
}


@dataclass(frozen=True, eq=False)
class Node:
    """A node with its own names of what it takes and makes turned into values of the graph.

    Attributes:
        values: the value by the name that the node has for it.
    """

    proto: NodeProto
    values: dict[str, Value]


def provider_of(device: torch.device) -> str:
    """The execution provider of a device.

    Raises:
        UsageError: this build of ONNX Runtime has none.
    """
    import onnxruntime

    known = onnxruntime.get_available_providers()
    name = _PROVIDERS.get(device.type, device.type)
    if name not in known:
        raise UsageError(
            f"ONNX Runtime has no execution provider for {device.type!r} here: it has "
            f"{listed(known)}; install the build of onnxruntime for that device"
        )
    return name


def session_of(model: bytes | str, device: torch.device, *, optimised: bool) -> Any:
    """A session of ONNX Runtime over a model or a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_cpu_mem_arena = False
    if not optimised:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    return onnxruntime.InferenceSession(model, options, providers=[provider_of(device)])


def run_session(session: Any, given: Sequence[torch.Tensor], device: torch.device) -> list[Any]:
    """Runs a session on tensors in the order of its inputs; nothing is copied."""
    from onnxruntime import OrtValue

    binding = session.io_binding()
    for each, tensor in zip(session.get_inputs(), given, strict=True):
        whole = tensor.detach().to(device).contiguous()
        value = OrtValue.from_dlpack(to_dlpack(whole))
        binding.bind_ortvalue_input(each.name, value)
    for each in session.get_outputs():
        binding.bind_output(each.name, device.type, device.index or 0)
    session.run_with_iobinding(binding)
    return [from_dlpack(value) for value in binding.get_outputs()]


@dataclass(eq=False)
class OnnxEngine:
    """See the module's docstring.

    Attributes:
        file: the file that the operations are of.
        turned: values that parameters hold transposed.
    """

    file: OnnxFile
    turned: frozenset[Value]
    _sessions: dict[tuple[bytes, torch.device], Any] = field(default_factory=dict)
    _parts: dict[tuple[object, ...], tuple[bytes, list[Value]]] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, object]) -> OnnxEngine:
        return self

    def split(self, operations: Sequence[Operation]) -> Iterator[Sequence[Operation]]:
        """All at once; one by one where each is to be seen."""
        if not is_dispatched():
            yield operations
            return
        for operation in operations:
            yield (operation,)

    def run(
        self, operations: Sequence[Operation], values: Values, wanted: Sequence[Value]
    ) -> Sequence[object]:
        """Computes operations that stand together."""
        if not wanted:
            return []
        given: dict[Value, torch.Tensor] = {}
        for key, value in values.items():
            if not isinstance(value, torch.Tensor):
                raise RuntimeError(f"{key!r} is no tensor, and ONNX Runtime is given tensors only")
            given[key] = value.mT if key in self.turned else value
        if not is_dispatched():
            return self._run(operations, given, wanted)
        name = operations[0].name
        return as_operator(name, [*given.values()], lambda: self._run(operations, given, wanted))

    def _run(
        self,
        operations: Sequence[Operation],
        given: dict[Value, torch.Tensor],
        wanted: Sequence[Value],
    ) -> list[torch.Tensor]:
        device = next((tensor.device for tensor in given.values()), torch.device("cpu"))
        dtypes = tuple(tensor.dtype for tensor in given.values())
        key = tuple(operations), tuple(wanted), dtypes
        if key not in self._parts:
            self._parts[key] = _model_of(self.file, operations, given, wanted)
        model, taken = self._parts[key]
        if (model, device) not in self._sessions:
            self._sessions[model, device] = _opened(model, device, operations)
        return run_session(self._sessions[model, device], [given[v] for v in taken], device)


def _opened(model: bytes, device: torch.device, operations: Sequence[Operation]) -> Any:
    try:
        return session_of(model, device, optimised=False)
    except UsageError:
        raise
    except Exception as error:
        kinds = listed([*dict.fromkeys(operation.name for operation in operations)])
        raise RuntimeError(
            f"ONNX Runtime cannot compute this part of the graph ({kinds}): {brief(error)}"
        ) from error


def _model_of(
    file: OnnxFile,
    operations: Sequence[Operation],
    given: dict[Value, torch.Tensor],
    wanted: Sequence[Value],
) -> tuple[bytes, list[Value]]:
    """A part of a graph as a model whose names say nothing but the order, and what it takes."""
    import onnx
    from onnx import helper

    names: dict[Value, str] = {}
    constants, nodes = [], []
    for operation in operations:
        node = operation.node
        assert isinstance(node, Node)
        for own, value in node.values.items():
            if value in names:
                continue
            names[value] = f"v{len(names)}"
            if own in file.constants:
                constant = onnx.TensorProto()
                constant.CopyFrom(file.constants[own])
                constant.name = names[value]
                constants.append(constant)
        nodes.append(_renamed(node.proto, {own: names[v] for own, v in node.values.items()}))
    numbers = {dtype: number for number, dtype in DTYPES.items()}
    taken = [value for value in names if value in given]
    inputs = [
        helper.make_tensor_value_info(names[value], numbers[given[value].dtype], None)
        for value in taken
    ]
    outputs = [onnx.ValueInfoProto(name=names[value]) for value in wanted]
    whole = file.model
    model = helper.make_model(
        helper.make_graph(nodes, "part", inputs, outputs, constants),
        functions=list(whole.functions),
        opset_imports=list(whole.opset_import),
        ir_version=whole.ir_version,
    )
    return model.SerializeToString(deterministic=True), taken


def _renamed(proto: NodeProto, names: dict[str, str]) -> NodeProto:
    """A node with other names, in graphs inside it as well, and without what only describes it."""
    import onnx

    node = onnx.NodeProto()
    node.CopyFrom(proto)
    node.name = node.doc_string = ""
    del node.metadata_props[:]
    _rename(node, names)
    return node


def _rename(node: NodeProto, names: dict[str, str]) -> None:
    for fields in (node.input, node.output):
        fields[:] = [names.get(name, name) for name in fields]
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            own = {each.name for each in (*graph.input, *graph.initializer)}
            own.update(name for inner in graph.node for name in inner.output)
            outer = {old: new for old, new in names.items() if old not in own}
            for inner in graph.node:
                _rename(inner, outer)
            for output in graph.output:
                output.name = outer.get(output.name, output.name)
