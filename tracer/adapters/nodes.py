"""Reads the nodes of a graph of `torch.fx` into operations, whatever graphs are nested in it."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import OutputKind

from tracer.adapters.calls import Module, Operation
from tracer.adapters.graph import Graph, Held, Value
from tracer.adapters.inputs import Expected, TreeSpec
from tracer.adapters.lines import by_depth, frames_in
from tracer.execution.torch_internals import graph_of

# A state of PyTorch that some operations are computed in.
State = Callable[[], AbstractContextManager[None]]
# What bears the stack of no module.
_NO_STACK = "_empty_nn_module_stack_from_metadata_hook"
# They compute nothing, and fail where a value of the other side's is of another dtype.
_CHECKS = ("_assert", "sym_constrain", "_guards_fn")


@dataclass(eq=False)
class Reading:
    """A graph as it is read, with what is nested in it.

    Attributes:
        root: what owns the graph.
        held: parameters, buffers and constants by node.
        placed: what stands for a node that is none of the operations: nodes in a nest, or a
            constant.
        states: the states of PyTorch that operations are computed in, by node.
        astray: the nodes that bear no stack of modules.
        output: the nest of nodes that the graph returns.
    """

    root: nn.Module
    held: dict[Value, Held]
    expected: Expected
    out_spec: TreeSpec | None
    known: tuple[str, ...] = ()
    placed: dict[fx.Node, object] = field(default_factory=dict)
    states: dict[fx.Node, tuple[State, ...]] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    astray: set[fx.Node] = field(default_factory=set)
    output: object = None
    writes: list[tuple[Value, Value]] = field(default_factory=list)
    unused: list[Held] = field(default_factory=list)

    def graph(self) -> Graph:
        """What was read."""
        return Graph(
            operations=_with_stacks(self.operations, self.astray),
            inputs=self.expected.inputs,
            outputs=tuple(dict.fromkeys(_nodes_in(self.output))),
            held=self.held,
            writes=self.writes,
            unused=self.unused,
            root_class=_root_class(self.operations),
            known=self.known,
        )

    def read(self) -> None:
        """Reads all nodes."""
        self.output = self._read(self.root, "", ())

    def take_outputs(
        self, specs: Sequence[Any], targets: Mapping[str, fx.Node], nodes: Mapping[str, fx.Node]
    ) -> None:
        """Tells what the user is given from what is written back."""
        given: list[object] = []
        flat: Any = self.output
        for spec, value in zip(specs, flat, strict=True):
            if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
                self.writes.append((targets[spec.target], value))
            elif spec.kind is OutputKind.USER_INPUT_MUTATION:
                self.writes.append((nodes[spec.target], value))
            else:
                given.append(value)
        self.output = given

    def _read(self, owner: nn.Module, path: str, states: tuple[State, ...]) -> object:
        """Reads the nodes of a graph; what it returns, as a nest of nodes."""
        for node in graph_of(owner).nodes:
            if node.op == "output":
                return self._resolved(node.args[0])
            if node.op == "get_attr":
                self._read_attribute(node, owner, path)
            elif node.op != "placeholder" and not _is_check(node):
                self._read_node(node, owner, path, states)
        return None

    def _read_attribute(self, node: fx.Node, owner: nn.Module, path: str) -> None:
        value = _attribute(owner, str(node.target))
        if not isinstance(value, torch.Tensor):
            self.placed[node] = value
            return
        name = f"{path}.{node.target}".strip(".")
        known = next((k for k, h in self.held.items() if h.name == name), None)
        if known is None:
            self.held[node] = Held(name, value)
        else:
            self.placed[node] = known

    def _read_node(
        self, node: fx.Node, owner: nn.Module, path: str, states: tuple[State, ...]
    ) -> None:
        args: Any = tuple(self._resolved(arg) for arg in node.args)
        region = _region(node.target, args)
        if region is not None:
            inner, given, state = region
            self._open(node, inner, path, given, (*states, state))
        elif node.op == "call_module":
            inner = _attribute(owner, str(node.target))
            self._open(node, inner, f"{path}.{node.target}".strip("."), args, states)
        elif str(getattr(node.target, "__name__", "")) == "getitem" and not isinstance(
            args[0], fx.Node
        ):
            self.placed[node] = args[0][args[1]]
        else:
            self._read_operation(node, owner, states)

    def _open(
        self,
        node: fx.Node,
        inner: Any,
        path: str,
        given: Sequence[object],
        states: tuple[State, ...],
    ) -> None:
        """Reads a graph inside instead of the node that runs it."""
        placeholders = [each for each in graph_of(inner).nodes if each.op == "placeholder"]
        self.placed.update(zip(placeholders, given, strict=True))
        self.placed[node] = self._read(inner, path, states)

    def _read_operation(self, node: fx.Node, owner: nn.Module, states: tuple[State, ...]) -> None:
        takes = dict.fromkeys(_nodes_in(self._resolved([node.args, node.kwargs])))
        if states:
            self.states[node] = states
        stack = _stack(node)
        if _NO_STACK in (node.meta.get("nn_module_stack") or _NO_STACK):
            self.astray.add(node)
        self.operations.append(
            Operation(
                name=_operator_name(node),
                takes=tuple(takes),
                makes=(node,),
                stack=stack,
                places=tuple(by_depth(frames_in(node.stack_trace), len(stack))),
                node=node,
            )
        )

    def _resolved(self, value: object) -> object:
        """A nest of arguments with what stands for each node."""
        return _resolved(value, self.placed)


def _resolved(value: Any, placed: Mapping[fx.Node, object]) -> Any:
    def stands_for(node: fx.Node) -> Any:
        return placed.get(node, node)

    return map_nodes(value, stands_for)


def map_nodes(nest: Any, function: Callable[[fx.Node], Any]) -> Any:
    """A nest of arguments with the function applied to each node in it."""
    return fx.node.map_arg(nest, function)


def _region(target: object, args: Sequence[Any]) -> tuple[Any, Sequence[object], State] | None:
    """The graph inside an operator that only sets a state, what it is given, and the state."""
    operators = torch.ops.higher_order
    if target is operators.wrap_with_set_grad_enabled:
        return args[1], args[2:], partial(torch.set_grad_enabled, args[0])
    if target is operators.wrap_with_autocast:
        device, dtype, enabled, cache = args[:4]
        state = partial(torch.autocast, device, dtype, enabled, cache)
        return args[4], args[5:], state
    return None


def _is_check(node: fx.Node) -> bool:
    name = str(node.target) if node.op == "call_module" else _operator_name(node)
    return name.startswith(_CHECKS) and not node.users


def _operator_name(node: fx.Node) -> str:
    """PyTorch's name of what a node does."""
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", node.target))


