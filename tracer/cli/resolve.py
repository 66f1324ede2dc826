"""A request becomes models and inputs.

What is compared is a model and its candidate with the model's inputs, or a trace instead of either.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tracer.adapters.quantised.lookup import is_quantized
from tracer.choices import (
    CANDIDATES,
    DEFAULT_ACTIVATION,
    DEFAULT_VARIANT,
    DEFAULT_WEIGHT,
    ITSELF,
    NEED_WRAPPERS,
    VARIANTS,
)
from tracer.cli.garbage import collected_rarely
from tracer.cli.requests import CompareRequest, ModelRequest, flag
from tracer.errors import UsageError, near_names
from tracer.models.locate import is_graph, is_saved, is_trace, saved_variant
from tracer.text import brief, listed

if TYPE_CHECKING:
    from torch import nn

    from tracer.models import Calibration
    from tracer.models.loading import Loaded
    from tracer.traces.recorded import Recorded
    from wrappers import PTQConfig

Request = TypeVar("Request", bound=ModelRequest)


@dataclass(frozen=True)
class Sides:
    """What is compared.

    Attributes:
        reference, candidate: models or recordings.
        inputs: None where the reference is a recording, whose own are taken.
        candidate_inputs: those of the candidate's own, where it has some.
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
    candidate_inputs: "dict[str, Any] | None" = None


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

    request = _with_variant(request)
    with status(f"loading {request.model or 'traces'}"):
        from tracer import open_trace

        graph = _reference_graph(request)
        named = (
            None if graph is not None else request.reference,
            request.candidate if is_trace(request.candidate) else None,
        )
        reference, candidate = (
            None if name is None else open_trace(name, salvage=request.salvage) for name in named
        )
        saved = is_saved(request.candidate)
        quantized = saved or request.candidate == "quantized" or _is_quantized(candidate)
        if reference is not None and candidate is not None:
            _check_focus(request.focus, reference.name, reference, candidate)
            names = _describe_trace(reference), _describe_trace(candidate)
            return Sides(reference, candidate, None, names, (), quantized)
        recorded = reference or candidate
        inputs = None if recorded is None else _inputs_of(recorded, request)
        if graph is not None and inputs is None and not request.making_inputs:
            inputs = None if request.inputs is not None else graph.inputs
        _check_device(request.candidate_device)
        loaded = load_model(request, inputs)
        if request.candidate in NEED_WRAPPERS:  # which keep the names, and may take long to make
            _check_focus(request.focus, loaded.name, loaded.model)
        origin = _origin(request.candidate_device, loaded)
        other = None if candidate is not None else _other(request, origin)
        beside = loaded if recorded is not None else other
        loaded, own = _both_inputs(request, loaded, beside, is_reference=candidate is not None)
        live = _prepared(request, loaded)
        data = _calibration(request, origin)
    made = candidate or _candidate(request, origin, other, data)
    # Others may have quantised what was loaded.
    quantized = quantized or (is_quantized(made) and not is_quantized(loaded.model))
    _check_focus(request.focus, loaded.name, loaded.model, made)
    names = (
        _describe(graph or loaded) if reference is None else _describe_trace(reference),
        _describe_candidate(request, origin) if candidate is None else _describe_trace(candidate),
    )
    notes = *live.notes, *_calibrated(data)
    variant = request.variant or DEFAULT_VARIANT
    wraps = saved or request.candidate in NEED_WRAPPERS
    if candidate is None and wraps and variant in VARIANTS:
        notes = f"{variant}: {VARIANTS[variant]}", *notes
    if request.train:
        notes += (_trained(live.model, made),)
    inputs = None if reference is not None else live.inputs
    first = live.model if graph is None else graph.model
    return Sides(reference or first, made, inputs, names, notes, quantized, own)


def _reference_graph(request: CompareRequest) -> "Loaded | None":
    """The exported graph that is the reference, with the inputs that it was exported with."""
    if request.reference is None or not is_graph(request.reference):
        return None
    from tracer import models

    return models.load(request.reference, **request.given("device"))


