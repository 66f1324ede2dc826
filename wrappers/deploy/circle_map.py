"""Which modules the operations of a `.circle` belong to: a map that is written beside the file.

Tensors in a `.circle` are named after operations, and not after modules. The map says, by those
names, in which modules and at which lines each operation was written, which parameters the
constants are, and what the model's arguments are called; and the checksum of the file that it is
of.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

MAP_SUFFIX = ".map.json"
"""Follows the name of a file."""

_VERSION = 1
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


def map_of(program: ExportedProgram) -> dict[str, Any]:
    """What is known of a program before tico turns it into something else."""
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    specs = program.graph_signature.input_specs
    given = [spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT]
    return {
        "version": _VERSION,
        "inputs": given,
        "weights": {
            spec.arg.name: spec.target for spec in specs if spec.kind is not InputKind.USER_INPUT
        },
        "operations": {
            node.name: {"modules": _modules(node.meta), "lines": _lines(node.meta)}
            for node in nodes
        },
    }


def written(found: Mapping[str, Any], circle: bytes) -> str:
    """A map as it stands beside a file."""
    return json.dumps({**found, "checksum": hashlib.sha256(circle).hexdigest()})


def _modules(meta: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key, name and class of each module around an operation, the outermost first."""
    found = []
    for key, (name, kind) in (meta.get("nn_module_stack") or {}).items():
        name = name.partition("@")[0]
        class_name = kind if isinstance(kind, str) else kind.__qualname__
        if name:
            found.append((str(key), name, class_name.rpartition(".")[2]))
    return found


def _lines(meta: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """File, line and function of each frame, the outermost first."""
    frames = _FRAME.findall(meta.get("stack_trace") or "")
    return [(file, int(line), function) for file, line, function in frames]
