"""Programs of `torch.export` and graphs of `torch.fx` as models; see `tracer.adapters.graph`.

Each node of such a graph bears the stack of modules that it was traced in, and a trace of its
source. Regions that were traced without gradients, or under autocast, are opened and computed in
that state; other operators of higher order (`cond`, `while_loop`, `scan`) are one operation each.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import Parameter, Signature
from itertools import takewhile
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram, UnflattenedModule
from torch.export.graph_signature import InputKind, OutputKind

from tracer.adapters.calls import Module, Operation, Shared
from tracer.adapters.graph import Graph, GraphModel, Held, Value, Values
from tracer.adapters.inputs import Expected, TreeSpec, flat_inputs
from tracer.adapters.lines import by_depth, frames_in
from tracer.errors import ModelLoadError
from tracer.execution.torch_internals import forward_spec, graph_of, tree_unflatten

_State = Callable[[], AbstractContextManager[None]]
# They compute nothing, and fail where a value of the other side's is of another dtype.
_NO_STACK = "_empty_nn_module_stack_from_metadata_hook"
_CHECKS = ("_assert", "sym_constrain", "_guards_fn")


class ProgramModel(GraphModel):
    """A program of `torch.export`, or a graph of `torch.fx`, as a model."""

    def __init__(self, opened: "_Opened") -> None:
        self._expected = opened.expected
        self._returned = _Returned(opened.output, opened.out_spec)
        super().__init__(opened.graph(), _Engine(opened.placed, opened.states))

    @property
    def signature(self) -> Signature:
        """The parameters of the forward that was exported."""
        kind = Parameter.POSITIONAL_OR_KEYWORD
        return Signature([Parameter(name, kind) for name in self._expected.names])

    def example_inputs(self) -> dict[str, object] | None:
        """What the program was exported with, by name; None where it does not say."""
        return self._expected.example

    def read_inputs(self, arguments: Mapping[str, object]) -> Sequence[object]:
        """The graph's inputs from arguments by name.

        Raises:
            InputError: they do not fit.
        """
        return flat_inputs(arguments, self._expected)

    def write_output(self, outputs: Sequence[object]) -> object:
        """What the model returned, from the graph's outputs."""
        values = dict(zip(self._graph.outputs, outputs, strict=True))
        return self._returned.of(values)


@dataclass(frozen=True)
class _Returned(Shared):
    """How what a model returns is made of its graph's outputs.

    Attributes:
        output: a nest of nodes.
        spec: how its leaves are nested in what the model returns; None for as they are.
    """

    output: object
    spec: TreeSpec | None

    def of(self, values: Mapping[Value, object]) -> object:
        """What is returned, of the values of the nodes."""
        flat = _map(self.output, values.__getitem__)
        if self.spec is None:
            return flat
        return tree_unflatten(flat if isinstance(flat, list | tuple) else [flat], self.spec)


def from_program(program: ExportedProgram) -> ProgramModel:
    """The model of an exported program."""
    signature = program.graph_signature
    held, given, targets = {}, [], {}
    nodes = {node.name: node for node in program.graph.nodes}
    for spec in signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            given.append(node)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            assert spec.target is not None
            stored = program.state_dict if spec.target in program.state_dict else program.constants
            held[node] = Held(spec.target, stored[spec.target], spec.persistent is True)
            targets[spec.target] = node
        else:
            raise ModelLoadError(
                f"the program takes {spec.arg.name!r}, a {spec.kind.name.lower()}: a graph with "
                "objects of C++ or with effects cannot be run node by node"
            )
    call = program.module_call_graph[0].signature
    assert call is not None
    names = call.forward_arg_names
    opened = _Opened(
        root=program.graph_module,
        held=held,
        expected=Expected.of(
            given, call.in_spec, names, program.range_constraints, program.example_inputs
        ),
        out_spec=call.out_spec,
        known=tuple(entry.fqn for entry in program.module_call_graph if entry.fqn),
    )
    opened.read()
    opened.take_outputs(signature.output_specs, targets, nodes)
    opened.unused = [
        Held(name, value)
        for name, value in program.state_dict.items()
        if name not in targets and isinstance(value, torch.Tensor)
    ]
    return ProgramModel(opened)


def from_module(module: "fx.GraphModule | UnflattenedModule") -> ProgramModel:
    """The model of a graph that holds its parameters itself.

    Raises:
        ModelLoadError: it takes its parameters as inputs, as `ExportedProgram.graph_module` does.
    """
    if isinstance(module, UnflattenedModule):
        call = module.module_call_graph[0].signature
        assert call is not None
        in_spec, out_spec, names = call.in_spec, call.out_spec, call.forward_arg_names
    else:
        in_spec, out_spec, names = forward_spec(module.graph)
    given = [node for node in module.graph.nodes if node.op == "placeholder"]
    opened = _Opened(
        root=module,
        held={},
        expected=Expected.of(given, in_spec, names, {}, None),
        out_spec=out_spec,
    )
    opened.read()
    opened.known = tuple(name for name, _ in module.named_modules() if name)
    return ProgramModel(opened)


@dataclass(eq=False)
class _Opened:
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
    states: dict[fx.Node, tuple[_State, ...]] = field(default_factory=dict)
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

    def _read(self, owner: nn.Module, path: str, states: tuple[_State, ...]) -> object:
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
        self, node: fx.Node, owner: nn.Module, path: str, states: tuple[_State, ...]
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
        states: tuple[_State, ...],
    ) -> None:
        """Reads a graph inside instead of the node that runs it."""
        placeholders = [each for each in graph_of(inner).nodes if each.op == "placeholder"]
        self.placed.update(zip(placeholders, given, strict=True))
        self.placed[node] = self._read(inner, path, states)

    def _read_operation(self, node: fx.Node, owner: nn.Module, states: tuple[_State, ...]) -> None:
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


@dataclass(frozen=True)
class _Engine(Shared):
    """Computes node by node, as `torch.fx.Interpreter` does, where the tensors lie."""

    placed: Mapping[fx.Node, object]
    states: Mapping[fx.Node, tuple[_State, ...]]

    def split(self, operations: Sequence[Operation]) -> Iterator[Sequence[Operation]]:
        """One by one."""
        for operation in operations:
            yield (operation,)

    def run(
        self, operations: Sequence[Operation], values: Values, wanted: Sequence[Value]
    ) -> Sequence[object]:
        """Computes a node."""
        (operation,) = operations
        node: Any = operation.node

        def value(each: fx.Node) -> Any:
            stands: Any = self.placed.get(each, each)
            if isinstance(stands, fx.Node):
                return values[stands]
            return _map(stands, values.__getitem__)

        args, kwargs = (_map(nest, value) for nest in (node.args, node.kwargs))
        with ExitStack() as stack:
            for state in self.states.get(node, ()):
                stack.enter_context(state())
            if node.op == "call_method":
                made = getattr(args[0], node.target)(*args[1:], **kwargs)
            else:
                made = node.target(*args, **kwargs)
        return [made] if wanted else []


def _resolved(value: Any, placed: Mapping[fx.Node, object]) -> Any:
    def stands_for(node: fx.Node) -> Any:
        return placed.get(node, node)

    return _map(value, stands_for)


def _map(nest: Any, function: Callable[[fx.Node], Any]) -> Any:
    """A nest of arguments with the function applied to each node in it."""
    return fx.node.map_arg(nest, function)


def _region(target: object, args: Sequence[Any]) -> tuple[Any, Sequence[object], _State] | None:
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

    _map(value, note)
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
