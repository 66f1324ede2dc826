"""Reads `.onnx` files: nodes, initialisers as tensors, and what makes a file unusable.

Data beside the file is mapped and not read, so that a large file takes no more memory than what of
it is computed with.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from tracer.adapters.ports import Port
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


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """What is read of a file.

    Attributes:
        constants: initialisers that are part of operations: sizes, axes, single numbers, and types
            that PyTorch does not have; as ONNX has them.
        tensors: all others; quantised ones as the numbers that they stand for.
        steps: the largest step between the numbers of those.
    """

    path: Path
    model: ModelProto
    nodes: Sequence[NodeProto]
    constants: dict[str, TensorProto]
    tensors: dict[str, torch.Tensor]
    steps: dict[str, float]
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
            "pip install 'onnx>=1.20' 'onnxruntime>=1.23'"
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
    qparams = {
        name
        for node in nodes
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[1:]
    }
    tensors = {
        name: _tensor(proto, path)
        for name, proto in protos.items()
        if name not in qparams and not _is_constant(proto)
    }
    constants = {name: _whole(proto, path) for name, proto in protos.items() if name not in tensors}
    _check_whole(nodes, model, path, {*protos})
    nodes, steps = _dequantised(nodes, tensors, constants)
    # The tensors have what they say; ONNX's copy would double it.
    del model.graph.initializer[:]
    inputs = tuple(_port(each) for each in model.graph.input if each.name not in protos)
    outputs = tuple(_port(each) for each in model.graph.output)
    return OnnxFile(path, model, nodes, constants, tensors, steps, inputs, outputs)


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
        field, dtype = _FIELDS.get(attribute.name, ("strings", "object"))
        proto = numpy_helper.from_array(np.array(getattr(attribute, field), dtype=dtype))
    proto.name = node.output[0]
    return cast("TensorProto", proto)


_FIELDS = {
    "value_int": ("i", "int64"),
    "value_ints": ("ints", "int64"),
    "value_float": ("f", "float32"),
    "value_floats": ("floats", "float32"),
}


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
        file, offset, size = _place(proto, path)
        if not size:
            return torch.empty(tuple(proto.dims), dtype=dtype)
        data = np.memmap(file, np.uint8, "c", offset, (size,))
        return torch.from_numpy(data).view(dtype).reshape(tuple(proto.dims))
    if dtype == torch.bfloat16:
        raw = proto.raw_data or np.array(proto.int32_data, dtype=np.uint16).tobytes()
        return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(tuple(proto.dims))
    return torch.from_numpy(np.array(numpy_helper.to_array(proto)))


def _whole(proto: TensorProto, path: Path) -> TensorProto:
    """A constant with its data in it."""
    from onnx import TensorProto as Proto
    from onnx.external_data_helper import load_external_data_for_tensor

    if proto.data_location == Proto.EXTERNAL:
        _place(proto, path)
        load_external_data_for_tensor(proto, str(path.parent))
        proto.data_location = Proto.DEFAULT
        del proto.external_data[:]
    return proto


def _place(proto: TensorProto, path: Path) -> tuple[Path, int, int]:
    """The file, the offset and the length of data beside a file."""
    about = {each.key: each.value for each in proto.external_data}
    file = path.parent / about.get("location", "")
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise ModelLoadError(f"{path} has its data in {file}, which is not below its folder")
    offset, size = (int(about.get(key, 0)) for key in ("offset", "length"))
    if not file.is_file():
        raise ModelLoadError(f"the data of {path} is missing: there is no file {file}")
    if file.stat().st_size < offset + size:
        raise ModelLoadError(
            f"the data of {path} is incomplete: {file} has {file.stat().st_size:,} bytes, and "
            f"{proto.name!r} ends at {offset + size:,}"
        )
    return file, offset, size


def _dequantised(
    nodes: Sequence[NodeProto],
    tensors: dict[str, torch.Tensor],
    constants: Mapping[str, TensorProto],
) -> tuple[list[NodeProto], dict[str, float]]:
    """Computes the nodes that turn quantised initialisers into the numbers that they stand for:
    the nodes that are left, and the largest step by the name of what was made."""
    from onnx import numpy_helper

    def read(name: str) -> torch.Tensor:
        if name in tensors:
            return tensors[name].float()
        return torch.from_numpy(numpy_helper.to_array(constants[name]).copy()).float()

    left, steps = [], {}
    known = {*tensors, *(name for name in constants if constants[name].data_type in DTYPES)}
    for node in nodes:
        attributes = {each.name: each.i for each in node.attribute}
        is_plain = node.op_type == "DequantizeLinear" and not attributes.get("block_size")
        if not is_plain or not known.issuperset(name for name in node.input if name):
            left.append(node)
            continue
        scale, zero = read(node.input[1]), torch.zeros(())
        if len(node.input) > 2 and node.input[2]:
            zero = read(node.input[2])
        value = read(node.input[0])
        if scale.numel() > 1:
            shape = [1] * value.dim()
            shape[attributes.get("axis", 1)] = -1
            scale, zero = (each.reshape(shape) if each.dim() else each for each in (scale, zero))
        tensors[node.output[0]] = (value - zero) * scale
        steps[node.output[0]] = float(scale.abs().max())
    return left, steps


def _port(each: Any) -> Port:
    tensor = each.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(d.dim_param or (d.dim_value if d.HasField("dim_value") else "?")
                      for d in tensor.shape.dim)  # fmt: skip
    return Port(each.name, DTYPES.get(tensor.elem_type), shape)
