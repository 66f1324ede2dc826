"""record(): one model and its inputs in, a trace on disk out.

>>> tracer.record(model, {"input_ids": ids}, "run.trace")
Recording(path='run.trace', calls=58, tensors=141, size=1482752)
>>> tracer.compare(tracer.open_trace("run.trace"), other_model)

The header of a trace holds what identifies it and how to make it again:

    trace_model, torch, transformers, safetensors, python, platform: versions
    name, model, dtype, device, training: the model
    modules: names, classes, places of definition, checksums of own parameters, quantization points
    checksum: of all parameters
    files: of the source lines; an event names further ones, whose numbers go on from here
    values, include: what was recorded
    seed, command, notes: how

Its events are "inputs" (args and kwargs), and a "start" and an "end" for each call: what was
passed, by whom and from where; what was returned, and what was left in arguments that changed. A
value that is in several places is stored once. Values are those of the reference's form, where a
module says how to read its own back. Where a call's mask says which positions are padding,
fingerprints are taken of the others as well, and the mask is kept whole.
"""

import hashlib
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trace_model.annotations import checked
from tracer.adapters.opening import Model, as_model
from tracer.choices import VALUES
from tracer.environment import environment
from tracer.errors import ModelRunError, UsageError
from tracer.execution.forms import is_formless
from tracer.execution.hooks import Answer, Call, Location, Phase, definition
from tracer.execution.inputs import Inputs
from tracer.execution.offload import execution_device, own_parameters
from tracer.execution.session import matching, named_modules, run_alone, working_dtype
from tracer.execution.torch_internals import can_open_fused, parameters_of
from tracer.measurement.arguments import read_argument, read_output
from tracer.measurement.padding import Paddings, padding_of, part_name, visible_part
from tracer.tensors.fingerprints import Fingerprint, Shown
from tracer.tensors.leaves import dtype_name, tensor_leaves, version_of
from tracer.traces.dataflow import points_of, span
from tracer.traces.encoding import encode
from tracer.traces.files import TraceWriter, check_new
from tracer.traces.recorded import CONTAINERS, Checksum
from tracer.traces.shards import can_store


@dataclass(frozen=True)
class Recording:
    """What `record` has written.

    Attributes:
        path: the folder.
        calls: how many calls.
        tensors: how many tensors or fingerprints, each once.
        size: their bytes.
    """

    path: str
    calls: int
    tensors: int
    size: int


@checked(UsageError, but=("inputs",))
@can_open_fused
def record(
    model: Model,
    inputs: Inputs,
    path: str | Path,
    *,
    include: str | Sequence[str] = "*",
    values: str = VALUES[0],
    inside: bool = False,
    name: str | None = None,
    seed: int | None = None,
    command: str | None = None,
    notes: Sequence[str] = (),
) -> Recording:
    """Runs a model once and writes what goes in and out of its modules.

    Each event is on disk before the model goes on, so that memory holds one tensor at a time beside
    the model, and a trace whose recording was ended at any moment can be read up to there. Neither
    the model, nor the inputs, nor the random state are changed.

    Args:
        inputs: keyword arguments as a dict, positional ones as a tuple, or a single tensor.
        path: the folder to make.
        include: globs of the names of the modules to record.
        values: "all": arguments and outputs; "outputs": outputs alone; "fingerprints": 176 bytes in
            the place of each, from which differences are estimated, and of
            quantization points with channels the span of these. The inputs are always kept whole.
        inside: opens the layers that PyTorch computes in one piece (the fused path of
            `nn.TransformerEncoderLayer`), whose numbers are then those of the path without it.
        name, seed, command, notes: how the model and its inputs came about, for the header.

    Raises:
        StorageError: something is at the path already, or nothing can be written there.
        UsageError: `values` is none of them, a glob matches no module, or the model has no values.
        InputError: the model does not accept the inputs.
        ModelRunError: the model raised; what it did before is in the trace.
    """
    if values not in VALUES:
        raise UsageError(f"values {values!r}: expected one of {', '.join(VALUES)}")
    check_new(path)
    model = as_model(model)
    modules = named_modules(model)
    globs = [include] if isinstance(include, str) else list(include)
    chosen = {found for glob in globs for found in matching(glob, list(modules), "the model has")}
    checksums = {
        id(parameters_of(module)[own]): Checksum.of(parameter)
        for module in model.modules()
        for own, parameter in own_parameters(module)
    }
    files: dict[str, int] = {}
    described = {
        own: _described(module, own in chosen, checksums, files) for own, module in modules.items()
    }
    if values == "fingerprints":  # which are to be small
        for module in described.values():
            module.pop("formless", None)  # counterparts are told by values
            if "points" in module:
                module["points"] = _without_channels(module["points"])
    header = {
        **environment(),
        "safetensors": metadata.version("safetensors"),
        "name": name,
        "model": type(model).__name__,
        "dtype": dtype_name(working_dtype(model)) or None,
        "device": str(execution_device(model)),
        "training": model.training,
        "checksum": _checksum(list(checksums.values())),
        "values": values,
        "include": globs,
        "seed": seed,
        "command": command,
        "notes": list(notes),
        "files": list(files),
        "modules": described,
    }
    with TraceWriter(path, header) as writer:
        events = _Events(writer, frozenset(chosen), values, files)
        events.inputs(inputs)
        try:
            run_alone(model, inputs, events.note)
        except ModelRunError as error:
            text = f"{error}; {path} holds what it did before"
            raise ModelRunError(text) from error.__cause__
    return Recording(str(path), events.calls, writer.tensors, writer.size)


