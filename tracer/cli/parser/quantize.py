"""`trace_model quantize`: its options."""

from dataclasses import dataclass
from pathlib import Path

from tracer import choices
from tracer.cli import types
from tracer.cli.requests import MODEL, option, switch
from tracer.cli.streams import DEFAULT, Output
from tracer.errors import UsageError
from tracer.execution.limits import user_path
from tracer.models.locate import locate, locate_processor

_FORMATS = ("pt2", "circle")


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest:
    """`trace_model quantize`."""

    output: Output = DEFAULT
    model: str = option(MODEL, default="", names=("model",), metavar="MODEL")
    config: Path | None = option(
        "the recipe: stages, calibration data, overrides, evaluation and export (documented in "
        "docs/guides/recipes.md)",
        type=types.file,
        metavar="FILE.toml",
        required=True,
    )
    out: str = option("the folder to make", default="", required=True, metavar="FOLDER")
    force: bool = switch(
        "replace a saved model that is there already, once the new one is complete; nothing but a "
        "saved model is ever replaced"
    )
    export: str | None = option(
        "graphs in this format, whatever the recipe says: pt2 by torch.export, circle by tico "
        "(extra export)",
        choices=_FORMATS,
    )
    per_layer: bool = switch(
        "a graph for embedding, each layer and the head (of a Qwen3-VL for its vision model too), "
        "with a manifest"
    )
    dtype: str | None = option(
        f"of the weights; auto: as stored (default: {choices.DEFAULT_DTYPE})",
        choices=("auto", *choices.DTYPES),
        group="the model",
    )
    device: str | None = option(f"cpu, cuda, cuda:1, mps, ... (default: {choices.DEFAULT_DEVICE})")
    cache: Path | None = option(
        "where models of the hub are kept (default: what HF_HUB_CACHE says)",
        type=types.folder,
        metavar="FOLDER",
    )
    processor: str | None = option(
        "what makes tokens and patches of photos (default: the model's own); tiny-qwen3-vl, which "
        "has none, is built with its vocabulary",
        metavar="FOLDER|HUB_ID",
    )
    trust_remote_code: bool = switch("run Python code that comes with a checkpoint (default: off)")


def check_quantize(request: QuantizeRequest) -> None:
    """Checks what can be checked before PyTorch is loaded.

    Raises:
        UsageError: options that do not go together.
        ModelLoadError: names that lead nowhere.
    """
    locate(request.model)
    if request.processor is not None:
        locate_processor(request.processor)
    if not user_path(request.out).absolute().parent.is_dir():
        parent = user_path(request.out).absolute().parent
        raise UsageError(f"--out {request.out}: directory {parent} does not exist; create it first")
