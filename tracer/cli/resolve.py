"""A request becomes models and inputs.

What is compared is a model and its candidate with the model's inputs, or a trace instead of either.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracer.choices import (
    DEFAULT_ACTIVATION,
    DEFAULT_VARIANT,
    DEFAULT_WEIGHT,
    ITSELF,
    NEED_WRAPPERS,
    VARIANTS,
)
from tracer.cli.requests import CompareRequest, ModelRequest, flag
from tracer.errors import UsageError, near_names
from tracer.models.locate import is_trace
from tracer.text import listed

if TYPE_CHECKING:
    from torch import nn

    from tracer.models import Calibration
    from tracer.models.loading import Loaded
    from tracer.traces.recorded import Recorded


@dataclass(frozen=True)
class Sides:
    """What is compared.

    Attributes:
        reference, candidate: models or recordings.
        inputs: None where both are recordings.
        names: both in words.
        notes: how they came about.
        quantized: whether the candidate is.
    """

    reference: "nn.Module"
    candidate: "nn.Module"
    inputs: "dict[str, Any] | None"
    names: tuple[str, str]
    notes: tuple[str, ...]
    quantized: bool


@dataclass(frozen=True)
class Subject:
    """What is recorded or shown.

    Attributes:
        model: the model, or the candidate made from it.
        notes: how it and its inputs came about.
    """

    model: "nn.Module"
    inputs: dict[str, Any]
    notes: tuple[str, ...]


def resolve(request: CompareRequest) -> Sides:
    """Opens traces and makes models; a model is run on the inputs of the trace beside it."""
    from tracer.reports.progress import status

    with status(f"loading {request.model or 'traces'}"):
        from tracer import open_trace

        named = request.reference, request.candidate if is_trace(request.candidate) else None
        reference, candidate = (
            None if name is None else open_trace(name, salvage=request.salvage) for name in named
        )
        quantized = request.candidate == "quantized" or _is_quantized(candidate)
        if reference is not None and candidate is not None:
            _check_focus(request.focus, reference.name, reference, candidate)
            names = _describe_trace(reference), _describe_trace(candidate)
            return Sides(reference, candidate, None, names, (), quantized)
        recorded = reference or candidate
        inputs = None if recorded is None else _inputs_of(recorded, request)
        _check_device(request.candidate_device)
        loaded = _load(request, inputs)
        if request.candidate in NEED_WRAPPERS:  # which keep the names, and may take long to make
            _check_focus(request.focus, loaded.name, loaded.model)
        live = _prepared(request, loaded)
        origin = _origin(request.candidate_device, loaded)
        data = _calibration(request, origin)
    made = candidate or _candidate(request, origin, data)
    _check_focus(request.focus, loaded.name, loaded.model, made)
    names = (
        _describe(loaded) if reference is None else _describe_trace(reference),
        _describe_candidate(request, origin) if candidate is None else _describe_trace(candidate),
    )
    notes = *live.notes, *_calibrated(data)
    variant = request.variant or DEFAULT_VARIANT
    if candidate is None and request.candidate in NEED_WRAPPERS and variant in VARIANTS:
        notes = f"{variant}: {VARIANTS[variant]}", *notes
    if request.train:
        notes += (_trained(live.model, made),)
    return Sides(reference or live.model, made, live.inputs, names, notes, quantized)


def resolve_model(request: ModelRequest) -> Subject:
    """One model, or the candidate made from it, with the inputs that it is run on."""
    from tracer.reports.progress import status

    with status(f"loading {request.model}"):
        loaded = _load(request)
        live = _prepared(request, loaded)
        data = _calibration(request, loaded)
    model = _candidate(request, loaded, data)
    return Subject(model, live.inputs, (*live.notes, *_calibrated(data)))


def _check_device(device: str | None) -> None:
    """Answers at once where there is no such device."""
    if device is not None:
        from tracer import models

        models.usable_device(device)


def _origin(device: str | None, loaded: "Loaded") -> "Loaded":
    """What the candidate is made from: the model, or a copy of it on the candidate's device."""
    if device is None:
        return loaded
    from tracer import models

    return models.moved(loaded, device)


def _trained(*both: "nn.Module") -> str:
    """Puts both models into training mode, and says what that means."""
    from tracer.execution.dropout import active_dropout

    found = [str(dropout) for model in both for dropout in active_dropout(model.train())]
    if not found:
        return "training mode, in which nothing drops out"
    return f"training mode: {listed(found, 1)}; each call draws the same numbers on both sides"


def _candidate(request: ModelRequest, loaded: "Loaded", data: "Calibration | None") -> "nn.Module":
    """The model that is run instead of the candidate."""
    from tracer import models
    from tracer.reports.progress import tracked

    if request.candidate == ITSELF:
        return _driven(request, loaded)
    return models.candidate(
        loaded,
        request.candidate,
        **request.given("variant", "steps", "activation", "weight"),
        calibration=data,
        progress=tracked,
        trust_remote_code=request.trust_remote_code,
    )


