"""Which modules the nodes of an ONNX graph belong to, and which names its initialisers had.

| exporter | says of a node |
|---|---|
| `torch.onnx.export(dynamo=True)` | names and classes of the modules, call by call, and a trace |
| `torch.onnx.export(dynamo=False)` | names of the modules, in its own: `/model/layers.0/mlp/MatMul` |
| others | nothing: modules are those whose weights the nodes use, as another model has them |

A node that says nothing, such as those that quantisers put in, belongs to what makes the value that
it takes, else to what all who take its value have in common.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import nn

from tracer.adapters.calls import Module, Operation
from tracer.adapters.graph import Held, Value
from tracer.adapters.lines import by_depth, frames_in
from tracer.adapters.onnx_engine import Node
from tracer.adapters.onnx_file import OnnxFile, free_names

if TYPE_CHECKING:
    from onnx import NodeProto

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_TRACE = "pkg.torch.onnx.stack_trace"
_FX = "pkg.torch.onnx.fx_node"
_PLACEHOLDER = re.compile(r"%(p|b|c)_(\w+)")
_LINEAR = re.compile(r"target=torch\.ops\.aten\.(linear|addmm|mm|t|matmul)\b")
# Of what two tensors have in common, so that the many of a model are not compared with each other.
_Key = tuple[int, float]


@dataclass(frozen=True)
class Named:
    """The operations of a file with their modules, and what it holds.

    Attributes:
        turned: values whose parameter holds them transposed.
        root_class: the class of the model that was exported; empty if unknown.
    """

    operations: list[Operation]
    held: dict[Value, Held]
    turned: frozenset[Value]
    root_class: str

    @property
    def has_modules(self) -> bool:
        """Whether the file says of which modules its operations are."""
        return any(operation.stack for operation in self.operations)


def named(file: OnnxFile, other: nn.Module | None = None) -> Named:
    """The operations of a file.

    Args:
        other: a model whose modules have the same weights; for a file that says nothing itself.
    """
    stacks = {id(node): _stack(node) for node in file.nodes}
    root_class = next((_root_class(node) for node in file.nodes if _said(node, _CLASSES)), "")
    if other is not None:
        stacks |= _by_weights(file, other)
    names = _Names(file, {id(node): stack for node, stack in _filled(file, stacks)})
    operations = [names.operation(node) for node in file.nodes]
    return Named(operations, names.held, frozenset(names.turned), root_class)


class _Names:
    """Gives what a file holds to the modules that use it."""

    def __init__(self, file: OnnxFile, stacks: Mapping[int, tuple[Module, ...]]) -> None:
        self.held: dict[Value, Held] = {}
        self.turned: set[Value] = set()
        self._file = file
        self._stacks = stacks
        self._scopes = {""} | {m.name for stack in stacks.values() for m in stack}
        self._parameters = {
            found[1]
            for node in file.nodes
            for found in _PLACEHOLDER.findall(_said(node, _FX))
            if found[0] == "p"
        }

    def operation(self, node: "NodeProto") -> Operation:
        """A node, with what it takes of the file's under the names of its own module."""
        stack = self._stacks[id(node)]
        values: dict[str, Value] = {name: name for name in free_names(node)}
        values |= {name: name for name in node.output if name}
        for name in values:
            if name in self._file.tensors:
                values[name] = self._hold(node, name, stack[-1].name if stack else "")
        takes = [v for n, v in values.items() if n not in self._file.constants]
        made = tuple(name for name in node.output if name)
        return Operation(
            name=node.op_type,
            takes=tuple(value for value in takes if value not in made),
            makes=made,
            stack=stack,
            places=tuple(by_depth(frames_in(_said(node, _TRACE)), len(stack))),
            node=Node(node, values),
        )

    def _hold(self, node: "NodeProto", name: str, scope: str) -> Value:
        """The value that stands for an initialiser where a module uses it."""
        tensor = self._file.tensors[name]
        own, is_turned = self._own_name(node, name, scope)
        value = name if own == name else f"{name} as {own}"
        if value not in self.held:
            tensor = tensor.mT if is_turned else tensor
            owner, _, last = own.rpartition(".")
            is_parameter = tensor.is_floating_point() and (
                own.replace(".", "_") in self._parameters or last in ("weight", "bias")
            )
            if is_parameter:
                tensor = nn.Parameter(tensor, requires_grad=False)
            self.held[value] = Held(own, tensor, is_persistent=False)
            if is_turned:
                self.turned.add(value)
        return value

    def _own_name(self, node: "NodeProto", name: str, scope: str) -> tuple[str, bool]:
        """What the module that uses an initialiser calls it, and whether it is transposed there."""
        prefix = f"{scope}." if scope else ""
        mangled = prefix.replace(".", "_")
        fx = _said(node, _FX)
        left = [
            each[1].removeprefix(mangled)
            for each in _PLACEHOLDER.findall(fx)
            if each[1].startswith(mangled) and prefix
        ]
        # Others bear their own names.
        if left and name not in (f"{prefix}{each}" for each in left):
            named_already = {str(each).replace(".", "_") for each in node.input}
            free = [each for each in left if f"{mangled}{each}" not in named_already]
            tensor = self._file.tensors[name]
            if len(free) > 1:
                free = [e for e in free if e.endswith("weight") == (tensor.dim() > 1)]
            if len(free) == 1:
                is_product = node.op_type == "MatMul" or (
                    node.op_type == "Gemm" and not _attribute(node, "transB")
                )
                turned = is_product and tensor.dim() == 2 and bool(_LINEAR.search(fx))
                return prefix + free[0], turned
        if name.rpartition(".")[0] in self._scopes and name.rpartition(".")[2].isidentifier():
            return name, False
        return prefix + re.sub(r"\W", "_", name), False


