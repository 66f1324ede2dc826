"""A recorded trace instead of a model: the same modules, and the calls reported from disk.

    reference = tracer.open_trace("run.trace")
    tracer.compare(reference, model)

Its modules have the names and classes of the recorded model's, and hold nothing but checksums. In a
comparison its calls are reported as they came. Each value is read when its call is reported, and
freed after the last one that it is part of.
"""

import types
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trace_model.annotations import checked
from tracer.errors import StorageError, UsageError
from tracer.execution.hooks import Answer, Call, Location, Phase
from tracer.execution.offload import own_parameters
from tracer.execution.standin import StandIn
from tracer.tensors.fingerprints import checksum
from tracer.tensors.leaves import children, dtype_name
from tracer.traces.checking import EventCheck, check_header
from tracer.traces.encoding import Kept, decode, tensor_numbers
from tracer.traces.reading import TraceReader

# Modules that only hold others, by which repeated layers are known.
CONTAINERS: Mapping[str, type[nn.Module]] = {
    "ModuleList": nn.ModuleList,
    "Sequential": nn.Sequential,
}
# At least this share of a model's modules must have a counterpart in a recording of it.
_LEAST_IN_COMMON = 0.5


class RecordedModule(nn.Module):
    """Stands for a module of a recorded model.

    Attributes:
        checksums: of its own parameters by name: dtype, shape and checksum.
        points: what it reported of its quantization points; see `tracer.traces.dataflow`.
        is_formless: whether it was a part of a graph; see `tracer.execution.forms`.
    """

    checksums: Mapping[str, "Checksum"]
    points: Mapping[str, Mapping[str, object]]
    is_formless: bool = False


class Recorded(RecordedModule, StandIn):
    """A recorded model; see the module's docstring. `open_trace` makes it.

    Attributes:
        file: the trace.
        files: the source files that lines are in, by number.
    """

    file: TraceReader
    files: list[str]

    @property
    def header(self) -> dict[str, Any]:
        """What was recorded of the model and the machine; see `tracer.traces.recording`."""
        return self.file.header

    @property
    def name(self) -> str:
        """The trace's own."""
        return str(self.file.path)

    @property
    def label(self) -> str:
        return self.name

    @property
    def computes(self) -> bool:
        return False

    @property
    def values(self) -> str:
        """What was recorded, one of `tracer.choices.VALUES`."""
        return str(self.header["values"])

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype that the model worked in."""
        name = self.header["dtype"]
        return None if name is None else getattr(torch, name)

    @property
    def called(self) -> Counter[str]:
        """How often each module was called, as far as the recording goes."""
        starts = (event for event in self.file.events if event["event"] == "start")
        return Counter(event["module"] for event in starts)

    @property
    def unavailable(self) -> frozenset[str]:
        """The modules that were not to be recorded."""
        modules = self.header["modules"].items()
        return frozenset(name for name, info in modules if not info["recorded"])

    def inputs(self) -> tuple[tuple[object, ...], dict[str, object]] | None:
        """What the model was run on: positional and keyword arguments; None if that is missing."""
        for event in self.file.events:
            if event["event"] == "inputs":
                args, kwargs = decode(event["value"], self.file.tensor)
                return args, kwargs
        return None

    @property
    def inputs_are_whole(self) -> bool:
        """Objects such as caches are not in a trace."""
        recorded = self.inputs()
        return recorded is None or not _holds_objects(recorded)

    def why_not_run_again(self, side: str) -> str:
        if side == "candidate":
            return "the candidate is a recording, which cannot be run again"
        if self.values != "all":
            what = "fingerprints" if self.values == "fingerprints" else "outputs alone"
            return f"the recording of the reference holds {what}, which nothing can be run with"
        return ""

    def check_counterpart(self, other: nn.Module, paired: int, modules: tuple[int, int]) -> None:
        """Checks that this is a recording of the model that it is compared with.

        Raises:
            StorageError: most modules of both have no counterpart.
        """
        if paired < _LEAST_IN_COMMON * (min(modules) - 1):
            raise StorageError(
                f"{self.name} was recorded from another model: of the {modules[0]} modules of its "
                f"{type(self).__name__}, {paired} have a counterpart among the {modules[1]} of the "
                f"{type(other).__name__}; if only the names differ, give rename rules"
            )

    def event_source(self) -> "Playback":
        return Playback(self)


@dataclass(frozen=True)
class Checksum:
    """What is known of a recorded parameter's values."""

    dtype: str
    shape: tuple[int, ...]
    digest: str

    @classmethod
    def of(cls, parameter: torch.Tensor) -> "Checksum | None":
        """None for a parameter without values, on the meta device."""
        if parameter.is_meta:
            return None
        return cls(dtype_name(parameter.dtype), tuple(parameter.shape), checksum(parameter))