def resolve_model(request: ModelRequest) -> Subject:
    """One model, or the candidate made from it, with the inputs that it is run on."""
    from tracer.reports.progress import status

    request = _with_variant(request)
    with status(f"loading {request.model}"):
        loaded = load_model(request)
        other = _other(request, loaded)
        loaded, own = _both_inputs(request, loaded, other)
        live = _prepared(request, loaded)
        data = _calibration(request, loaded)
    model = _candidate(request, loaded, other, data)
    from tracer.execution.inputs import check_same, renamed

    names = dict(request.map_input)
    if own is not None:
        check_same(live.inputs, own, names)
    inputs = renamed(live.inputs, names, model) if own is None else own
    return Subject(model, inputs, (*live.notes, *_calibrated(data)))


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


def _other(request: ModelRequest, loaded: "Loaded") -> "Loaded | None":
    """A candidate that is a model of its own, and not made from the loaded one."""
    if request.candidate in (*CANDIDATES, ITSELF) or is_saved(request.candidate):
        return None
    from tracer.models.candidates import load_candidate

    return load_candidate(
        loaded,
        request.candidate,
        trust_remote_code=request.trust_remote_code,
        map_inputs=dict(request.map_input),
    )


def _both_inputs(
    request: ModelRequest, loaded: "Loaded", beside: "Loaded | None", *, is_reference: bool = False
) -> "tuple[Loaded, dict[str, Any] | None]":
    """The model with what it is run on, and the candidate's own inputs.

    Inputs of the model that nobody has asked for give way to what the candidate's function returns.

    Args:
        beside: what a function may have made with inputs of its own.
        is_reference: it is the model beside a trace that is the candidate.
    """
    own = None if beside is None else beside.own_inputs
    if beside is not None and is_graph(beside.name):
        is_asked = loaded.request is None or request.making_inputs
        own = None if is_asked else own  # a graph takes what the model does
    if beside is None or own is None:
        return loaded, None
    source, kept = f"of {beside.name}: {listed([*own])}", loaded.notes[:-1]
    if is_reference:
        return replace(loaded, inputs=own, notes=(*kept, f"inputs: {source}")), None
    if beside is loaded:
        return replace(loaded, notes=(*kept, f"inputs of the candidate: {source}")), own
    names = dict(request.map_input)
    if loaded.request is not None and not request.making_inputs:
        taken = _taken_over(own, names, beside.name, loaded)
        loaded = replace(loaded, inputs=taken, notes=(*kept, f"inputs: {source}"))
    else:
        note = f"inputs of the candidate: {source}"
        others = [name for name in own if names.get(name, name) not in loaded.inputs]
        if others:
            note += f"; not checked to be the reference's: {listed(others)}"
        loaded = replace(loaded, notes=(*loaded.notes, note))
    if request.steps is not None:
        from tracer import models

        own = models.ending_in_steps(own, request.steps)
    return loaded, own


def _taken_over(
    own: "Mapping[str, Any]", names: Mapping[str, str], source: str, loaded: "Loaded"
) -> dict[str, Any]:
    """The candidate's inputs as the model takes them."""
    from tracer.execution.inputs import argument_names
    from tracer.execution.offload import execution_device
    from tracer.execution.session import working_dtype
    from tracer.models.loading import cast_float
    from tracer.tensors.rebuilding import map_tensors

    known = argument_names(loaded.model)
    unknown = [name for name in own if names.get(name, name) not in known]
    if unknown:
        raise UsageError(
            f"{source} returns inputs named {listed([*own])}, and {loaded.name} takes "
            f"{listed(known)}: say which is which, such as --map-input {unknown[0]}={known[0]}"
        )
    dtype, device = working_dtype(loaded.model), execution_device(loaded.model)
    return {
        names.get(name, name): map_tensors(value, lambda t: cast_float(t, dtype).to(device))
        for name, value in own.items()
    }


