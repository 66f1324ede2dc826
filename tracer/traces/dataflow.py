"""flow(): what goes through one model: each call with what it was given and what it returned.

>>> shown = tracer.flow(model, {"input_ids": ids})
>>> call = shown.calls[3]
>>> call.module, call.arguments[0].path, call.arguments[0].shape, call.outputs[0].mean
('model.layers.0.input_layernorm', 'hidden_states', (1, 24, 64), 0.0102)

Values are put into numbers as they come, so that no activation lives longer than its call. A module
that has quantization points says so by a method, and nothing else is known of it (`Pointed`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from trace_model.annotations import checked
from tracer.adapters.opening import Model, as_model
from tracer.errors import UsageError
from tracer.execution.hooks import Answer, Call, Location, Phase
from tracer.execution.inputs import Inputs
from tracer.execution.session import matching, named_modules, run_alone
from tracer.execution.torch_internals import can_open_fused, declared
from tracer.tensors.fingerprints import Fingerprint
from tracer.tensors.kinds import plain
from tracer.tensors.leaves import dtype_name, is_stateful, leaves, version_of
from tracer.text import listed
from tracer.traces.recorded import Playback, Recorded, RecordedModule


class Pointed(Protocol):
    """A module with quantization points."""

    def quantization_points(self) -> Mapping[str, Mapping[str, object]]:
        """What is known of each point by name, in plain values.

        Those that are shown are role, dtype, qscheme, observed_min, observed_max, scale and
        zero_point; a list has one item per channel.
        """
        ...


@dataclass(frozen=True)
class Moments:
    """The statistics of a tensor's finite elements.

    Attributes:
        mean, min, max, stddev: the last of the population; None where no element is finite.
        nonfinite: how many elements are not.
    """

    mean: float | None
    min: float | None
    max: float | None
    stddev: float | None
    nonfinite: int

    @classmethod
    def of(cls, tensor: torch.Tensor | Fingerprint) -> "Moments":
        """Measures a tensor; of complex numbers the real and imaginary parts."""
        if isinstance(tensor, Fingerprint):
            parts = 2 if tensor.dtype.is_complex else 1
            count = parts * math.prod(tensor.shape) - tensor.nonfinite
            if not count:
                return cls(None, None, None, None, tensor.nonfinite)
            mean = tensor.total / count
            spread = math.sqrt(max(tensor.square / count - mean**2, 0.0))
            return cls(mean, tensor.least, tensor.most, spread, tensor.nonfinite)
        values = plain(tensor)
        flat = (torch.view_as_real(values) if values.is_complex() else values).reshape(-1)
        exact = flat.double()
        finite = exact[exact.isfinite()]
        if not finite.numel():
            return cls(None, None, None, None, exact.numel())
        extremes = finite.min().item(), finite.max().item()
        spread = finite.std(correction=0).item()
        return cls(finite.mean().item(), *extremes, spread, exact.numel() - finite.numel())


@dataclass(frozen=True)
class FlowValue:
    """One leaf of what a call was given, returned or changed.

    Attributes:
        path: "hidden_states", "position_embeddings.0", "output", "output.logits", ...
        kind: "argument" (by position), "keyword", "output", or "written" (into an argument).
        shape, dtype: of a tensor; else () and None.
        moments: of a tensor; None for plain values, and where nothing was recorded.
        text: a plain value, or why there is none.
        values: the tensor itself, if it was asked for.
    """

    path: str
    kind: str
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    moments: Moments | None = None
    text: str = ""
    values: torch.Tensor | None = None


@dataclass(eq=False)
class FlowCall:
    """One call of a module.

    Attributes:
        module, call: the name and the call index.
        module_class: the name of the module's class.
        depth: in how many shown calls it was made.
        caller: the line that called it; None where the tracer did.
        arguments: in the order in which they were given.
        outputs: what it returned, then what it changed in caches, lists and dicts.
        ended: whether it came to its end.
    """

    module: str
    call: int
    module_class: str
    depth: int
    caller: Location | None
    arguments: tuple[FlowValue, ...]
    outputs: tuple[FlowValue, ...] = ()
    ended: bool = False

    def __repr__(self) -> str:
        forms = (
            [f"{v.path} {dtype_name(v.dtype)} {list(v.shape)}" for v in values if v.dtype]
            for values in (self.arguments, self.outputs)
        )
        passed, returned = (listed(form, 2) for form in forms)
        name = self.module or "the root"
        return f"<FlowCall {self.call} of {name} ({self.module_class}): {passed} -> {returned}>"


@dataclass(frozen=True)
class Flow:
    """What goes through a model.

    Attributes:
        model: its class.
        calls: in the order in which they began.
        points: by module, what is known of its quantization points by name.
        is_complete: False for a recording that was ended early.
    """

    model: str
    calls: tuple[FlowCall, ...]
    points: Mapping[str, Mapping[str, Mapping[str, object]]]
    is_complete: bool = True

    def __repr__(self) -> str:
        modules = len({call.module for call in self.calls})
        ended = "" if self.is_complete else ", ended early"
        return f"<Flow: {self.model}, {len(self.calls)} calls of {modules} modules{ended}>"

    def _repr_html_(self) -> str:
        from tracer.reports.notebook import html

        return html(self)


@checked(UsageError, but=("inputs",))
@can_open_fused
def flow(
    model: Model,
    inputs: Inputs | None = None,
    *,
    include: str | Sequence[str] = "*",
    focus: str | Sequence[str] = (),
    inside: bool = False,
) -> Flow:
    """Runs a model once, or reads a recording, and puts what goes through it into numbers.

    Args:
        inputs: as for `compare`; none for a recording.
        include: globs of the names of the modules to show.
        focus: globs of those whose values are kept as well.
        inside: opens the layers that PyTorch computes in one piece (the fused path of
            `nn.TransformerEncoderLayer`), whose numbers are then those of the path without it.

    Raises:
        UsageError: a glob matches no module.
        InputError: the model does not accept the inputs.
        ModelRunError: the model raised.
        StorageError: the recording is damaged.
    """
    model = as_model(model)
    modules = dict(model.named_modules()) if isinstance(model, Recorded) else named_modules(model)
    collector = _Collector(_chosen(include, list(modules)), _chosen(focus, list(modules)))
    if isinstance(model, Recorded):
        for call, phase in Playback(model).events():
            collector.note(call, phase)
    else:
        run_alone(model, {} if inputs is None else inputs, collector.note)
    points = {name: points_of(module) for name, module in modules.items()}
    return Flow(
        model=str(model.header["model"]) if isinstance(model, Recorded) else type(model).__name__,
        calls=tuple(collector.calls),
        points={name: own for name, own in points.items() if own and name in collector.chosen},
        is_complete=not isinstance(model, Recorded) or model.file.is_complete,
    )


_POINTS = "quantization_points"


def points_of(module: nn.Module) -> dict[str, dict[str, object]]:
    """What a module says of its quantization points; nothing if it has none."""
    if isinstance(module, RecordedModule):
        found = module.points
    elif declared(module, _POINTS):
        pointed: Pointed = module  # type: ignore[assignment]
        found = pointed.quantization_points()
    else:
        return {}
    return {name: dict(point) for name, point in found.items()}


def span(channels: list[float]) -> dict[str, float]:
    """The range of the figures of all channels, instead of each of them."""
    return {"min": min(channels), "max": max(channels), "channels": len(channels)}


@dataclass(eq=False)
class _Collector:
    """A listener that puts values into numbers."""

    chosen: frozenset[str]
    focus: frozenset[str]
    calls: list[FlowCall] = field(default_factory=list)
    _shown: dict[Call, FlowCall] = field(default_factory=dict)
    _given: dict[Call, dict[str, tuple[int, int | None]]] = field(default_factory=dict)

    def note(self, call: Call, phase: Phase) -> Answer:
        if call.name not in self.chosen:
            return None
        if phase is Phase.START:
            self._start(call)
        else:
            self._end(call)
        return None

    def _start(self, call: Call) -> None:
        parent, depth = call.parent, 0
        while parent is not None:
            depth += parent in self._shown
            parent = parent.parent
        arguments = [
            value
            for name, argument in call.arguments.items()
            for value in self._values(
                call, name, argument, "argument" if name in call.positional else "keyword"
            )
        ]
        shown = FlowCall(
            module=call.name,
            call=call.index,
            module_class=type(call.module).__name__,
            depth=depth,
            caller=call.caller,
            arguments=tuple(arguments),
        )
        self.calls.append(shown)
        self._shown[call] = shown
        self._given[call] = _marks(call)

    def _end(self, call: Call) -> None:
        shown, given = self._shown.pop(call), self._given.pop(call)
        changed = {path for path, mark in _marks(call).items() if given.get(path) != mark}
        written = [
            value
            for name, argument in call.arguments.items()
            for value in self._values(call, name, argument, "written")
            if value.path in changed
        ]
        shown.outputs = (*self._values(call, "output", call.output, "output"), *written)
        shown.ended = True

    def _values(self, call: Call, path: str, value: object, kind: str) -> Iterator[FlowValue]:
        for leaf_path, leaf in leaves(value, path):
            if isinstance(leaf, torch.Tensor | Fingerprint):
                kept = None
                if call.name in self.focus and isinstance(leaf, torch.Tensor):
                    kept = leaf.detach().clone()
                yield FlowValue(
                    leaf_path,
                    kind,
                    tuple(leaf.shape),
                    leaf.dtype,
                    Moments.of(leaf),
                    values=kept,
                )
            else:
                is_text = isinstance(leaf, str | bytes)
                yield FlowValue(leaf_path, kind, text=repr(leaf) if is_text else str(leaf))


def _marks(call: Call) -> dict[str, tuple[int, int | None]]:
    """The tensors in caches, lists and dicts among a call's arguments, as they are now."""
    return {
        path: (id(leaf), version_of(leaf) if isinstance(leaf, torch.Tensor) else 0)
        for name, argument in call.arguments.items()
        if is_stateful(argument)
        for path, leaf in leaves(argument, name)
        if isinstance(leaf, torch.Tensor | Fingerprint)
    }


def _chosen(globs: str | Sequence[str], names: Sequence[str]) -> frozenset[str]:
    patterns = [globs] if isinstance(globs, str) else globs
    found = (name for glob in patterns for name in matching(glob, names, "the model has"))
    return frozenset(found)