@checked(UsageError)
def open_trace(path: str | Path, *, salvage: bool = False) -> Recorded:
    """Opens a trace, to be compared with a model or with another trace.

    Args:
        salvage: of a damaged one uses what stands before the damage, as of a recording that was
            ended early; `file.damage` says what is missing.

    Raises:
        StorageError: there is none, it is of a newer format, or it is damaged.
    """
    file = TraceReader(path, salvage=salvage, checks=_checks)
    modules = file.header["modules"]
    files = list(file.header["files"])
    top = modules.get("", {"class": file.header["model"]})
    root: Recorded = _skeleton(top, files, is_root=True)
    root.file = file
    root.files = files + [new for event in file.events for new in event.get("files", ())]
    for name in modules:
        if name:
            _put(root, name.split("."), modules[name], files)
    root.train(file.header["training"])
    return root


def _checks(header: Mapping[str, Any]) -> EventCheck:
    check_header(header)
    return EventCheck(header)


def checksums_of(module: nn.Module) -> dict[str, Checksum]:
    """The checksums of a module's own parameters, recorded or computed."""
    if isinstance(module, RecordedModule):
        return dict(module.checksums)
    found = {name: Checksum.of(parameter) for name, parameter in own_parameters(module)}
    return {name: known for name, known in found.items() if known is not None}


@dataclass(eq=False)
class Playback:
    """Tells the calls of a recording again.

    Attributes:
        model: the recording.
        called: how often each module was called so far.
    """

    model: Recorded
    called: Counter[str] = field(default_factory=Counter)
    _alive: dict[int, object] = field(default_factory=dict)

    def note(self, call: Call, phase: Phase) -> Answer:
        """A recording does not run."""
        raise AssertionError("a recorded module computes nothing")

    def counts(self) -> Counter[str]:
        """How often each module was called so far."""
        return self.called

    def events(self) -> Iterator[tuple[Call, Phase]]:
        """Yields each start and end of a call, in the order in which they came."""
        modules = dict(self.model.named_modules())
        events = self.model.file.events
        last = {n: i for i, event in enumerate(events) for n in tensor_numbers(_values(event))}
        calls: dict[int, Call] = {}
        for place, event in enumerate(events):
            if event["event"] == "start":
                self.called[event["module"]] += 1
                call = calls[event["call"]] = Call(
                    name=event["module"],
                    index=event["index"],
                    module=modules[event["module"]],
                    arguments=self._decode(event["arguments"]),
                    positional=tuple(event["positional"]),
                    caller=_location(event["caller"], self.model.files),
                    parent=calls.get(event["parent"]),
                )
                yield call, Phase.START
            elif event["event"] == "end":
                call = calls.pop(event["call"])
                if "left" in event:
                    call.arguments = self._decode(event["left"])
                call.output = self._decode(event["output"])
                yield call, Phase.END
            for number in set(tensor_numbers(_values(event))):
                if last[number] == place:
                    self._alive.pop(number, None)

    def _decode(self, encoded: Any) -> Any:
        return decode(encoded, self._load)

    def _load(self, number: int) -> object:
        """A value, which is the same object from its first use to its last."""
        if number not in self._alive:
            self._alive[number] = self.model.file.tensor(number)
        return self._alive[number]


def _holds_objects(value: object) -> bool:
    if isinstance(value, Mapping | tuple | list):
        return any(_holds_objects(part) for _, part in children(value))
    return isinstance(value, Kept)


def _values(event: Mapping[str, Any]) -> list[Any]:
    return [event.get(key) for key in ("arguments", "left", "output")]


def _location(place: Sequence[Any] | None, files: Sequence[str]) -> Location | None:
    if place is None:
        return None
    file, line, function = place
    return Location(files[file], line, function)


def _put(root: nn.Module, path: list[str], info: Mapping[str, Any], files: Sequence[str]) -> None:
    *around, last = path
    parent = root
    for part in around:
        if part not in parent._modules:
            parent._modules[part] = _skeleton({"class": "Module"}, files)
        child = parent._modules[part]
        assert child is not None
        parent = child
    # Not by `add_module`, which takes no name that an attribute has.
    parent._modules[last] = _skeleton(info, files)


def _skeleton(info: Mapping[str, Any], files: Sequence[str], *, is_root: bool = False) -> Any:
    """A module of a class with the recorded class's name, and a forward defined where it was."""
    location = _location(info.get("definition"), files)
    module = _class_of(is_root, info["class"], info.get("container"), location)()
    module.checksums = {
        name: Checksum(dtype, tuple(shape), digest)
        for name, (dtype, shape, digest) in info.get("parameters", {}).items()
    }
    module.points = info.get("points", {})
    module.is_formless = info.get("formless", False)
    return module


@lru_cache(maxsize=1024)
def _class_of(
    is_root: bool, name: str, container: str | None, location: Location | None
) -> type[RecordedModule]:
    """One class for all modules of a recorded class, which may be one of PyTorch's containers."""
    base = Recorded if is_root else RecordedModule
    bases = (base,) if container is None else (base, CONTAINERS[container])
    return type(name, bases, {} if location is None else {"forward": _defined_at(location)})


def _defined_at(location: Location) -> types.FunctionType:
    """A function that says of itself to be defined there; it is never called."""

    def forward(self: nn.Module) -> None:
        raise AssertionError("a recorded module computes nothing")

    code = forward.__code__.replace(
        co_filename=location.file, co_firstlineno=location.line, co_qualname=location.function
    )
    return types.FunctionType(code, {})
