"""What the command line compares: a model, its candidate and inputs, or traces in their place."""

import argparse
import fnmatch
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracer.choices import ITSELF, NEED_WRAPPERS
from tracer.cli.checks import flag, making_inputs
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


def sides_of(options: argparse.Namespace) -> Sides:
    """Opens traces and makes models; a model is run on the inputs of the trace beside it."""
    from tracer.reports.progress import status

    with status(f"loading {options.model or 'traces'}"):
        from tracer import open_trace

        reference = None if options.reference is None else open_trace(options.reference)
        candidate = open_trace(options.candidate) if is_trace(options.candidate) else None
        quantized = options.candidate == "quantized" or _is_quantized(candidate)
        if reference is not None and candidate is not None:
            _check_focus(options.focus, reference, reference.name)
            names = _describe_trace(reference), _describe_trace(candidate)
            return Sides(reference, candidate, None, names, (), quantized)
        recorded = reference or candidate
        if recorded is not None:
            _take_inputs(options, recorded)
        _check_device(options.candidate_device)
        loaded = _load(options)
        _check_focus(options.focus, loaded.model, loaded.name)
        live, inputs, how = _as_asked(options, loaded)
        origin = _origin(options, loaded)
        data = _calibration(options, origin)
    made = candidate or _candidate(options, origin, data)
    names = (
        _describe(loaded) if reference is None else _describe_trace(reference),
        _describe_candidate(options, origin) if candidate is None else _describe_trace(candidate),
    )
    notes = *loaded.notes, *how, *_calibrated(data)
    if options.train:
        notes += (_trained(live, made),)
    return Sides(reference or live, made, inputs, names, notes, quantized)


def alone(
    options: argparse.Namespace,
) -> "tuple[nn.Module, dict[str, Any], tuple[str, ...]]":
    """One model, the inputs that it is run on, and notes on both."""
    from tracer.reports.progress import status

    with status(f"loading {options.model}"):
        loaded = _load(options)
        _, inputs, how = _as_asked(options, loaded)
        data = _calibration(options, loaded)
    model = _candidate(options, loaded, data)
    return model, inputs, (*loaded.notes, *how, *_calibrated(data))


def _check_device(device: str | None) -> None:
    """Answers at once where there is no such device."""
    if device is not None:
        from tracer import models

        models.usable_device(device)


def _origin(options: argparse.Namespace, loaded: "Loaded") -> "Loaded":
    """What the candidate is made from: the model, or a copy of it on the candidate's device."""
    if options.candidate_device is None:
        return loaded
    from tracer import models

    return models.moved(loaded, options.candidate_device)


def _trained(*both: "nn.Module") -> str:
    """Puts both models into training mode, and says what that means."""
    from tracer.execution.dropout import active_dropout

    found = [str(dropout) for model in both for dropout in active_dropout(model.train())]
    if not found:
        return "training mode, in which nothing drops out"
    return f"training mode: {listed(found, 1)}; each call draws the same numbers on both sides"


def _candidate(
    options: argparse.Namespace, loaded: "Loaded", data: "Calibration | None"
) -> "nn.Module":
    """The model that is run in the place of the candidate."""
    from tracer import models
    from tracer.reports.progress import tracked

    if options.candidate == ITSELF:
        return _driven(options, loaded)
    return models.candidate(
        loaded,
        options.candidate,
        **given(options, "variant", "steps", "activation", "weight"),
        calibration=data,
        progress=tracked,
        trust_remote_code=options.trust_remote_code,
    )


def _calibrated(data: "Calibration | None") -> tuple[str, ...]:
    return () if data is None else (f"calibrated on {data.description}",)


def _take_inputs(options: argparse.Namespace, recorded: "Recorded") -> None:
    """Makes the inputs of a trace those of the model beside it."""
    inputs = [] if options.inputs is None else ["inputs"]
    for name in (*making_inputs(options), *inputs):
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
    options.inputs = kwargs


