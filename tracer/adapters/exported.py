"""Programs of `torch.export` and graphs of `torch.fx` as models; see `tracer.adapters.graph`.

Each node of such a graph bears the stack of modules that it was traced in, and a trace of its
source. Regions that were traced without gradients, or under autocast, are opened and computed in
that state; other operators of higher order (`cond`, `while_loop`, `scan`) are one operation each.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram, UnflattenedModule
from torch.export.graph_signature import InputKind

from tracer.adapters.calls import Operation, Shared
from tracer.adapters.graph import GraphModel, Held, Value, Values
from tracer.adapters.inputs import Expected, TreeSpec, flat_inputs
from tracer.adapters.nodes import Reading, State, map_nodes
from tracer.errors import ModelLoadError
from tracer.execution.torch_internals import forward_spec, tree_unflatten


class ProgramModel(GraphModel):
    """A program of `torch.export`, or a graph of `torch.fx`, as a model."""

    def __init__(self, opened: Reading) -> None:
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
        flat = map_nodes(self.output, values.__getitem__)
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
    opened = Reading(
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
    opened = Reading(
        root=module,
        held={},
        expected=Expected.of(given, in_spec, names, {}, None),
        out_spec=out_spec,
    )
    opened.read()
    opened.known = tuple(name for name, _ in module.named_modules() if name)
    return ProgramModel(opened)


@dataclass(frozen=True)
class _Engine(Shared):
    """Computes node by node, as `torch.fx.Interpreter` does, where the tensors lie."""

    placed: Mapping[fx.Node, object]
    states: Mapping[fx.Node, tuple[State, ...]]

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
            return map_nodes(stands, values.__getitem__)

        args, kwargs = (map_nodes(nest, value) for nest in (node.args, node.kwargs))
        with ExitStack() as stack:
            for state in self.states.get(node, ()):
                stack.enter_context(state())
            if node.op == "call_method":
                made = getattr(args[0], node.target)(*args[1:], **kwargs)
            else:
                made = node.target(*args, **kwargs)
        return [made] if wanted else []
