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
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
# What quantisers put in.
_DEQUANTISED = "_DequantizeLinear_Output"
_FOLLOWING = ("QuantizeLinear", "DequantizeLinear", "Cast")
_LINEAR = re.compile(r"target=torch\.ops\.aten\.(linear|addmm|mm|t|matmul)\b")
# By a node and what it takes of the file's, the weight of another model, and whether it is
# transposed.
_Weights = dict[tuple[int, str], tuple[str, bool]]
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
    weights = {} if other is None else _by_weights(file, other)
    if other is not None:
        modules = dict(other.named_modules())
        # What else belongs to the modules around them, the file does not say.
        for (node, _), (weight, _) in weights.items():
            if owner := weight.rpartition(".")[0]:
                stacks[node] = (Module(owner, owner, type(modules[owner]).__name__),)
    names = _Names(file, {id(node): stack for node, stack in _filled(file, stacks)}, weights)
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
        self._taken: dict[str, str] = {}
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
            if own in self._taken:
                raise AssertionError(f"{own} stands for {self._taken[own]} and for {name}")
            self._taken[own] = name
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


def _filled(
    file: OnnxFile, stacks: Mapping[int, tuple[Module, ...] | None]
) -> list[tuple["NodeProto", tuple[Module, ...]]]:
    """Each node with its modules, those that say nothing with those of their neighbours."""
    found = dict(stacks)
    is_silent = all(_stack(node) is None for node in file.nodes)
    users: dict[str, list[NodeProto]] = defaultdict(list)
    for node in file.nodes:
        for name in free_names(node):
            users[name].append(node)
    makers: dict[str, NodeProto] = {}
    for node in file.nodes:
        if found[id(node)] is None and (node.op_type in _FOLLOWING or not is_silent):
            before = [found[id(makers[n])] for n in free_names(node) if n in makers]
            if before:
                found[id(node)] = _common(before)
        makers.update(dict.fromkeys(node.output, node))
    for node in reversed(file.nodes):
        if found[id(node)] is None and (node.op_type in _FOLLOWING or not is_silent):
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


def _by_weights(file: OnnxFile, other: nn.Module) -> _Weights:
    """The weights of another model that nodes use."""
    owners: dict[_Key, list[tuple[str, torch.Tensor]]] = defaultdict(list)
    for name, parameter in other.named_parameters(remove_duplicate=False):
        if not parameter.is_meta and parameter.dim() > 0:
            owners[_key(parameter)].append((name, parameter.detach()))
    found: _Weights = {}
    used: set[str] = set()
    for node in file.nodes:
        for name in node.input:
            # Of equal weights each is used once, in the order of the modules.
            names = _names_of(file, name, owners)
            left = [each for each in names if each[0] not in used] or names
            if left:
                found[id(node), name] = left[0]
                used.add(left[0][0])
    return found


def _names_of(
    file: OnnxFile, name: str, owners: Mapping[_Key, Sequence[tuple[str, torch.Tensor]]]
) -> list[tuple[str, bool]]:
    """The names of the parameters that an initialiser is, quantised or not, and whether it holds
    them transposed."""
    if name not in file.tensors:
        return []
    tensor, step = file.tensors[name].float(), file.steps.get(name, 0.0)
    every = [e for key, each in owners.items() if key[0] == tensor.numel() for e in each]
    return [
        (other, is_turned)
        for other, parameter in (every if step else owners.get(_key(tensor), ()))
        for is_turned in ((False, True) if parameter.dim() > 1 else (False,))
        if _is_one(tensor, parameter.mT if is_turned else parameter, step)
    ]


def _is_one(tensor: torch.Tensor, parameter: torch.Tensor, step: float) -> bool:
    """Whether two tensors are the same up to a step."""
    if tensor.shape != parameter.shape:
        return False
    return bool(((tensor - parameter.float().cpu()).abs() <= step).all())


def _key(tensor: torch.Tensor) -> _Key:
    """What equal tensors have in common, also where they are transposed."""
    total = float(tensor.detach().double().abs().sum())
    return tensor.numel(), float(f"{total:.5g}")
