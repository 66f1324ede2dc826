"""An exported graph as a tree of modules, which runs under the tracer's hooks as any model does.

    GraphModel                    the root: takes the inputs of the model that was exported
      model   LlamaModel          a `GraphScope` for each module that has operations in the graph
        layers.0   LlamaDecoderLayer
          self_attn   LlamaAttention

A call of a module is the part of the graph whose operations bear its name and call index. It is
given the values that enter that part, and returns those that leave it: made inside, used outside.
Its operations run in their order, and the calls of modules inside through `__call__`, so that hooks
see them and may replace what they are given and return. A value is let go after its last use.
Parameters, buffers and constants belong to the scope that bears their name.

What computes the operations is an `Engine`, one for each format. A format is added in three steps:
read the file into a `Graph` (operations in order with the values that they take and make, each with
its stack of modules and its lines of source; inputs, outputs, and what is held), write an `Engine`
that computes some operations from given values, and give both to a subclass of `GraphModel` that
says by `read_inputs` and `write_output` what the model's own arguments and output look like.
"""

import copy
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Signature
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from tracer.adapters.calls import CallPart, Inside, Operation, Shared, parts_of
from tracer.adapters.lines import Written
from tracer.errors import TracerError
from tracer.execution.hooks import Location
from tracer.execution.sources import Line
from tracer.text import first_line

Value = Hashable
Values = Mapping[Value, object]
Scope = TypeVar("Scope", bound="GraphScope")


class Engine(Protocol):
    """Computes the operations of a graph of one format; copies of a model share it."""

    def split(self, operations: Sequence[Operation]) -> Iterator[Sequence[Operation]]:
        """Operations that follow each other, as they are computed: one by one, or several at once.

        Their values are seen, and let go of, between what is yielded.
        """

    def run(
        self, operations: Sequence[Operation], values: Values, wanted: Sequence[Value]
    ) -> Sequence[object]:
        """Computes some operations.

        Args:
            values: all that they take.
            wanted: which of what they make is returned, in this order.
        """