def _calibrated(data: "Calibration | None") -> tuple[str, ...]:
    return () if data is None else (f"calibrated on {data.description}",)


def _inputs_of(recorded: "Recorded", request: CompareRequest) -> dict[str, Any]:
    """The inputs of a trace, for the model beside it."""
    for name in (*request.making_inputs, *request.given("inputs")):
        raise UsageError(
            f"{flag(name)} says what the model is run on, and {recorded.name} holds what it was "
            "recorded with: leave it out"
        )
    args, kwargs = recorded.inputs() or ((), {})
    if args or not kwargs or not all(hasattr(value, "shape") for value in kwargs.values()):
        raise UsageError(
            f"{recorded.name} was recorded with other inputs than tensors by name: compare it in "
            "Python, tracer.compare(tracer.open_trace(PATH), model, inputs)"
        )
    return kwargs


def _is_quantized(recorded: "Recorded | None") -> bool:
    """Whether a trace is that of a quantised model."""
    if recorded is None:
        return False
    modules = recorded.header["modules"].values()
    points = (point for module in modules for point in module.get("points", {}).values())
    return any(point.get("scale") is not None for point in points)


def _load(request: ModelRequest, inputs: Mapping[str, Any] | None = None) -> "Loaded":
    """Loads the model; its inputs are these, or those that the request asks for."""
    from tracer import models

    assert request.model is not None  # two traces need none
    names = "dtype", "device", "prompt", "sequence_length", "batch", "padding", "processor"
    given = request.given(*names, "max_pixels", "video", "inputs", "offload")
    if inputs is not None:
        given["inputs"] = inputs
    return models.load(
        request.model,
        seed=request.seed,
        attn_implementation="sdpa" if request.candidate == "eager" else "eager",
        trust_remote_code=request.trust_remote_code,
        images=request.image,
        **given,
    )


def _prepared(request: ModelRequest, loaded: "Loaded") -> Subject:
    """The model and its inputs as they are run."""
    from tracer import models

    model, inputs, notes = loaded.model, loaded.inputs, loaded.notes
    if request.steps is not None:
        note = (
            f"a prefill, and {request.steps} decode steps with the last tokens of each sequence: "
            f"call #0 is the prefill's, and call #{request.steps} that of the last step"
        )
        inputs = models.ending_in_steps(inputs, request.steps)
        return Subject(_driven(request, loaded), inputs, (*notes, note))
    if request.variant == "decode":
        note = (
            "a decode step: the last token of each sequence, over the float model's cache of "
            "those before it"
        )
        return Subject(model, models.decode_step(model, inputs), (*notes, note))
    return Subject(model, inputs, tuple(notes))


def _driven(request: ModelRequest, loaded: "Loaded") -> "nn.Module":
    """A loaded model, or what runs it step by step."""
    from tracer import models

    if request.steps is None:
        return loaded.model
    return models.Stepping(loaded.model, steps=request.steps)


def _check_focus(globs: Sequence[str], model_name: str, *models: "nn.Module") -> None:
    """Whether each glob matches a module of the first model, or of another one."""
    names = list(dict.fromkeys(name for model in models for name, _ in model.named_modules()))
    for glob in globs:
        if not fnmatch.filter(names, glob):
            raise UsageError(
                f"--focus {glob!r} matches none of the {len(names)} modules of {model_name}, such "
                f"as {listed(names[1:4])}{near_names(glob, names)}"
            )


def _calibration(request: ModelRequest, loaded: "Loaded") -> "Calibration | None":
    if request.candidate != "quantized":
        return None
    from tracer import models

    count = {} if request.calibrate is None else {"count": request.calibrate}
    return models.calibration(loaded, **count, text=request.calibration_text, seed=request.seed)


def _describe(loaded: "Loaded") -> str:
    from tracer.execution.offload import execution_device

    dtypes = [str(p.dtype).removeprefix("torch.") for p in loaded.model.parameters()][:1]
    settings = type(loaded.model).__name__, *dtypes, str(execution_device(loaded.model))
    return f"{loaded.name} ({', '.join(settings)})"


def _describe_trace(recorded: "Recorded") -> str:
    header = recorded.header
    what = ", ".join(str(header[key]) for key in ("model", "dtype", "device"))
    return f"{recorded.name} (recorded {what})"


def _describe_candidate(request: CompareRequest, loaded: "Loaded") -> str:
    """The candidate with its settings, whether given or at their defaults."""
    if request.candidate == ITSELF:
        return _describe(loaded)
    settings = []
    if request.candidate in NEED_WRAPPERS:
        settings.append(f"variant {request.variant or DEFAULT_VARIANT}")
    if request.candidate == "quantized":
        settings.append(f"activation {request.activation or DEFAULT_ACTIVATION}")
        settings.append(f"weight {request.weight or DEFAULT_WEIGHT}")
    if request.candidate_device is not None:
        settings.append(f"on {request.candidate_device}")
    return f"{request.candidate} ({', '.join(settings)})" if settings else request.candidate
