"""Which modules the nodes of an ONNX graph belong to, and which names its initialisers had.

| exporter | says of a node |
|---|---|
| `torch.onnx.export(dynamo=True)` | names and classes of the modules, call by call, and a trace |
| `torch.onnx.export(dynamo=False)` | names of modules in its own: `/model/layers.0/mlp/MatMul` |
| others | nothing: modules are those whose weights the nodes use, as another model has them |

A node that says nothing, such as those that quantisers put in, belongs to what makes the value that
it takes, else to what all who take its value have in common.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from tracer.adapters.calls import Module, Operation
from tracer.adapters.graph import Held, Value
from tracer.adapters.lines import by_depth, frames_in
from tracer.adapters.neighbours import Weights, filled
from tracer.adapters.onnx_engine import Node
from tracer.adapters.onnx_file import OnnxFile, free_names

if TYPE_CHECKING:
    from onnx import NodeProto

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_TRACE = "pkg.torch.onnx.stack_trace"
_FX = "pkg.torch.onnx.fx_node"
_PLACEHOLDER = re.compile(r"%(p|b|c)_(\w+)")
# What quantisers put in.
_DEQUANTISED = "_DequantizeLinear_Output"
_FOLLOWING = ("QuantizeLinear", "DequantizeLinear", "Cast")
_LINEAR = re.compile(r"target=torch\.ops\.aten\.(linear|addmm|mm|t|matmul)\b")
# By a node and what it takes of the file's, the weight of another model, and whether it is
# transposed.
_Weights = dict[tuple[int, str], tuple[str, bool]]


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
    stacks = [_stack(node) for node in file.nodes]
    root_class = next((_root_class(node) for node in file.nodes if _said(node, _CLASSES)), "")
    weights: _Weights = {}
    if other is not None:
        stacks = _by_weights(file, other, weights)
    says_nothing = all(_stack(node) is None for node in file.nodes)
    found = filled(
        [free_names(node) for node in file.nodes],
        [list(node.output) for node in file.nodes],
        stacks,
        [says_nothing and node.op_type not in _FOLLOWING for node in file.nodes],
    )
    by_id = {id(node): stack for node, stack in zip(file.nodes, found, strict=True)}
    names = _Names(file, by_id, weights)
    operations = [names.operation(node) for node in file.nodes]
    return Named(operations, names.held, frozenset(names.turned), root_class)


class _Names:
    """Gives what a file holds to the modules that use it."""

    def __init__(
        self, file: OnnxFile, stacks: Mapping[int, tuple[Module, ...]], weights: "_Weights"
    ) -> None:
        self._weights = weights
        self.held: dict[Value, Held] = {}
        self.turned: set[Value] = set()
        self._own_names: set[str] = set()
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
        own, is_turned = self._weights.get((id(node), name)) or self._own_name(
            node, name, scope, tensor
        )
        value = name if own == name else f"{name} as {own}"
        if value not in self.held:
            while own in self._own_names:  # another tensor's
                own += "_"
            self._own_names.add(own)
            tensor = tensor.mT if is_turned else tensor
            last = own.rpartition(".")[2]
            is_parameter = tensor.is_floating_point() and (
                own.replace(".", "_") in self._parameters or last in ("weight", "bias")
            )
            if is_parameter:
                tensor = nn.Parameter(tensor, requires_grad=False)
            self.held[value] = Held(own, tensor, is_persistent=False)
            if is_turned:
                self.turned.add(value)
        return value

    def _own_name(
        self, node: "NodeProto", name: str, scope: str, tensor: torch.Tensor
    ) -> tuple[str, bool]:
        """What the module that uses an initialiser calls it, and whether it is transposed there."""
        name = name.removesuffix(_DEQUANTISED)
        prefix = f"{scope}." if scope else ""
        mangled = prefix.replace(".", "_")
        fx = _said(node, _FX)
        left = [
            each[1].removeprefix(mangled)
            for each in _PLACEHOLDER.findall(fx)
            if each[1].startswith(mangled) and prefix
        ]
        # Others bear their own names.
        own = [n.removesuffix(_DEQUANTISED) for n in node.input if n in self._file.tensors]
        strange = [each for each in own if not each.startswith(prefix)]
        if left and name in strange:
            known = {each.replace(".", "_") for each in own}
            free = [each for each in left if f"{mangled}{each}" not in known]
            if len(free) != len(strange):  # one node of several that an operation became
                free = [e for e in free if e.endswith("weight") == (tensor.dim() > 1)]
            if len(free) == len(strange):
                is_product = node.op_type == "MatMul" or (
                    node.op_type == "Gemm" and not _attribute(node, "transB")
                )
                turned = is_product and tensor.dim() == 2 and bool(_LINEAR.search(fx))
                return prefix + free[strange.index(name)], turned
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


def _by_weights(
    file: OnnxFile, other: nn.Module, weights: _Weights
) -> list[tuple[Module, ...] | None]:
    """The modules of nodes that use the weights of another model, which are noted."""
    known = Weights(other)
    stacks: list[tuple[Module, ...] | None] = []
    for node in file.nodes:
        stacks.append(None)
        for name in node.input:
            if name not in file.tensors:
                continue
            found = known.take(file.tensors[name], file.steps.get(name, 0.0))
            if found is not None:
                weights[id(node), name] = found
                stacks[-1] = known.stack(found[0])
    return stacks