@dataclass(frozen=True)
class Held:
    """Something that a graph holds: a parameter, a buffer, a constant.

    Attributes:
        name: with the module's that it belongs to, as in a state dict.
        is_persistent: of a buffer, whether a state dict has it.
    """

    name: str
    value: torch.Tensor
    is_persistent: bool = True

    @property
    def owner(self) -> str:
        """The module's name."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class QuantisedTensor:
    """A tensor of a file that holds integers with a scale.

    Attributes:
        name: the file's.
        module: where it is made; of a constant, where it is used.
        dtype: the integers', as a word.
        scale, zero_point: one, or one for each channel; [channels].
    """

    name: str
    module: str
    dtype: str
    scale: torch.Tensor
    zero_point: torch.Tensor


@dataclass(frozen=True)
class Graph(Shared):
    """What is read of a file: see the module's docstring.

    Attributes:
        operations: in the order in which they are computed.
        inputs: the values that the model's arguments become.
        outputs: the values that its output is made of.
        writes: what is written back to at the end, with the value: something held by its name, or
            an input.
        held: by value.
        unused: held by nobody's operation, and known to the file.
        root_class: the class of the model that was exported; empty if unknown.
        known: names of all modules of that model; those without operations had none to leave, or
            none that is used.
    """

    operations: Sequence[Operation]
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    held: Mapping[Value, Held]
    writes: Sequence[tuple[Value, Value]] = ()
    unused: Sequence[Held] = ()
    root_class: str = ""
    known: Sequence[str] = field(default_factory=tuple)


class GraphScope(nn.Module):
    """A module of the model that was exported, with its part of the graph.

    Its class bears the name of the module's own class.
    """

    # Its calls pass what enters and leaves the part: see `tracer.execution.forms`.
    is_formless = True

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._holders = _Holders()
        # The part that the next call is, or that the current one is; set by who calls it.
        self._part: CallPart | None = None
        self._at: Written | None = None
        self._written: Written | None = None

    @property
    def defined_at(self) -> Line | None:
        """Where the forward that was exported begins, as its first operation says."""
        return None if self._written is None else self._written.beginning()

    def computing_at(self) -> tuple[Line, ...]:
        """The lines of that forward that are computed now."""
        return () if self._at is None else self._at.lines()

    def forward(self, **given: object) -> object:
        assert self._part is not None
        made = self._compute(self._part, list(given.values()))
        return made[0] if len(made) == 1 else tuple(made) or None

    def _compute(self, part: CallPart, given: Sequence[object]) -> list[object]:
        """What leaves a part of the graph, from what enters it."""
        values: dict[Value, object] = dict(zip(part.takes, given, strict=True))
        for inside in part.steps:
            if isinstance(inside, CallPart):
                self._at = inside.called_at
                values.update(zip(inside.gives, self._call(inside, values), strict=True))
                _let_go(values, inside.freed)
            else:
                for operations in self._engine.split(inside.operations):
                    self._run(operations, values, inside)
        return [values[value] for value in part.gives]

    def _call(self, part: CallPart, values: Mapping[Value, object]) -> Sequence[object]:
        module = self._holders[part.name][0]
        assert isinstance(module, GraphScope)
        module._part = part
        given = {
            name: values[value] if value in values else self._held(value)
            for name, value in zip(part.names, part.takes, strict=True)
        }
        made = module(**given)
        if len(part.gives) == 1:
            return [made]
        return [] if made is None else made

    def _run(
        self, operations: Sequence[Operation], values: dict[Value, object], inside: Inside
    ) -> None:
        freed = [value for operation in operations for value in inside.freed.get(operation, ())]
        made = {value for operation in operations for value in operation.makes}
        wanted = [v for operation in operations for v in operation.makes if v not in freed]
        taken = {
            value: values[value] if value in values else self._held(value)
            for operation in operations
            for value in operation.takes
            if value not in made
        }
        self._at = operations[0].written
        try:
            results = self._engine.run(operations, taken, wanted)
        except TracerError:
            raise
        except Exception as error:
            raise RuntimeError(_in_words(error, operations[0])) from error
        values.update(zip(wanted, results, strict=True))
        _let_go(values, freed)

    def _held(self, value: Value) -> object:
        owner, name = self._holders[value]
        return getattr(owner, name)


class GraphModel(GraphScope):
    """The root of such a tree; see the module's docstring."""

    is_formless = False
    # A cache that it is given stays as it is: what it would hold is among the outputs.
    returns_anew = True
    # What the user should know before it runs, in sentences.
    notes: tuple[str, ...] = ()

    def __init__(self, graph: Graph, engine: Engine) -> None:
        super().__init__(engine)
        if graph.root_class:
            self.__class__ = _named_class(graph.root_class, type(self))
        self._graph = graph
        root = parts_of(
            graph.operations, [*graph.outputs, *(v for _, v in graph.writes)], _owners(graph)
        )
        self._part = root
        held = list(graph.held.values())
        for each in (*held, *graph.unused):
            self._hold(each)
        self._place(root)
        # An unpaired scope that is called under other names says nothing; it is told apart here.
        self.left_nothing = tuple(name for name in graph.known if not _has_submodule(self, name))
        self.eval()

    @property
    def has_modules(self) -> bool:
        """Whether it is known which operations are those of which module."""
        return True

    def named_after(self, other: nn.Module) -> "GraphModel":
        """One that has the modules of the model that it was made of."""
        raise NotImplementedError

    @property
    def signature(self) -> Signature:
        """The parameters of the forward that was exported."""
        raise NotImplementedError

    @property
    def forward(self) -> "_Forward":  # type: ignore[override]
        """Takes the arguments of the model that was exported, by name or position."""
        return _Forward(self)

    def quantised(self) -> Sequence[QuantisedTensor]:
        """The tensors that the file holds as integers; none where it says so by operations."""
        return ()

    def deployed(
        self, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> Sequence[tuple[str, torch.Tensor, torch.Tensor]]:
        """The outputs by name, as they are computed here, and as the runtime computes the whole
        file; none where that is the same."""
        return ()

    def example_inputs(self) -> dict[str, object] | None:
        """What the model was exported with, by name; None where that is not known."""
        return None

    @abstractmethod
    def read_inputs(self, arguments: Mapping[str, object]) -> Sequence[object]:
        """The graph's inputs from arguments by name.

        Raises:
            InputError: they do not fit.
        """

    @abstractmethod
    def write_output(self, outputs: Sequence[object]) -> object:
        """What the model returned, from the graph's outputs."""

    def run(self, arguments: Mapping[str, object]) -> object:
        """Computes the whole graph."""
        graph, root = self._graph, self._part
        assert root is not None
        inputs = dict(zip(graph.inputs, self.read_inputs(arguments), strict=True))
        made = dict(
            zip(root.gives, self._compute(root, [inputs[v] for v in root.takes]), strict=True)
        )
        found = {**inputs, **made}

        def value(key: Value) -> object:
            return found[key] if key in found else self._held(key)

        for target, written in graph.writes:
            place: Any = value(target)
            with torch.no_grad():
                place.copy_(value(written))
        return self.write_output([value(key) for key in graph.outputs])

    def _hold(self, held: Held) -> None:
        """Gives something held to the scope that bears its name."""
        owner, _, name = held.name.rpartition(".")
        scope = self._scope(owner)
        if isinstance(held.value, nn.Parameter):
            scope.register_parameter(name, held.value)
        else:
            scope.register_buffer(name, held.value, persistent=held.is_persistent)

    def _scope(self, name: str, class_name: str = "") -> nn.Module:
        """The scope of a name, with those around it; made if there is none."""
        scope: nn.Module = self
        for key in name.split(".") if name else ():
            if key not in scope._modules:
                scope.add_module(key, GraphScope(self._engine))
            inner = scope._modules[key]
            assert inner is not None
            scope = inner
        if class_name and scope is not self and type(scope) is GraphScope:
            scope.__class__ = _named_class(class_name, GraphScope)
        return scope

    def _place(self, part: CallPart) -> None:
        """Tells each scope where to find what its calls use."""
        scope = self if part is self._part else self._scope(part.name, part.class_name)
        assert isinstance(scope, GraphScope)
        scope._written = scope._written or part.first_written()
        for inside in part.steps:
            if isinstance(inside, CallPart):
                scope._holders[inside.name] = self._scope(inside.name, inside.class_name), ""
                self._place(inside)
                self._give(scope, inside.takes)
            else:
                self._give(scope, (v for operation in inside.operations for v in operation.takes))
        if scope is self:
            self._give(scope, self._graph.outputs)
            self._give(scope, (value for pair in self._graph.writes for value in pair))

    def _give(self, scope: GraphScope, values: Iterable[Value]) -> None:
        """Tells a scope where to find what is held of some values."""
        for value in values:
            held = self._graph.held.get(value)
            if held is not None:
                scope._holders[value] = self._holder(scope, held)

    def _holder(self, scope: nn.Module, held: Held) -> tuple[nn.Module, str]:
        """Who holds what an operation of a scope uses: itself where it holds the very same."""
        owner, _, name = held.name.rpartition(".")
        own = getattr(scope, name, None)
        if isinstance(own, torch.Tensor) and _place_of(own) == _place_of(held.value):
            return scope, name
        return self._scope(owner), name


class _Holders(dict[Value, tuple[nn.Module, str]]):
    """The modules that hold values, or that are called, with the values' names there."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Holders":
        return _Holders(
            {value: (copy.deepcopy(owner, memo), name) for value, (owner, name) in self.items()}
        )


class _Forward:
    """The forward of a graph's root, with the signature of the one that was exported."""

    def __init__(self, model: GraphModel) -> None:
        self._model = model
        self.__signature__ = model.signature

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._model.run(self.__signature__.bind_partial(*args, **kwargs).arguments)


def _let_go(values: dict[Value, object], freed: Sequence[Value]) -> None:
    for value in freed:
        values.pop(value, None)


def _owners(graph: Graph) -> dict[Value, list[str] | None]:
    """The names of the modules that hold each value; None for parameters, which enter no call."""
    owners: dict[Hashable, list[str]] = defaultdict(list)
    for held in (*graph.held.values(), *graph.unused):
        owners[_place_of(held.value)].append(held.owner)
    return {
        value: None if isinstance(held.value, nn.Parameter) else owners[_place_of(held.value)]
        for value, held in graph.held.items()
    }


def _place_of(tensor: torch.Tensor) -> Hashable:
    """What tensors have in common that are one, or views of the same memory."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else id(tensor)


def _named_class(name: str, base: type[Scope]) -> type[Scope]:
    return type(name, (base,), {"__module__": __name__, "__doc__": base.__doc__})


def _has_submodule(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _in_words(error: Exception, operation: Operation) -> str:
    lines = () if operation.written is None else operation.written.lines()
    place = f" at {Location.of(lines[0])}" if lines else ""
    return f"{first_line(str(error))} ({operation.name}{place})"
