"""A file with a graph becomes a model: by its suffix.

>>> model = tracer.open_graph("model.pt2")
>>> comparison = tracer.compare(original, model, inputs)
"""

import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import fx, nn
from torch.export import ExportedProgram, UnflattenedModule
from torch.export.passes import move_to_device_pass

from trace_model.annotations import checked
from tracer.adapters.graph import GraphModel
from tracer.errors import ModelLoadError, UsageError
from tracer.execution.limits import user_path, what_it_is
from tracer.execution.torch_internals import load_program
from tracer.text import brief

Model = nn.Module | ExportedProgram
"""What can be a side: a module, or a program whose graph is opened."""


@checked(UsageError)
def open_graph(path: str | Path, *, device: str | torch.device | None = None) -> GraphModel:
    """Opens a file with an exported graph as a model, to be given wherever a model is.

    Its modules have the names and classes of the model that was exported, and are called where the
    graph has operations of them; parameters and buffers are where they were.

    Args:
        path: a `.pt2` file of `torch.export.save`; to read it is to trust it, as with every file
            that is unpickled. Or an `.onnx` file, which ONNX Runtime
            computes, or a `.circle`, which onert does, or the reference runtime of tico.
        device: where it is to compute; as it was exported if None.

    Raises:
        ModelLoadError: there is no such file; it has another suffix; or it is damaged, of a newer
            format, or has operators that are not known here.
    """
    file = user_path(path)
    read = _READERS.get(file.suffix)
    if read is None:
        raise ModelLoadError(
            f"{path} has the suffix {file.suffix!r}: expected a graph, {' or '.join(_READERS)}"
        )
    if found := what_it_is(file):
        what = f"there is no file {path}" if found == "nothing" else f"{path} is {found}"
        raise ModelLoadError(what)
    return read(file, None if device is None else torch.device(device))


def as_model(model: Model) -> nn.Module:
    """A program or a graph as a model that runs under hooks; what is one already, as it is."""
    if isinstance(model, ExportedProgram):
        from tracer.adapters.exported import from_program

        return from_program(model)
    if isinstance(model, UnflattenedModule) or (
        isinstance(model, fx.GraphModule) and _is_flat(model)
    ):
        from tracer.adapters.exported import from_module

        return from_module(model)
    return model


def as_models(reference: Model, candidate: Model) -> tuple[nn.Module, nn.Module]:
    """Both sides as `as_model` has them; a graph that says nothing of modules has the other's."""
    one, two = as_model(reference), as_model(candidate)
    if isinstance(one, GraphModel) and not one.has_modules:
        one = one.named_after(two)
    if isinstance(two, GraphModel) and not two.has_modules:
        two = two.named_after(one)
    return one, two


def _is_flat(module: fx.GraphModule) -> bool:
    """Whether a graph of operators says of which modules they are."""
    nodes = list(module.graph.nodes)
    whole = any(n.op == "call_module" and str(n.target) != "_guards_fn" for n in nodes)
    return not whole and any("nn_module_stack" in node.meta for node in nodes)


def _read_onnx(file: Path, device: torch.device | None) -> GraphModel:
    from tracer.adapters.onnx_model import read_onnx

    return read_onnx(file, device)


def _read_circle(file: Path, device: torch.device | None) -> GraphModel:
    from tracer.adapters.circle_model import open_circle

    return open_circle(file, device)


def _read_pt2(file: Path, device: torch.device | None) -> GraphModel:
    from tracer.adapters.exported import from_program

    if not zipfile.is_zipfile(file):
        raise ModelLoadError(
            f"{file} is no archive of torch.export.save: expected a .pt2 file, and it may be "
            f"incomplete ({file.stat().st_size:,} bytes)"
        )
    try:
        with zipfile.ZipFile(file) as archive:
            texts = [n for n in archive.namelist() if n.endswith("/models/model.json")]
            text = archive.read(texts[0]) if texts else b""
            if not text and "version" not in archive.namelist():
                raise ModelLoadError(
                    f"{file} is an archive of something else: expected one of torch.export.save, "
                    "with models/model.json in it"
                )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = load_program(file, text)
            if device is not None and device != torch.device("cpu"):
                program = move_to_device_pass(program, device)
    except ModelLoadError:
        raise
    # torch raises whatever its many parts raise; to the caller it is one error.
    except Exception as error:
        raise ModelLoadError(
            f"{file} cannot be opened by torch {torch.__version__} "
            f"({type(error).__name__}: {brief(error)})"
        ) from error
    return from_program(program)


# Each imports what it needs: a comparison of other models needs none of them.
_READERS: Mapping[str, Callable[[Path, torch.device | None], GraphModel]] = {
    ".pt2": _read_pt2,
    ".onnx": _read_onnx,
    ".circle": _read_circle,
}