def _attribute(node: "NodeProto", name: str) -> int:
    return next((a.i for a in node.attribute if a.name == name), 0)


def _said(node: "NodeProto", key: str) -> str:
    return next((each.value for each in node.metadata_props if each.key == key), "")


def _root_class(node: "NodeProto") -> str:
    classes = _listed(_said(node, _CLASSES))
    return classes[0].rpartition(".")[2] if len(classes) > 1 else ""


def _stack(node: "NodeProto") -> tuple[Module, ...] | None:
    """The modules that a node says it was traced in; None if it says nothing."""
    scopes = _listed(_said(node, _SCOPES))
    if scopes:
        classes = _listed(_said(node, _CLASSES))
        classes += [""] * (len(scopes) - len(classes))
        return tuple(
            Module(scope, scope.partition("@")[0], of_class.rpartition(".")[2])
            for scope, of_class in zip(scopes[:-1], classes, strict=False)
            if scope
        )
    if not node.name.startswith("/"):
        return None
    parts = node.name.split("/")[1:-1]
    paths = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return tuple(Module(path, path, "") for path in paths)


def _listed(text: str) -> list[str]:
    """A list of strings as Python writes it; nothing for what is none."""
    try:
        found = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return []
    return [str(each) for each in found] if isinstance(found, list) else []


def _filled(
    file: OnnxFile, stacks: Mapping[int, tuple[Module, ...] | None]
) -> list[tuple["NodeProto", tuple[Module, ...]]]:
    """Each node with its modules, those that say nothing with those of their neighbours."""
    found = dict(stacks)
    users: dict[str, list[NodeProto]] = defaultdict(list)
    for node in file.nodes:
        for name in free_names(node):
            users[name].append(node)
    makers: dict[str, NodeProto] = {}
    for node in file.nodes:
        if found[id(node)] is None:
            before = [found[id(makers[n])] for n in free_names(node) if n in makers]
            if before:
                found[id(node)] = _common(before)
        makers.update(dict.fromkeys(node.output, node))
    for node in reversed(file.nodes):
        if found[id(node)] is None:
            after = [found[id(user)] for name in node.output for user in users[name]]
            found[id(node)] = _common(after)
    return [(node, found[id(node)] or ()) for node in file.nodes]