def _is_quantized(recorded: "Recorded | None") -> bool:
    """Whether a trace is that of a quantised model."""
    if recorded is None:
        return False
    modules = recorded.header["modules"].values()
    points = (point for module in modules for point in module.get("points", {}).values())
    return any(point.get("scale") is not None for point in points)


def _load(options: argparse.Namespace) -> "Loaded":
    from tracer import models

    return models.load(
        options.model,
        seed=options.seed,
        attn_implementation="sdpa" if options.candidate == "eager" else "eager",
        trust_remote_code=options.trust_remote_code,
        images=options.image or (),
        **given(
            options,
            "dtype",
            "device",
            "prompt",
            "sequence_length",
            "batch",
            "padding",
            "processor",
            "max_pixels",
            "video",
            "inputs",
            "offload",
        ),
    )


def _as_asked(
    options: argparse.Namespace, loaded: "Loaded"
) -> "tuple[nn.Module, dict[str, Any], tuple[str, ...]]":
    """The reference and the inputs as they are run, and notes on how."""
    from tracer import models

    if options.steps is not None:
        note = (
            f"a prefill, and {options.steps} decode steps with the last tokens of each sequence: "
            f"call #0 is the prefill's, and call #{options.steps} that of the last step"
        )
        inputs = models.ending_in_steps(loaded.inputs, options.steps)
        return _driven(options, loaded), inputs, (note,)
    if options.variant == "decode":
        note = (
            "a decode step: the last token of each sequence, over the float model's cache of "
            "those before it"
        )
        return loaded.model, models.decode_step(loaded.model, loaded.inputs), (note,)
    return loaded.model, loaded.inputs, ()


def _driven(options: argparse.Namespace, loaded: "Loaded") -> "nn.Module":
    """A loaded model, or what runs it step by step."""
    from tracer import models

    if options.steps is None:
        return loaded.model
    return models.Stepping(loaded.model, steps=options.steps)


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; the defaults of the others are written where they apply."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _check_focus(globs: Sequence[str], model: "nn.Module", model_name: str) -> None:
    names = [name for name, _ in model.named_modules()]
    for glob in globs:
        if not fnmatch.filter(names, glob):
            raise UsageError(
                f"--focus {glob!r} matches none of the {len(names)} modules of {model_name}, such "
                f"as {listed(names[1:4])}{near_names(glob, names)}"
            )


def _calibration(options: argparse.Namespace, loaded: "Loaded") -> "Calibration | None":
    if options.candidate != "quantized":
        return None
    from tracer import models

    count = {} if options.calibrate is None else {"count": options.calibrate}
    return models.calibration(loaded, **count, text=options.calibration_text, seed=options.seed)


def _describe(loaded: "Loaded") -> str:
    from tracer.execution.offload import execution_device

    dtypes = [str(p.dtype).removeprefix("torch.") for p in loaded.model.parameters()][:1]
    settings = type(loaded.model).__name__, *dtypes, str(execution_device(loaded.model))
    return f"{loaded.name} ({', '.join(settings)})"


def _describe_trace(recorded: "Recorded") -> str:
    header = recorded.header
    what = ", ".join(str(header[key]) for key in ("model", "dtype", "device"))
    return f"{recorded.name} (recorded {what})"


def _describe_candidate(options: argparse.Namespace, loaded: "Loaded") -> str:
    """The candidate with its settings, whether given or at their defaults."""
    from tracer import models

    if options.candidate == ITSELF:
        return _describe(loaded)

    defaults = inspect.signature(models.candidate).parameters
    names: tuple[str, ...] = ("variant",) if options.candidate in NEED_WRAPPERS else ()
    if options.candidate == "quantized":
        names += ("activation", "weight")
    settings = [f"{name} {getattr(options, name) or defaults[name].default}" for name in names]
    if options.candidate_device is not None:
        settings.append(f"on {options.candidate_device}")
    return f"{options.candidate} ({', '.join(settings)})" if settings else str(options.candidate)
