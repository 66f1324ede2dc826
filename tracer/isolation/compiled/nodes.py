"""The node at which a compiled graph goes wrong.

The graphs that dynamo makes of a module run twice on what they were given: node by node as they
are, and compiled as far as the stage that differs, with the value of every node as an output. The
first value that differs names its node, and that the line of the model which it was made of. A
compiler fuses less where more is asked of it: if that mends what was wrong, the graph is compiled
as far as one node instead, which bisection finds. What dynamo itself has made of the code is looked
for among the values of the module as it is written.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx

from tracer.diagnosis.zoom.matching import match
from tracer.diagnosis.zoom.operations import MOST_BYTES, OperationLog
from tracer.execution.compilation import Stage
from tracer.execution.compile_internals import backend_called
from tracer.execution.offload import copy_model
from tracer.execution.torch_internals import TORCH, call_replaced
from tracer.interventions.forcing import Forcing, Replaced
from tracer.isolation.compiled.result import GraphNode
from tracer.isolation.compiled.trials import Trials
from tracer.tensors.difference import Difference
from tracer.tensors.leaves import version_of
from tracer.tensors.rebuilding import deep_copy
from tracer.tensors.tolerance import Tolerance

_TRACER = f"{Path(__file__).parents[2]}{os.sep}"  # it calls modules of PyTorch's own
# How dynamo calls the module itself: "L['self']", "L['call'].__self__".
_WITHIN = re.compile(r"^L\['\w+'\](\.__self__)?\.?")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)')


@dataclass(frozen=True)
class _Graph:
    """A graph with what its first run was given, and what compiles it."""

    module: fx.GraphModule
    inputs: tuple[Any, ...]
    compiler: Callable[..., Callable[..., Any]]


@dataclass
class _Capture:
    """Keeps the graphs that a backend is given, and what a module is called with."""

    graphs: list[_Graph] = field(default_factory=list)
    call: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def around(self, backend: Any) -> Callable[..., Any]:
        """A backend that does the same and keeps the graphs."""
        compiler = backend_called(backend) if isinstance(backend, str) else backend

        def keeping(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            kept = fx.GraphModule(module, deepcopy(module.graph))  # it may edit the other
            compiled = compiler(module, inputs)
            seen: list[None] = []

            def run(*args: Any) -> Any:
                if not seen:
                    seen.append(None)
                    self.graphs.append(_Graph(kept, _copies(args), compiler))
                return compiled(*args)

            return run

        return keeping

    def spy(self, forward: Callable[..., object]) -> Callable[..., object]:
        """Keeps the arguments of the first call."""

        def call(*args: Any, **kwargs: Any) -> object:
            if self.call is None:
                self.call = deep_copy((args, kwargs), _clone)
            return forward(*args, **kwargs)

        return call


def wrong_node(trials: Trials, stage: Stage, module: str) -> GraphNode | None:
    """Looks in the graphs of a module that differs when it is compiled alone.

    Args:
        stage: the first at which it differs.
        module: the reference's name.

    Returns:
        None where no node can be told: the graphs make too many values, or agree one by one.
    """
    capture = _Capture()
    experiment = trials.alone((module,), stage, capture.around)
    own = experiment.session.pairing.candidate[trials.own_names[module]]
    with call_replaced(own, capture.spy):
        experiment.rerun(Forcing(frozenset((module,)), Replaced.INEXACT))
    try:
        with torch.no_grad():
            return next(filter(None, _found(trials, stage, module, capture)), None)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        # A backend that cannot compile a graph of other outputs: the module stays named without it.
        return None


def _found(
    trials: Trials, stage: Stage, module: str, capture: _Capture
) -> Iterator[GraphNode | None]:
    tolerance = trials.experiment.tolerance
    if stage is not Stage.DYNAMO:
        yield from (_differing(graph, tolerance) for graph in capture.graphs)
        return
    values = _values_as_written(trials, module, capture)
    yield from (_not_among(graph, values, tolerance) for graph in capture.graphs)


class _Values(fx.Interpreter):
    """Runs a graph node by node.

    Attributes:
        tensors: the value of each node that makes a tensor, and of each input, at the end.
        made: the index of the node that wrote each of them last.
    """

    def __init__(self, graph: _Graph) -> None:
        super().__init__(graph.module, garbage_collect_values=False)
        self.tensors: dict[fx.Node, torch.Tensor] = {}
        self.made: dict[fx.Node, int] = {}
        self._versions: dict[fx.Node, int | None] = {}
        self._index = 0
        self.run(*_copies(graph.inputs))

    def run_node(self, n: fx.Node) -> Any:
        """Runs one, and sees what it has written."""
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and n.op != "output":
            self.tensors[n] = value
        for node, tensor in self.tensors.items():
            version = version_of(tensor)
            if self._versions.get(node) != version:
                self._versions[node], self.made[node] = version, self._index
        self._index += 1
        return value


def _differing(graph: _Graph, tolerance: Tolerance) -> GraphNode | None:
    """The first node whose value the compiled graph makes otherwise."""
    expected = _Values(graph)
    nodes = list(graph.module.graph.nodes)
    watched = [
        n for n in expected.tensors if n.op != "placeholder" or _is_edited(n, nodes, expected)
    ]
    if not watched or _bytes(expected.tensors[n] for n in watched) > MOST_BYTES:
        return None

    def differs(asked: Sequence[fx.Node]) -> dict[fx.Node, float]:
        made = _compiled_values(graph, asked)
        errors = {
            node: _error(expected.tensors[node], value, tolerance)
            for node, value in zip(asked, made, strict=True)
        }
        return {node: peir for node, peir in errors.items() if peir is not None}

    found = differs(watched)
    if not found:
        right, wrong = -1, len(watched) - 1
        found = differs(watched[wrong:])
        while found and wrong - right > 1:
            middle = (right + wrong) // 2
            if result := differs([watched[middle]]):
                wrong, found = middle, result
            else:
                right = middle
    if not found:
        return None
    value = min(found, key=expected.made.__getitem__)
    return _described(nodes[expected.made[value]], found[value], graph)


def _is_edited(node: fx.Node, nodes: Sequence[fx.Node], values: _Values) -> bool:
    return nodes[values.made[node]] is not node


def _compiled_values(graph: _Graph, asked: Sequence[fx.Node]) -> Sequence[Any]:
    """What the graph makes of some nodes when it is compiled to return them alone."""
    module = fx.GraphModule(graph.module, fx.Graph())
    copies: dict[fx.Node, fx.Node] = {}
    module.graph.graph_copy(graph.module.graph, copies)
    module.graph.output(tuple(copies[node] for node in asked))
    module.graph.eliminate_dead_code()
    module.recompile()
    compiled = graph.compiler(module, list(_copies(graph.inputs)))
    made: Sequence[Any] = compiled(*_copies(graph.inputs))
    return made


def _error(reference: torch.Tensor, value: Any, tolerance: Tolerance) -> float | None:
    """How far a value is off; None where it agrees."""
    if not isinstance(value, torch.Tensor) or value.shape != reference.shape:
        return float("inf")
    difference = Difference.of(reference, value)
    agrees = tolerance.agrees(difference, reference.dtype, value.dtype)
    return None if agrees else difference.peir


def _values_as_written(trials: Trials, module: str, capture: _Capture) -> list[torch.Tensor]:
    """All that a module computes when it is not compiled, of the same arguments."""
    if capture.call is None:
        return []
    experiment = trials.compiled_to(Stage.AS_WRITTEN)
    written = copy_model(experiment.session.pairing.candidate[trials.own_names[module]])
    args, kwargs = capture.call
    log = OperationLog()
    log.begin()
    try:
        written(*args, **kwargs)
    finally:
        log.end()
    return log.values


def _not_among(
    graph: _Graph, values: Sequence[torch.Tensor], tolerance: Tolerance
) -> GraphNode | None:
    """The first node whose value is none of some values, and from which none of them follows."""
    made = _Values(graph)
    nodes = [node for node in made.tensors if node.op != "placeholder"]
    own = [made.tensors[node] for node in nodes]
    limit = max(tolerance.limit(d, d) for d in tolerance.working or (torch.float32,))
    found = match(own, values, limit, ())
    known = {n for n, matches in zip(nodes, found, strict=True) if any(m.is_exact for m in matches)}
    before = _behind(known)
    wrong = next((node for node in nodes if node not in before), None)
    return None if wrong is None else _described(wrong, None, graph)


def _behind(nodes: set[fx.Node]) -> set[fx.Node]:
    """Some nodes, and all that they are computed from."""
    found: set[fx.Node] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.all_input_nodes
    return found


def _described(node: fx.Node, peir: float | None, graph: _Graph) -> GraphNode:
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    inside = [name for name, _ in stack.values()]
    frames = [f for f in _FRAME.findall(node.stack_trace or "") if not f[0].startswith(_TRACER)]
    own = [frame for frame in frames if not frame[0].startswith(TORCH)]
    file, line, text = (own or frames or [("", 0, "")])[-1]
    return GraphNode(
        module=_WITHIN.sub("", inside[-1]) if inside else "",
        name=node.name,
        operation=getattr(node.target, "__name__", str(node.target)),
        file=file,
        line=int(line),
        text=text,
        peir=peir,
        nodes=sum(n.op not in ("placeholder", "output") for n in graph.module.graph.nodes),
    )


def _bytes(tensors: Iterator[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _copies(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(map(_clone, values))


def _clone(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
