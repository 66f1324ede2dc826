"""`trace_model export`: its options, and which of them go together."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tracer import choices
from tracer.cli import types
from tracer.cli.requests import ModelRequest, option
from tracer.errors import UsageError
from tracer.execution.limits import user_path
from tracer.models.locate import is_saved

_FORMATS = ("pt2", "circle")
_PARTS = ("model", "layer", "attention", "mlp")


@dataclass(frozen=True, kw_only=True)
class ExportRequest(ModelRequest):
    """`trace_model export`."""

    candidate: str = option(
        "what is exported: the model quantised, or wrapped with quantisation off; or the folder "
        "of a saved quantised model (default: quantized)",
        default="quantized",
        metavar="|".join((*choices.NEED_WRAPPERS, "FOLDER")),
    )
    out: str = option("the file to write", default="", required=True, metavar="FILE")
    to: str | None = option(
        "the format: pt2 by torch.export, circle by tico (extra export) (default: what the suffix "
        "of --out says)",
        choices=_FORMATS,
    )
    part: str = option(
        "the whole model, a decoder layer, or its attention or MLP (default: model)",
        default=_PARTS[0],
        choices=_PARTS,
    )
    layer: int = option(
        "which decoder layer, from 0 (default: 0)", default=0, type=types.count(0), metavar="N"
    )
    tokens: int | None = option(
        "of the graph, whose shapes are static (default: 32; 1 with --variant decode)",
        type=types.count(1),
        metavar="N",
    )
    past: int | None = option(
        "positions of the cache before them (default: none; 31 with --variant decode)",
        type=types.count(0),
        metavar="N",
    )

    @property
    def file(self) -> Path:
        """Where it is written."""
        return user_path(self.out)


def check_export(request: ExportRequest) -> None:
    """Checks what can be checked before PyTorch is loaded.

    Raises:
        UsageError: options that do not go together, a file that cannot be written, or a format
            whose converter is not installed.
    """
    if request.candidate not in choices.NEED_WRAPPERS and not is_saved(request.candidate):
        raise UsageError(
            f"--candidate {request.candidate}: expected {' or '.join(choices.NEED_WRAPPERS)}, or "
            "the folder of a saved quantised model (`trace_model quantize`)"
        )
    suffix = request.file.suffix.removeprefix(".")
    if suffix not in _FORMATS or request.to not in (None, suffix):
        expected = request.to or " or .".join(_FORMATS)
        raise UsageError(f"--out {request.out}: expected a file that ends in .{expected}")
    if not request.file.parent.is_dir():
        raise UsageError(
            f"--out {request.out}: directory {request.file.parent} does not exist; create it first"
        )
    if suffix == "circle" and find_spec("tico") is None:
        raise UsageError(
            "a .circle is written by tico, which is not installed: pip install 'tico>=0.3', or "
            "write a .pt2"
        )
    if request.steps is not None:
        raise UsageError("--steps generates, and one graph is exported: choose --variant instead")
    if request.part == "model" and request.layer:
        raise UsageError("--layer goes with --part layer, attention or mlp: the model has them all")
    if request.part == "mlp" and request.past:
        raise UsageError("--past goes with attention, and an MLP has none: leave it out")