@dataclass(eq=False)
class _Events:
    """Writes an event for each start and end of a call.

    Attributes:
        files: the numbers of source files that were named so far.
        calls: how many began.
    """

    writer: TraceWriter
    chosen: frozenset[str]
    values: str
    files: dict[str, int]
    calls: int = 0
    _paddings: Paddings = field(default_factory=Paddings)
    _numbers: dict[Call, int] = field(default_factory=dict)
    _given: dict[Call, object] = field(default_factory=dict)
    _stored: dict[int, "_Stored"] = field(default_factory=dict)

    def inputs(self, inputs: Inputs) -> None:
        """Writes what the model is run on."""
        args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (inputs, {})
        args = args if isinstance(args, tuple) else (args,)
        value = encode((args, dict(kwargs)), self._whole)
        self.writer.write({"event": "inputs", "value": value})

    def note(self, call: Call, phase: Phase) -> Answer:
        """A listener of a `Recorder`."""
        if call.name in self.chosen:
            if phase is Phase.START:
                self._start(call)
            else:
                self._end(call)
        return None

    def _start(self, call: Call) -> None:
        number = self._numbers[call] = self.calls
        self.calls += 1
        self._paddings.note(_around(call), padding_of(call))
        parent = call.parent
        while parent is not None and parent not in self._numbers:
            parent = parent.parent
        known = len(self.files)
        event = {
            "event": "start",
            "call": number,
            "parent": None if parent is None else self._numbers[parent],
            "module": call.name,
            "index": call.index,
            "positional": call.positional,
            "caller": _place(call.caller, self.files),
            "arguments": self._arguments(call),
        }
        if len(self.files) > known:
            event["files"] = list(self.files)[known:]
        self.writer.write(event)
        self._given[call] = _marks(call)

    def _end(self, call: Call) -> None:
        event = {"event": "end", "call": self._numbers.pop(call)}
        if self._given.pop(call) != _marks(call):
            event["left"] = self._arguments(call, written=True)
        event["output"] = encode(read_output("model", call), partial(self._store, call))
        self.writer.write(event)

    def _arguments(self, call: Call, *, written: bool = False) -> object:
        arguments = {
            name: read_argument("model", call, name, value)
            for name, value in call.arguments.items()
        }
        is_left_out = self.values == "outputs" and not written
        return encode(arguments, _not_asked if is_left_out else partial(self._store, call))

    def _store(self, call: Call, tensor: torch.Tensor) -> dict[str, object]:
        """Writes a tensor, unless it was written already and has not changed since."""
        if not can_store(tensor.dtype):
            return {"left_out": f"{dtype_name(tensor.dtype)} has no place in a trace"}
        known, version = self._stored.get(id(tensor)), version_of(tensor)
        if known is not None and known.tensor() is tensor and known.version == version is not None:
            return known.stands
        is_whole = self.values != "fingerprints" or self._says_padding(call, tensor)
        stands = self._whole(tensor if is_whole else self._fingerprint(call, tensor))
        key = id(tensor)
        forget = lambda _: self._stored.pop(key, None)  # noqa: E731
        self._stored[key] = _Stored(weakref.ref(tensor, forget), version, stands)
        return stands

    def _says_padding(self, call: Call, tensor: torch.Tensor) -> bool:
        return tensor is call.arguments.get("attention_mask") and padding_of(call) is not None

    def _fingerprint(self, call: Call, tensor: torch.Tensor) -> Fingerprint:
        """That of a tensor, and of what of it is not padding."""
        shown = {
            part_name(*place): Fingerprint.of(visible_part(tensor, *place))
            for place in self._paddings.parts(_around(call), tuple(tensor.shape))
        }
        parts = tuple(Shown(where, part) for where, part in shown.items())
        return replace(Fingerprint.of(tensor), shown=parts)

    def _whole(self, tensor: torch.Tensor | Fingerprint) -> dict[str, object]:
        if isinstance(tensor, torch.Tensor) and tensor.is_meta:
            raise UsageError(
                "a tensor on the meta device has no values to record; load the model's weights "
                "onto a real device first"
            )
        return {"tensor": self.writer.add(tensor)}


