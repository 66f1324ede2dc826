"""The three steps of post-training quantisation.

wrapped = prepare(model, PTQConfig(activation=affine("uint8"), weight=affine("uint8")))
calibrate(wrapped, batches)
quantized = convert(wrapped)
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from trace_model.annotations import checked
from wrappers.core.config import PTQConfig, is_pattern, matches
from wrappers.core.module import QuantModule, iter_points, iter_wrappers, shallow_copy
from wrappers.core.point import Mode
from wrappers.core.registry import has_wrapper, lookup
from wrappers.core.spec import QuantSpec, Role, affine, no_quantization
from wrappers.errors import (
    ArgumentError,
    CalibrationWarning,
    MissingWrapperError,
    ModeError,
    ModelInputError,
    UnknownOverrideError,
    UnseenObserverError,
    WrapError,
)

ModelInputs = Mapping[str, Any] | tuple[Any, ...] | list[Any] | Tensor
"""Keyword arguments, positional arguments, or the single argument of a model."""

Progress = Callable[[Iterable[ModelInputs]], Iterable[ModelInputs]]
"""Passes on what it is given and shows how far it is: `tqdm`; on a terminal also rich's `track`."""

SHOWN = 8  # names in a message


@checked(ArgumentError)
def prepare(model: nn.Module, config: PTQConfig) -> nn.Module:
    """A copy of the model's tree in which every class with a wrapper is wrapped.

    Names stay, parameters and buffers are shared with `model`, and `model` itself is left as it
    is. A module that occurs twice is wrapped once. All wrappers are in Mode.NO_QUANT.

    Raises:
        WrapError: `model` is wrapped already, or nothing in it has a wrapper, or a module cannot
            be copied.
        MissingWrapperError: a class has wrappers, but not in the config's variant; or, with
            `strict_wrap`, a module that owns parameters has none.
        UnknownOverrideError: an override names no quantization point.
    """
    for name, module in model.named_modules():
        if isinstance(module, QuantModule):
            raise WrapError(
                f"{name or 'the model'} is a {type(module).__name__}: the model is wrapped "
                "already; prepare the float model that it was made of"
            )
    wrapped_by_id: dict[int, nn.Module] = {}

    def wrap(module: nn.Module, config: PTQConfig) -> nn.Module:
        if id(module) not in wrapped_by_id:
            wrapped_by_id[id(module)] = _wrap_one(module, config)
        return wrapped_by_id[id(module)]

    def _wrap_one(module: nn.Module, config: PTQConfig) -> nn.Module:
        kind = type(module)
        if has_wrapper(kind):
            return lookup(kind, config.variant).from_float(module, config, wrap)
        if config.strict_wrap and any(True for _ in module.parameters(recurse=False)):
            try:
                lookup(kind, config.variant)
            except MissingWrapperError as error:
                raise MissingWrapperError(
                    f"{config.scope or 'the model'} owns parameters: {error}. With "
                    "strict_wrap=False it stays float"
                ) from error
        return shallow_copy(module, kind, config, wrap)

    wrapped = wrap(model, config)
    points = {
        f"{module}.{name}".lstrip("."): point.role for module, name, point in iter_points(wrapped)
    }
    if not points:
        raise WrapError(f"nothing in {type(model).__name__} has a wrapper with quantization points")
    _check_overrides(config, points)
    vars(wrapped)["ptq_config"] = config  # of a root without a wrapper too
    return wrapped


@checked(ArgumentError)
def overrides_for(
    model: nn.Module, config: PTQConfig, rules: Mapping[str, str | QuantSpec]
) -> dict[str, QuantSpec]:
    """The overrides of a config for all quantization points that globs match.

        config = replace(config, overrides=overrides_for(model, config, {"*.down_proj": "int16"}))

    Args:
        model: the float model.
        config: what it is to be quantised with; its own overrides stay, where no glob matches.
        rules: a type's name, "float" for no quantisation, or a spec, by globs of dot paths of
            modules, which stand for all points in them, or of points. The last that matches counts.
            A type keeps the observer of a point, and takes its own default scheme.

    Raises:
        UnknownOverrideError: a glob matches no quantization point.
        ConfigError: an unknown type.
        WrapError, MissingWrapperError: as `prepare`.
    """
    points = {
        f"{module}.{name}".lstrip("."): point
        for module, name, point in iter_points(prepare(model, config))
        if point.role != "cache"
    }
    found: dict[str, QuantSpec] = {}
    for glob, rule in rules.items():
        matched = [path for path in points if _is_in(path, glob)]
        if not matched:
            modules = {path.rpartition(".")[0] for path in points}
            ends = [f"*.{module.rpartition('.')[2]}" for module in sorted(modules)]
            raise UnknownOverrideError(f"the override {glob!r} {_no_point(glob, [*points], ends)}")
        found |= {path: _changed(points[path].spec, rule) for path in matched}
    kept = {path: spec for path, spec in config.overrides.items() if path not in found}
    return {**kept, **found}


def _is_in(path: str, glob: str) -> bool:
    """Whether a glob matches a point, or a module around it."""
    parts = path.split(".")
    return any(fnmatchcase(".".join(parts[: end + 1]), glob) for end in range(len(parts)))


