"""`trace_model compare MODEL --through FORMAT`: what becomes of a model on its way to a file.

    float -> wrapped     agrees
    wrapped -> quantised diverges (PEIR 0.012, limit 0.0627): of its own kind
    quantised -> exported agrees
    exported -> run      diverges (PEIR 0.41, limit 1e-05)
    The error comes in where the file is run: ...

Each stage is compared with the one before. Quantisation is expected to err, by up to some of its
own steps; and so is another runtime of what is quantised, where a value between two steps may be
rounded to the other, and a `.circle`, in which a tensor that is quantised for one user is so for
all.
"""

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import tracer
from tracer.choices import DEFAULT_ACTIVATION, DEFAULT_WEIGHT
from tracer.cli.exit_codes import ExitCode
from tracer.cli.requests import CompareRequest
from tracer.cli.resolve import load_model
from tracer.errors import ModelLoadError, UsageError
from tracer.reports.progress import status
from tracer.text import brief, figure

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from tracer.comparison.result import Comparison
    from tracer.models.loading import Loaded

# How many steps of an integer type a value of a whole model may be off: by quantisation itself, and
# by tensors that are quantised for each other in a file.
_QUANTISED, _WRITTEN = 32, 16


@dataclass(frozen=True)
class _Stage:
    """A stage on the way.

    Attributes:
        limit: the PEIR up to which it may be off; None for what rounding makes.
    """

    name: str
    model: "nn.Module | ExportedProgram"
    limit: float | None = None


def through(request: CompareRequest) -> ExitCode:
    """Compares each stage with the one before, and says which is the first that is wrong."""
    loaded = load_model(request)
    inputs = {**loaded.inputs}
    if "use_cache" in _parameters(loaded.model):
        inputs["use_cache"] = False
    for note in loaded.notes:
        print(note)
    before: _Stage | None = None
    with tempfile.TemporaryDirectory() as folder:
        for stage in _stages(request, loaded, inputs, Path(folder)):
            if before is not None:
                with status(f"comparing: {before.name} and {stage.name}"):
                    found = tracer.compare(before.model, stage.model, inputs, tolerance=stage.limit)
                print(f"{before.name} -> {stage.name}: {_in_short(found, stage)}")
                if not found.verdict.agrees:
                    print(f"The error comes in at the stage `{stage.name}`:")
                    print(tracer.explain(found.verdict))
                    return ExitCode.DIVERGES
            before = stage
    print("Every stage agrees with the one before, up to errors of its own kind.")
    return ExitCode.AGREES


def _stages(
    request: CompareRequest, loaded: "Loaded", inputs: dict[str, Any], folder: Path
) -> Iterator[_Stage]:
    """The stages in their order, each made when it is asked for."""
    from tracer import models
    from tracer.models.candidates import check_wrappers

    model = loaded.model
    yield _Stage("float", model)
    bits = None
    try:
        check_wrappers(model, loaded.name, "quantized")
    except UsageError as error:
        print(f"{brief(error)}: it is exported as it is")
    else:
        types = request.given("activation", "weight")
        chosen = request.given("variant")
        model = models.candidate(loaded, "wrapped", **chosen)
        yield _Stage("wrapped", model)
        if request.candidate == "quantized":
            bits = _steps(str(types.get("activation", DEFAULT_ACTIVATION)))
            weight = _steps(str(types.get("weight", DEFAULT_WEIGHT)))
            model = models.candidate(loaded, "quantized", **types, **chosen)
            yield _Stage("quantised", model, _QUANTISED / min(bits, weight))
    with torch.no_grad(), status("exporting"):
        program = torch.export.export(model, (), inputs, strict=False)
    yield _Stage("exported", program)
    file = folder / f"model.{request.through}"
    with status(f"writing {file.name}"):
        _write(model, program, inputs, file)
    is_approximate = request.through != "pt2" and bits is not None
    graph = tracer.open_graph(file)
    for note in graph.notes:
        print(note)
    yield _Stage("run", graph, _WRITTEN / bits if is_approximate and bits else None)


def _write(
    model: nn.Module, program: "ExportedProgram", inputs: dict[str, Any], file: Path
) -> None:
    """Writes a file in its format.

    Raises:
        ModelLoadError: it cannot be exported.
    """
    import wrappers

    if file.suffix != ".onnx":
        wrappers.export(model, inputs, file)
        return
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The optimiser of the exporter loses constants of clamps; ONNX Runtime has its own.
            made = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
        assert made is not None
        made.save(file)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # which says what; the others, what may be done
            cause = cause.__cause__
        raise ModelLoadError(f"torch.onnx cannot export the model: {brief(cause)}") from error


def _steps(kind: str) -> int:
    """How many steps an integer type has."""
    return int(2 ** int("".join(filter(str.isdigit, kind))))


def _parameters(model: nn.Module) -> list[str]:
    from tracer.execution.inputs import argument_names

    return argument_names(model)


def _in_short(found: "Comparison", stage: _Stage) -> str:
    worst = max((row.peir for row in found.rows), default=0.0)
    limit = "" if stage.limit is None else f", limit {figure(stage.limit)}"
    return f"{found.verdict.outcome} (largest PEIR {figure(worst)}{limit})"