def _common(
    stacks: Sequence[tuple[Module, ...] | None],
) -> tuple[Module, ...] | None:
    """The modules that all have in common; None where none of them is known."""
    known = [stack for stack in stacks if stack is not None]
    if not known:
        return None
    common = known[0]
    for stack in known[1:]:
        pairs = zip(common, stack, strict=False)
        common = tuple(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return common


# Files that say nothing.


def _by_weights(file: OnnxFile, other: nn.Module) -> dict[int, tuple[Module, ...] | None]:
    """The modules of nodes that use the weights of another model."""
    owners: dict[_Key, list[tuple[str, torch.Tensor]]] = defaultdict(list)
    for name, parameter in other.named_parameters(remove_duplicate=False):
        if not parameter.is_meta and parameter.dim() > 0:
            owners[_key(parameter)].append((name, parameter.detach()))
    modules = dict(other.named_modules())
    used: dict[str, int] = defaultdict(int)
    found: dict[int, tuple[Module, ...] | None] = {}
    makers = {name: node for node in file.nodes for name in node.output}
    for node in file.nodes:
        if node.op_type == "DequantizeLinear":
            continue
        for name in node.input:
            names = _names_of(file, name, makers, owners)
            if names:
                # Of equal weights each is used once, in the order of the modules.
                owner = names[min(used[name], len(names) - 1)].rpartition(".")[0]
                used[name] += 1
                found[id(node)] = _path(owner, modules)
    return found


def _names_of(
    file: OnnxFile,
    name: str,
    makers: Mapping[str, "NodeProto"],
    owners: Mapping[_Key, Sequence[tuple[str, torch.Tensor]]],
) -> list[str]:
    """The names of the parameters that an initialiser is, quantised or not."""
    if name in file.tensors:
        tensor = file.tensors[name].float()
        own = owners.get(_key(tensor), ())
        return [other for other, p in own if _is_one(tensor, p, lambda a, b: torch.equal(a, b))]
    maker = makers.get(name)
    if maker is not None and maker.op_type in ("Transpose", "Identity", "Cast"):
        return _names_of(file, maker.input[0], makers, owners)
    if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] not in file.tensors:
        return []
    tensor, step = _dequantised(file, maker)
    every = [each for key, each in owners.items() if key[0] == tensor.numel()]
    return [
        other
        for own in every
        for other, p in own
        if _is_one(tensor, p, lambda a, b: bool(((a - b).abs() <= step).all()))
    ]


def _dequantised(file: OnnxFile, node: "NodeProto") -> tuple[torch.Tensor, float]:
    """The numbers that a quantised initialiser stands for, and the largest step between them."""
    from onnx import numpy_helper

    def read(name: str) -> torch.Tensor:
        if name in file.tensors:
            return file.tensors[name].float()
        return torch.from_numpy(numpy_helper.to_array(file.constants[name]).copy()).float()

    tensor, scale = read(node.input[0]), read(node.input[1])
    zero = read(node.input[2]) if len(node.input) > 2 and node.input[2] else torch.zeros(())
    if scale.dim() == 1 and scale.numel() > 1:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [1] * tensor.dim()
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.dim() else zero
    return (tensor - zero) * scale, float(scale.abs().max())


def _is_one(
    tensor: torch.Tensor,
    parameter: torch.Tensor,
    is_same: Callable[[torch.Tensor, torch.Tensor], bool],
) -> bool:
    """Whether a tensor is a parameter, or that transposed."""
    own = parameter.float().cpu()
    ways = [own, own.mT] if own.dim() > 1 else [own]
    return any(way.shape == tensor.shape and is_same(tensor, way) for way in ways)


def _key(tensor: torch.Tensor) -> _Key:
    """What equal tensors have in common, also where they are transposed."""
    total = float(tensor.detach().double().abs().sum())
    return tensor.numel(), float(f"{total:.5g}")


def _path(owner: str, modules: Mapping[str, nn.Module]) -> tuple[Module, ...]:
    parts = owner.split(".") if owner else []
    paths = [".".join(parts[: end + 1]) for end in range(len(parts))]
    kinds = ((path, modules[path]) for path in paths if path in modules)
    return tuple(
        Module(path, path, type(module).__name__)
        for path, module in kinds
        if not isinstance(module, nn.ModuleList | nn.ModuleDict)
    )