def _changed(spec: QuantSpec, rule: str | QuantSpec) -> QuantSpec:
    if isinstance(rule, QuantSpec):
        return rule
    if rule == "float":
        return no_quantization()
    return affine(rule) if spec.dtype is None else spec.changed({"dtype": rule, "qscheme": None})


@checked(ArgumentError)
def calibrate(
    wrapped: nn.Module, inputs: Iterable[ModelInputs], *, progress: Progress | None = None
) -> None:
    """Run the model over calibration data and observe every quantization point.

    Earlier observations are forgotten first. Outputs are those of the unquantised model. The
    model stays in Mode.CALIBRATE; `convert` ends it.

    Args:
        wrapped: a prepared model.
        inputs: each a mapping of keyword arguments, a tuple of positional ones, or a tensor.
        progress: shows how far it is: a function that passes an iterable on, such as `tqdm`.

    Raises:
        ModeError: the model has no wrappers.
        ModelInputError: there are no inputs, or one is none of the above.

    Warns:
        CalibrationWarning: NaN or infinities came by; they are left out of the ranges.
    """
    set_mode(wrapped, Mode.CALIBRATE)
    batches = 0
    with torch.no_grad():
        for batch in inputs if progress is None else progress(inputs):
            args, kwargs = call_arguments(batch)
            wrapped(*args, **kwargs)
            batches += 1
    if batches == 0:
        raise ModelInputError("there were no calibration inputs: is the iterable used up already?")
    warn_of_dropped(wrapped)


@checked(ArgumentError)
def convert(wrapped: nn.Module) -> nn.Module:
    """Freeze every quantization point and quantise from now on.

    Returns:
        `wrapped` itself, in Mode.QUANT.

    Raises:
        ModeError: the model has no wrappers.
        UnseenObserverError: points saw no data; all of them are named, and nothing is changed.
    """
    unseen = [
        f"{name}.{point}".lstrip(".")
        for name, module in iter_wrappers(wrapped)
        for point in module.unfreezable_points()
    ]
    if unseen:
        raise UnseenObserverError(
            f"{len(unseen)} quantization points saw no data and have no range to quantise to: "
            f"{listed(unseen)}. Calibrate with inputs that reach them, load their qparams, or "
            "override them with no_quantization()"
        )
    set_mode(wrapped, Mode.QUANT)
    return wrapped


@checked(ArgumentError)
@contextmanager
def count_rounding(model: nn.Module) -> Iterator[None]:
    """Counts what rounding does at each quantization point of a model that runs meanwhile.

        with count_rounding(quantized):
            quantized(**batch)
        summary(quantized)["model.layers.0.mlp.mul"]["rounding"]["underflow"]

    See `QuantModule.count_rounding`.
    """
    with ExitStack() as stack:
        for _, wrapper in iter_wrappers(model):
            stack.enter_context(wrapper.count_rounding())
        yield


@checked(ArgumentError)
def summary(model: nn.Module) -> dict[str, dict[str, object]]:
    """What is known of each quantization point of a model by its path; see `QuantPoint.summary`."""
    return {
        f"{module}.{name}".lstrip("."): point.summary()
        for module, name, point in iter_points(model)
    }


def warn_of_dropped(wrapped: nn.Module) -> None:
    """Warns of values that observers left out.

    Warns:
        CalibrationWarning: NaN or infinities came by.
    """
    dropped = {
        f"{module}.{point_name}".lstrip("."): point.observer.dropped
        for module, point_name, point in iter_points(wrapped)
        if point.observer.dropped
    }
    if dropped:
        warnings.warn(
            "NaN or infinite values were left out of the observed ranges: "
            + listed([f"{name} ({count})" for name, count in dropped.items()]),
            CalibrationWarning,
            stacklevel=3,
        )


def set_mode(wrapped: nn.Module, mode: Mode) -> None:
    """Sets the mode of all wrappers of a model; see `QuantModule.mode`.

    Raises:
        ModeError: the model has no wrappers.
    """
    wrappers = [module for _, module in iter_wrappers(wrapped)]
    if not wrappers:
        raise ModeError(
            f"{type(wrapped).__name__} has no wrappers: give the model that prepare() returned"
        )
    for module in wrappers:
        module.mode = mode


def call_arguments(inputs: ModelInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments of a call.

    Raises:
        ModelInputError: `inputs` is none of the forms that a model's inputs come in.
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    raise ModelInputError(
        "a model's inputs are a mapping of keyword arguments, a tuple of positional ones or a "
        f"tensor, not {type(inputs).__name__}"
    )


def _check_overrides(config: PTQConfig, points: Mapping[str, Role]) -> None:
    for path in config.overrides:
        if path in points:
            continue
        if is_pattern(path) and any(matches(path, name, role) for name, role in points.items()):
            continue
        raise UnknownOverrideError(f"the override {path!r} {_no_point(path, [*points])}")


def _no_point(path: str, points: list[str], globs: Iterable[str] = ()) -> str:
    known = dict.fromkeys([*globs, *points])
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.5)
    advice = f"did you mean {' or '.join(near)}?" if near else f"there are {listed(points)}"
    does = "matches" if is_pattern(path) else "names"
    return f"{does} no quantization point; {advice}"


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