def _candidate(
    request: ModelRequest, loaded: "Loaded", other: "Loaded | None", data: "Calibration | None"
) -> "nn.Module":
    """The model that is run instead of the candidate."""
    from tracer import models
    from tracer.reports.progress import tracked

    if request.candidate == ITSELF:
        return _driven(request, loaded)
    if other is not None:
        return _driven(request, other)
    return models.candidate(
        loaded,
        request.candidate,
        **request.given("variant", "steps", "activation", "weight"),
        config=_config(request.config),
        overrides=dict(request.override),
        calibration=data,
        progress=tracked,
    )


def _config(file: Path | None) -> "PTQConfig | None":
    """The configuration of a file."""
    if file is None:
        return None
    import wrappers

    try:
        return wrappers.PTQConfig.from_json(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, wrappers.errors.ConfigError) as error:
        raise UsageError(f"--config {file}: {brief(error)}") from error


def _with_variant(request: Request) -> Request:
    """The request with the variant of its configuration or saved candidate, where it names none
    itself."""
    if is_saved(request.candidate):
        return replace(request, variant=saved_variant(request.candidate))
    config = _config(request.config)
    if config is None or request.variant is not None:
        return request
    return replace(request, variant=config.variant)


def _calibrated(data: "Calibration | None") -> tuple[str, ...]:
    return () if data is None else (f"calibrated on {data.description}",)


def _inputs_of(recorded: "Recorded", request: CompareRequest) -> dict[str, Any]:
    """The inputs of a trace, for the model beside it."""
    for name in (*request.making_inputs, *request.given("inputs")):
        raise UsageError(
            f"{flag(name)} says what the model is run on, and {recorded.name} holds what it was "
            "recorded with: leave it out"
        )
    from tracer.tensors.leaves import is_plain

    args, kwargs = recorded.inputs() or ((), {})
    if (
        args
        or not kwargs
        or not all(hasattr(value, "shape") or is_plain(value) for value in kwargs.values())
    ):
        raise UsageError(
            f"{recorded.name} was recorded with other inputs than tensors by name: compare it in "
            "Python, tracer.compare(tracer.open_trace(PATH), model, inputs)"
        )
    names = dict(request.map_input)
    if recorded.name == request.candidate:
        return {names.get(name, name): value for name, value in kwargs.items()}
    return {_own_name(name, names): value for name, value in kwargs.items()}


def _own_name(name: str, names: Mapping[str, str]) -> str:
    return next((own for own, theirs in names.items() if theirs == name), name)


def _is_quantized(recorded: "Recorded | None") -> bool:
    """Whether a trace is that of a quantised model."""
    if recorded is None:
        return False
    modules = recorded.header["modules"].values()
    points = (point for module in modules for point in module.get("points", {}).values())
    return any(point.get("scale") is not None for point in points)


def load_model(request: ModelRequest, inputs: Mapping[str, Any] | None = None) -> "Loaded":
    """Loads the model; its inputs are these, or those that the request asks for."""
    from tracer import models

    assert request.model is not None  # two traces need none
    names = "dtype", "device", "prompt", "sequence_length", "batch", "padding", "processor"
    given = request.given(*names, "max_pixels", "video", "inputs", "offload")
    if inputs is not None:
        given["inputs"] = inputs
    with collected_rarely():
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
    config = _config(request.config)
    return models.calibration(
        loaded,
        **count,
        text=request.calibration_text,
        seed=request.seed,
        same_grids=config is not None and "grid_thw" in config.model_args,
    )


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
    if request.candidate in NEED_WRAPPERS or is_saved(request.candidate):
        settings.append(f"variant {request.variant or DEFAULT_VARIANT}")
    if request.config is not None:
        settings.append(f"config {request.config.name}")
    elif request.candidate == "quantized":
        settings.append(f"activation {request.activation or DEFAULT_ACTIVATION}")
        settings.append(f"weight {request.weight or DEFAULT_WEIGHT}")
    settings += ["=".join(rule) for rule in request.override]
    if request.candidate_device is not None:
        settings.append(f"on {request.candidate_device}")
    return f"{request.candidate} ({', '.join(settings)})" if settings else request.candidate
