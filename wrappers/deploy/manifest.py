"""Exports a model piece by piece, with a manifest that says how the pieces belong together.

    export_pieces(quantized, "export", suffix=".pt2", decode=quantized_decode)

    export/
      manifest.json             pieces in the order in which they run, with what they take and give
      prefill.embedding.pt2
      prefill.layer.0.pt2 ...
      decode.head.pt2

In `manifest.json` each value has a name, a shape and a dtype, and where the graph quantises it as
it comes in or goes out, the scale and zero point with which it does: an accelerator's integers. A
piece takes what an earlier one of its stage, or of the vision stage, gives under that name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from trace_model.annotations import checked
from wrappers.deploy.export import write_graph
from wrappers.deploy.folders import sha256_of
from wrappers.deploy.pieces import Piece, text_pieces
from wrappers.deploy.steps import EXAMPLE_TOKENS
from wrappers.deploy.visual_pieces import fusion_pieces, has_images, vision_pieces
from wrappers.errors import ArgumentError, ExportError

MANIFEST = "manifest.json"

Progress = Callable[[Sequence[Any]], Iterable[Any]]

_FAKE_QUANTIZE = "fake_quantize"
# What moves numbers and does not change them.
_MOVES = {
    *("view", "reshape", "_unsafe_view", "slice", "select", "unsqueeze", "squeeze", "transpose"),
    *("permute", "expand", "contiguous", "clone", "alias", "detach", "flatten", "unflatten", "t"),
}


@checked(ArgumentError)
def export_pieces(
    model: nn.Module,
    folder: str | PathLike[str],
    *,
    suffix: str = ".pt2",
    decode: nn.Module | None = None,
    tokens: int | None = None,
    past: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Writes embedding, layers and head of a model, of a Qwen3-VL its vision model too.

    Args:
        model: wrapped or quantised for prefill, or for decode alone.
        folder: is there, and takes a file for each piece and `manifest.json`.
        suffix: ".pt2" or ".circle", see `wrappers.export`.
        decode: the same model in the variant decode, for the stage "decode".
        tokens: of the prefill.
        past: positions before the token of a decode step.
        progress: shows how far it is: a function that passes a list on, such as `tqdm`.

    Returns:
        The files.

    Raises:
        ExportError: as `wrappers.export`; there is no text decoder or head; or the grids of a
            vision model are not fixed.
    """
    target = Path(folder).expanduser()
    found = pieces_of(model, decode, tokens=tokens, past=past)
    described, files = [], []
    for piece in found if progress is None else progress(found):
        file = target / f"{piece.name}{suffix}"
        program = write_graph(piece.graph, piece.example, file)
        described.append(_described(piece, file, program))
        files.append(file)
    made = {value["name"] for each in described for value in each["outputs"]}
    given = {value["name"] for each in described for value in each["inputs"]} - made
    manifest = {"format": 1, "inputs": sorted(given), "pieces": described}
    (target / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return [*files, target / MANIFEST]


def pieces_of(
    model: nn.Module,
    decode: nn.Module | None = None,
    *,
    tokens: int | None = None,
    past: int | None = None,
) -> list[Piece]:
    """The pieces in the order in which they run; see `export_pieces`."""
    variant = vars(model)["ptq_config"].variant
    if variant == "decode":
        if decode is not None:
            raise ExportError("found two decode models; give the prefill model first")
        return text_pieces(model, "decode", past=past)
    found: list[Piece] = []
    if has_images(model):
        found += vision_pieces(model)
        fusion, added = fusion_pieces(model, tokens or EXAMPLE_TOKENS)
        found += text_pieces(model, "prefill", tokens=tokens, added=added, fused=fusion)
    else:
        found += text_pieces(model, "prefill", tokens=tokens)
    return found + ([] if decode is None else text_pieces(decode, "decode", past=past))


def _described(piece: Piece, file: Path, program: ExportedProgram) -> dict[str, Any]:
    with torch.no_grad():
        made = piece.graph(*piece.example)
    outputs = made if isinstance(made, tuple) else (made,)
    taken, given = _quantised_values(program)
    return {
        "file": file.name,
        "sha256": sha256_of(file),
        "stage": piece.stage,
        "module": piece.module,
        "inputs": _values(piece.inputs, piece.example, taken),
        "outputs": _values(piece.outputs, outputs, given),
    }


def _values(
    names: Sequence[str], tensors: Sequence[Tensor], qparams: Sequence[dict[str, Any] | None]
) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "qparams": known,
        }
        for name, tensor, known in zip(names, tensors, qparams, strict=True)
    ]


def _quantised_values(
    program: ExportedProgram,
) -> tuple[list[dict[str, Any] | None], list[dict[str, Any] | None]]:
    """How a graph quantises each of its inputs and outputs; None where it does not."""
    nodes = {node.name: node for node in program.graph.nodes}
    signature = program.graph_signature
    taken = [_quantised_on(nodes[name], program) for name in signature.user_inputs]
    given = [_quantised_by(nodes[name], program) for name in signature.user_outputs]
    return taken, given


def _quantised_on(node: Node, program: ExportedProgram) -> dict[str, Any] | None:
    """With what the first fake quantisation after a value is done."""
    for user in node.users:
        if _name(user).startswith(_FAKE_QUANTIZE):
            return _qparams(user, program)
        if _name(user) in _MOVES and (found := _quantised_on(user, program)):
            return found
    return None


def _quantised_by(node: Node, program: ExportedProgram) -> dict[str, Any] | None:
    """With what a value has been quantised before it goes out."""
    if _name(node).startswith(_FAKE_QUANTIZE):
        return _qparams(node, program)
    sources: Any = node.args[0] if _name(node) in (*_MOVES, "cat", "stack") else ()
    sources = [sources] if isinstance(sources, Node) else sources
    # Heads are quantised one by one and joined: all with the same parameters.
    first, *others = [_quantised_by(each, program) for each in sources] or [None]
    return first if all(other == first for other in others) else None


def _name(node: Node) -> str:
    target = node.target
    name = getattr(target, "__name__", str(target)) if node.op == "call_function" else ""
    return name.partition(".")[0]


def _qparams(node: Node, program: ExportedProgram) -> dict[str, Any]:
    """Scale, zero point and range of a fake quantisation."""
    per_channel = "per_channel" in _name(node)
    scale, zero_point = (_constant(value, program) for value in node.args[1:3])
    axis = node.args[3] if per_channel else None
    low, high = node.args[-2:]
    return {
        "scale": scale, "zero_point": zero_point, "axis": axis, "min": low, "max": high,
    }  # fmt: skip


def _constant(value: Any, program: ExportedProgram) -> Any:
    if not isinstance(value, Node):
        return value
    signature = program.graph_signature
    places = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    name = places.get(value.name, value.name)
    held = {**program.state_dict, **program.constants}.get(name)
    return held.tolist() if isinstance(held, Tensor) else None