def _attribute(owner: nn.Module, path: str) -> Any:
    value: Any = owner
    for key in path.split("."):
        value = getattr(value, key)
    return value


def _nodes_in(value: object) -> Iterator[fx.Node]:
    found: list[fx.Node] = []

    def note(node: fx.Node) -> fx.Node:
        found.append(node)
        return node

    map_nodes(value, note)
    return iter(found)


def _stack(node: fx.Node) -> tuple[Module, ...]:
    """The modules that a node was traced in."""
    entries = (node.meta.get("nn_module_stack") or {}).items()
    found = []
    for key, (name, kind) in entries:
        if key == _NO_STACK:
            continue
        name = name.partition("@")[0].removeprefix("L__self__").strip(".")
        class_name = kind if isinstance(kind, str) else kind.__qualname__
        if name:
            found.append(Module(str(key), name, class_name.rpartition(".")[2]))
    return tuple(found)


def _root_class(operations: Sequence[Operation]) -> str:
    """The class of the model, as the stacks of some exporters say."""
    for operation in operations:
        node: Any = operation.node
        for name, kind in (node.meta.get("nn_module_stack") or {}).values():
            if not name and kind:
                return str(kind if isinstance(kind, str) else kind.__qualname__).rpartition(".")[2]
    return ""


def _with_stacks(operations: Sequence[Operation], astray: Container[object]) -> list[Operation]:
    """Operations of which those without a stack have that of what they belong to: of what makes
    the value that they take a part of, or what is common to those before and after."""
    found: list[Operation] = []
    makers: dict[Value, Operation] = {}
    for index, operation in enumerate(operations):
        if operation.node in astray:
            before = found[-1] if found else None
            if operation.name == "getitem":
                before = makers.get(operation.takes[0], before)
            after = next((o for o in operations[index:] if o.node not in astray), None)
            if operation.name == "getitem" or after is None:
                after = before
            operation = replace(operation, stack=_common(before, after))
        found.append(operation)
        makers.update(dict.fromkeys(operation.makes, operation))
    return found


def _common(before: Operation | None, after: Operation | None) -> tuple[Module, ...]:
    if before is None or after is None:
        return ()
    pairs = zip(before.stack, after.stack, strict=False)
    return tuple(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
