"""What two models are called with: checked, fitted to each side, and copied."""

import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn

from tracer.errors import InputError, near_names
from tracer.execution.standin import Arguments, StandIn
from tracer.execution.torch_internals import as_written
from tracer.tensors.fingerprints import checksum
from tracer.tensors.leaves import deep_copy, tensor_leaves

Inputs = Mapping[str, object] | tuple[object, ...] | torch.Tensor


def shared_arguments(
    inputs: Inputs | None, reference: nn.Module, candidate: nn.Module
) -> Arguments:
    """Positional and keyword arguments: what was given, and what was recorded if nothing was.

    Raises:
        InputError: nothing was given nor recorded, something other than was recorded, or nothing
            that the model can take.
    """
    models = reference, candidate
    recordings = [m for m in models if isinstance(m, StandIn) and not m.computes]
    live = [model for model in models if model not in recordings]
    if not recordings:
        return arguments_of(inputs, reference)
    given = None if inputs is None or not live else arguments_of(inputs, live[0])
    for recording in recordings:
        recorded = recording.inputs()
        if given is None and live and not recording.inputs_are_whole:
            raise InputError(
                f"the inputs of {recording.label} hold an object that is not in the trace, such as "
                "a cache: give the inputs that it was recorded with"
            )
        if given is None:
            given = recorded
        elif recorded is not None and not _same_inputs(given, recorded):
            raise InputError(
                f"the inputs are not those that {recording.label} was recorded with: leave them "
                "out, and the recorded ones are used"
            )
    if given is None:
        names = " and ".join(recording.label for recording in recordings)
        raise InputError(f"{names} holds no inputs: give what it was recorded with")
    return given


def _same_inputs(given: object, recorded: object) -> bool:
    left, right = dict(tensor_leaves(given, "")), dict(tensor_leaves(recorded, ""))
    return left.keys() == right.keys() and all(
        left[path].shape == right[path].shape
        and checksum(left[path].to(right[path].dtype)) == checksum(right[path])
        for path in left
    )


def arguments_of(inputs: Inputs | None, model: nn.Module) -> Arguments:
    """Positional and keyword arguments of what was given.

    Raises:
        InputError: it is nothing that the model can take.
    """
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, tuple):
        return inputs, {}
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"inputs are a {type(inputs).__name__}; expected a dict of keyword arguments, a tuple "
            "of positional ones, or a single tensor"
        )
    kwargs = {str(name): value for name, value in inputs.items()}
    parameters = inspect.signature(as_written(model).forward).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for name in kwargs:
            if name not in parameters:
                raise InputError(
                    f"inputs name {name!r}, which forward of {type(model).__name__} does not take; "
                    f"it takes {', '.join(parameters) or 'nothing'}{near_names(name, parameters)}"
                )
    return (), kwargs


Fitting = Callable[[torch.Tensor], torch.Tensor]


def as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor."""
    return tensor


def fitting(reference: nn.Module, candidate: nn.Module) -> Fitting:
    """What makes inputs of the reference's those of the candidate's.

    Floats of the reference's dtype take the candidate's, and tensors on its device go to the
    candidate's, where each side has only one.
    """
    (r_dtypes, r_devices), (c_dtypes, c_devices) = map(_worked_in, (reference, candidate))
    cast, move = _change(r_dtypes, c_dtypes), _change(r_devices, c_devices)

    def fitted(tensor: torch.Tensor) -> torch.Tensor:
        if cast and tensor.dtype == cast[0]:
            tensor = tensor.to(cast[1])
        return tensor.to(move[1]) if move and tensor.device == move[0] else tensor

    return fitted


_Kind = TypeVar("_Kind", torch.dtype, torch.device)


def _change(reference: set[_Kind], candidate: set[_Kind]) -> tuple[_Kind, _Kind] | None:
    """From what to what, if each side has one and they differ."""
    if len(reference) != 1 or len(candidate) != 1 or reference == candidate:
        return None
    return next(iter(reference)), next(iter(candidate))


def _worked_in(model: nn.Module) -> tuple[set[torch.dtype], set[torch.device]]:
    """The floating dtypes of a model's parameters, and where they lie.

    Weights that are elsewhere until they are needed, and those of a recording, lie nowhere.
    """
    if isinstance(model, StandIn) and not model.computes:
        return (set() if model.dtype is None else {model.dtype}), set()
    dtypes, devices = set(), set()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            dtypes.add(parameter.dtype)
        if not parameter.is_meta:
            devices.add(parameter.device)
    return dtypes, devices


def copied(inputs: Arguments, fits: Fitting) -> Arguments:
    """A copy of everything, caches and other objects included, tensors free of their graph.

    The models may edit what they are given, so each gets its own.
    """
    args, kwargs = deep_copy(inputs, lambda tensor: fits(tensor.detach().clone()))
    return args, kwargs