@dataclass(frozen=True, slots=True)
class _Stored:
    tensor: "weakref.ref[torch.Tensor]"
    version: int | None
    stands: dict[str, object]


def _not_asked(tensor: torch.Tensor) -> dict[str, object]:
    return {"left_out": "arguments were not recorded"}


def _marks(call: Call) -> list[tuple[str, int, int | None]]:
    """The tensors among a call's arguments: which they are, and how often they were edited."""
    tensors = tensor_leaves(call.arguments, "")
    return [(path, id(tensor), version_of(tensor)) for path, tensor in tensors]


def _around(call: Call) -> list[Call]:
    """A call and those around it."""
    calls = [call]
    while (parent := calls[-1].parent) is not None:
        calls.append(parent)
    return calls


def _described(
    module: nn.Module,
    is_recorded: bool,
    checksums: Mapping[int, Checksum | None],
    files: dict[str, int],
) -> dict[str, Any]:
    """What the header says of a module, without what there is none of."""
    own = {name: checksums[id(p)] for name, p in module.named_parameters(recurse=False)}
    entries = {
        "class": type(module).__name__,
        "container": next((n for n, kind in CONTAINERS.items() if isinstance(module, kind)), None),
        "recorded": is_recorded,
        "formless": is_formless(module) or None,
        "definition": _place(definition(module), files),
        "parameters": {n: (c.dtype, c.shape, c.digest) for n, c in own.items() if c is not None},
        "points": points_of(module),
    }
    return {key: value for key, value in entries.items() if value not in (None, {})}


def _without_channels(points: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, object]]:
    """Quantization points with the span of what there is one of for each channel."""
    return {
        name: {key: span(fact) if isinstance(fact, list) else fact for key, fact in facts.items()}
        for name, facts in points.items()
    }


def _checksum(checksums: Sequence[Checksum | None]) -> str:
    """One checksum of all parameters, whatever their names."""
    joined = " ".join("none" if c is None else f"{c.dtype} {c.digest}" for c in checksums)
    return hashlib.blake2b(joined.encode(), digest_size=8).hexdigest()


def _place(location: Location | None, files: dict[str, int]) -> tuple[int, int, str] | None:
    """A line of source, its file by number."""
    if location is None:
        return None
    return files.setdefault(location.file, len(files)), location.line, location.function
