"""Reads `.onnx` files: nodes, initialisers as tensors, and what makes a file unusable.

Data beside the file is mapped and not read, so that a large file takes no more memory than what of
it is computed with.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tracer.errors import ModelLoadError
from tracer.text import brief, listed

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_RUNTIMES_OWN = ("ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
# By ONNX's number of a type; what is not here has no type in PyTorch, and stays in the session.
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
}


@dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    Attributes:
        dtype: None where PyTorch has none like it.
        shape: sizes, and names of those that are not fixed; None where it is not known.
    """

    name: str
    dtype: torch.dtype | None
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """What is read of a file.

    Attributes:
        constants: initialisers that are part of operations: sizes, axes, single numbers, and types
            that PyTorch does not have; as ONNX has them.
        tensors: all others.
    """

    path: Path
    model: ModelProto
    nodes: Sequence[NodeProto]
    constants: dict[str, TensorProto]
    tensors: dict[str, torch.Tensor]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def read_file(path: Path) -> OnnxFile:
    """Reads a file.

    Raises:
        ModelLoadError: it is none, is incomplete, or has operators that are not known here; or the
            extra `onnx` is missing.
    """
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelLoadError(
            f"{path} is opened with {listed(missing)}, which is not installed: "
            "pip install 'trace-model[onnx]'"
        )
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ModelLoadError(
            f"{path} is no ONNX file, or it is damaged ({path.stat().st_size:,} bytes): "
            f"{brief(error)}"
        ) from error
    if not model.graph.node and not model.graph.output:
        raise ModelLoadError(
            f"{path} holds no graph: expected an ONNX file, and found {path.stat().st_size:,} bytes"
        )
    _check_operators(model, path)
    protos = {each.name: each for each in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain == "":
            protos[node.output[0]] = _constant(node)
        else:
            nodes.append(node)
    tensors = {
        name: _tensor(proto, path)
        for name, proto in protos.items()
        if not _is_constant(proto)
    }
    constants = {name: proto for name, proto in protos.items() if name not in tensors}
    _check_whole(nodes, model, path, {*protos})
    # The tensors have what they say; ONNX's copy would double it.
    del model.graph.initializer[:]
    inputs = tuple(_port(each) for each in model.graph.input if each.name not in protos)
    outputs = tuple(_port(each) for each in model.graph.output)
    return OnnxFile(path, model, nodes, constants, tensors, inputs, outputs)


def free_names(node: NodeProto) -> tuple[str, ...]:
    """What a node takes, with what graphs inside it take from around."""
    names = dict.fromkeys(name for name in node.input if name)
    for graph in _graphs_in(node):
        own = {each.name for each in (*graph.input, *graph.initializer)}
        for inner in graph.node:
            names.update(dict.fromkeys(n for n in free_names(inner) if n not in own))
            own.update(inner.output)
        names.update(dict.fromkeys(o.name for o in graph.output if o.name not in own))
    return tuple(names)


def _graphs_in(node: NodeProto) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _check_operators(model: ModelProto, path: Path) -> None:
    import onnx
    from onnx.defs import onnx_opset_version

    own = {function.domain for function in model.functions}
    versions = {each.domain or "ai.onnx": each.version for each in model.opset_import}
    unknown = [
        f"{domain} {version}"
        for domain, version in versions.items()
        if domain not in ("ai.onnx", *_RUNTIMES_OWN) and domain not in own
    ]
    if unknown:
        raise ModelLoadError(
            f"{path} has operators of {listed(unknown)}, which ONNX Runtime does not know: "
            "export it with those of ONNX"
        )
    known = onnx_opset_version()
    if versions.get("ai.onnx", 1) > known:
        raise ModelLoadError(
            f"{path} has the operator set {versions['ai.onnx']}, and onnx {onnx.__version__} knows "
            f"those up to {known}: export it with opset_version={known}"
        )
    functions = {(function.domain, function.name) for function in model.functions}
    others = {
        node.op_type
        for node in model.graph.node
        if node.domain in ("", "ai.onnx")
        and ("", node.op_type) not in functions
        and not onnx.defs.has(node.op_type)
    }
    if others:
        raise ModelLoadError(
            f"{path} has operators that ONNX does not have: {listed(sorted(others))}"
        )


def _check_whole(
    nodes: Sequence[NodeProto], model: ModelProto, path: Path, known: set[str]
) -> None:
    """Checks that each value is made before it is taken."""
    known = known | {each.name for each in model.graph.input}
    for node in nodes:
        for name in free_names(node):
            if name not in known:
                raise ModelLoadError(
                    f"{path} is incomplete: {node.op_type} {node.name!r} takes {name!r}, which "
                    "nothing before it makes"
                )
        known.update(node.output)
    for each in model.graph.output:
        if each.name not in known:
            raise ModelLoadError(f"{path} is incomplete: nothing makes its output {each.name!r}")


def _constant(node: NodeProto) -> TensorProto:
    from onnx import numpy_helper

    (attribute,) = node.attribute
    if attribute.HasField("t"):
        proto = attribute.t
    else:
        kinds = {"value_int": ("i", np.int64), "value_ints": ("ints", np.int64)}
        kinds |= {"value_float": ("f", np.float32), "value_floats": ("floats", np.float32)}
        field, dtype = kinds.get(attribute.name, ("strings", np.object_))
        proto = numpy_helper.from_array(np.array(getattr(attribute, field), dtype=dtype))
    proto.name = node.output[0]
    return proto


# Vectors of sizes and axes, and single numbers.
_SMALL = 16


def _is_constant(proto: TensorProto) -> bool:
    if proto.data_type not in DTYPES:
        return True
    size = int(np.prod(proto.dims, dtype=np.int64))
    if DTYPES[proto.data_type].is_floating_point:
        return size == 1 and len(proto.dims) <= 1 and "." not in proto.name
    return size <= _SMALL and len(proto.dims) <= 1


def _tensor(proto: TensorProto, path: Path) -> torch.Tensor:
    from onnx import TensorProto as Proto
    from onnx import numpy_helper

    dtype = DTYPES[proto.data_type]
    if proto.data_location == Proto.EXTERNAL:
        return _mapped(proto, path, dtype)
    if dtype == torch.bfloat16:
        raw = proto.raw_data or np.array(proto.int32_data, dtype=np.uint16).tobytes()
        return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(tuple(proto.dims))
    return torch.from_numpy(np.array(numpy_helper.to_array(proto)))


def _mapped(proto: TensorProto, path: Path, dtype: torch.dtype) -> torch.Tensor:
    about = {each.key: each.value for each in proto.external_data}
    file = path.parent / about.get("location", "")
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise ModelLoadError(f"{path} has its data in {file}, which is not below its folder")
    offset, shape = int(about.get("offset", 0)), tuple(proto.dims)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not file.is_file():
        raise ModelLoadError(f"the data of {path} is missing: there is no file {file}")
    if file.stat().st_size < offset + size:
        raise ModelLoadError(
            f"the data of {path} is incomplete: {file} has {file.stat().st_size:,} bytes, and "
            f"{proto.name!r} ends at {offset + size:,}"
        )
    if not size:
        return torch.empty(shape, dtype=dtype)
    data = np.memmap(file, np.uint8, "c", offset, (size,))
    return torch.from_numpy(data).view(dtype).reshape(shape)


def _port(each: Any) -> Port:
    tensor = each.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(d.dim_param or (d.dim_value if d.HasField("dim_value") else "?")
                      for d in tensor.shape.dim)  # fmt: skip
    return Port(each.name, DTYPES.get(tensor.elem_type), shape)
