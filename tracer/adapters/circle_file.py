"""Reads `.circle` files, and the map of modules that `wrappers.export` writes beside them.

    attention.circle            tensors named after operations: `QuantLinear::linear_1`
    attention.circle.map.json   for each of these names the modules around it and the line

A map is of one file, whose checksum it holds. Without one, or with that of another file, modules
are found by the weights that they hold.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tracer.adapters.calls import Module
from tracer.adapters.lines import Frame
from tracer.errors import ModelLoadError
from tracer.execution.limits import read_json
from tracer.text import brief

if TYPE_CHECKING:
    from tico.circle.runtime.program import CircleProgram

MAP_SUFFIX = ".map.json"
_VERSION = 1


@dataclass(frozen=True)
class CircleMap:
    """What a map says.

    Attributes:
        stacks: the modules around an operation, by the name of its first output.
        frames: the frames of the source that it was written in.
        inputs: the names of the model's arguments.
        weights: names of parameters and buffers by those of constants.
    """

    stacks: Mapping[str, tuple[Module, ...]] = field(default_factory=dict)
    frames: Mapping[str, tuple[Frame, ...]] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    weights: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class CircleFile:
    """What is read of a file.

    Attributes:
        program: its tensors and operators, as tico reads them.
        map: what is known of its modules.
        notes: what its user should know, in sentences.
    """

    path: Path
    program: CircleProgram
    map: CircleMap
    notes: tuple[str, ...] = ()

    @property
    def is_quantised(self) -> bool:
        """Whether any tensor is an integer with a scale."""
        return any(tensor.is_quantized_integer for tensor in self.program.tensors)

    def constant(self, index: int) -> torch.Tensor:
        """A constant, as the numbers that it stands for."""
        from tico.circle.runtime.quantization import dequantize_array

        tensor = self.program.tensors[index]
        assert tensor.constant is not None
        array = tensor.constant
        if tensor.is_quantized_integer:
            array = dequantize_array(array, tensor)
        return torch.from_numpy(array.copy())

    def name(self, index: int) -> str:
        """The name of a tensor, without the class that is put before it."""
        return own_name(self.program.tensors[index].name)


def own_name(name: str) -> str:
    """The name of a tensor, without the class that is put before it."""
    return name.rpartition("::")[2]


def read_circle(path: Path) -> CircleFile:
    """Reads a file, and the map beside it.

    Raises:
        ModelLoadError: it is none, is damaged, or has types that cannot be read; or the extra
            `export` is missing.
    """
    if importlib.util.find_spec("tico") is None:
        raise ModelLoadError(
            f"{path} is opened with tico, which is not installed: pip install 'tico>=0.3'"
        )
    from tico.circle.runtime.program import CircleProgram

    data = path.read_bytes()
    if data[4:8] != b"CIR0":
        raise ModelLoadError(f"{path} is no Circle file: expected one that begins with CIR0")
    try:
        program = CircleProgram.from_bytes(data)
    except Exception as error:
        raise ModelLoadError(
            f"{path} is damaged, or has what tico cannot read ({len(data):,} bytes): {brief(error)}"
        ) from error
    if program.subgraph_count != 1:
        raise ModelLoadError(
            f"{path} has {program.subgraph_count} graphs, and operators that run some of them: "
            "expected one graph"
        )
    beside = path.with_name(path.name + MAP_SUFFIX)
    if not beside.is_file():
        note = (
            f"there is no {beside.name} beside {path.name}: modules are found by their weights "
            "(wrappers.export writes it)"
        )
        return CircleFile(path, program, CircleMap(), (note,))
    found = _read_map(beside)
    if found.get("checksum") != hashlib.sha256(data).hexdigest():
        note = (
            f"{beside.name} is of another file than {path.name} is now (its checksum differs): "
            "modules are found by their weights"
        )
        return CircleFile(path, program, CircleMap(), (note,))
    return CircleFile(path, program, _map_of(found))


def _read_map(path: Path) -> Mapping[str, Any]:
    try:
        found = read_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} is no map of a Circle file: {error}") from error
    if not isinstance(found, dict) or found.get("version") != _VERSION:
        raise ModelLoadError(f"{path} is no map of a Circle file of version {_VERSION}")
    return found


def _map_of(found: Mapping[str, Any]) -> CircleMap:
    try:
        return CircleMap(
            stacks={
                name: tuple(Module(*module) for module in each["modules"])
                for name, each in found["operations"].items()
            },
            frames={
                name: tuple(Frame(*frame) for frame in each["lines"])
                for name, each in found["operations"].items()
            },
            inputs=tuple(found["inputs"]),
            weights=dict(found["weights"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(
            f"the map beside a Circle file lacks {error}: export the file again"
        ) from error
