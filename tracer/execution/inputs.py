"""What two models are called with: checked, fitted to each side, and copied.

Both are called with the same inputs, the candidate under the names that its forward has for them.
A candidate may be given inputs of its own; what both sides are given under one name must then be
the same data.
"""

import inspect
from collections.abc import Callable, Mapping, Set
from itertools import permutations
from typing import TypeVar

import torch
from torch import nn

from tracer.errors import InputError, near_names
from tracer.execution.standin import Arguments, StandIn
from tracer.execution.torch_internals import as_written
from tracer.execution.weights import Weights
from tracer.tensors.fingerprints import checksum
from tracer.tensors.leaves import describe, tensor_leaves
from tracer.tensors.masks import visible_pair, visible_positions
from tracer.tensors.rebuilding import deep_copy
from tracer.tensors.roles import DEFAULT_ROLES
from tracer.text import listed

Inputs = Mapping[str, object] | tuple[object, ...] | torch.Tensor

# Of a tensor with more dimensions, only the order that it is in is looked at.
_MOST_DIMENSIONS = 5


def both_arguments(
    inputs: Inputs | None,
    candidate_inputs: Inputs | None,
    map_inputs: Mapping[str, str] | None,
    reference: nn.Module,
    candidate: nn.Module,
) -> tuple[Arguments, Arguments | None]:
    """What each side is called with; None for a candidate that is called as the reference is.

    Args:
        inputs: see `shared_arguments`.
        candidate_inputs: what the candidate is called with instead.
        map_inputs: the reference's name of an argument by the candidate's.

    Raises:
        InputError: as `shared_arguments`; names that one side does not have; or inputs of one name
            that are not the same data.
    """
    names = map_inputs or {}
    if isinstance(candidate, StandIn) and not candidate.computes:
        if candidate_inputs is None:
            return shared_arguments(inputs, reference, candidate, names), None
        own, recorded = arguments_of(candidate_inputs, None), candidate.inputs()
        if recorded is not None:
            _check_recorded(own, recorded, candidate, in_form=True)
        return arguments_of(inputs, reference), None
    given = shared_arguments(inputs, reference, candidate, names)
    if candidate_inputs is not None:
        own = arguments_of(candidate_inputs, candidate)
        _check_names(names, own[1], candidate, "the candidate's inputs")
        check_same(given[1], own[1], names)
        return given, own
    kwargs = renamed(given[1], names, candidate)
    is_other = kwargs.keys() != given[1].keys() or any(kwargs[n] is not given[1][n] for n in kwargs)
    return given, (given[0], kwargs) if is_other else None


def renamed(
    kwargs: Mapping[str, object], names: Mapping[str, str], candidate: nn.Module
) -> dict[str, object]:
    """The reference's keyword arguments under the candidate's names.

    A mask that hides nothing is left out where the candidate takes none.

    Raises:
        InputError: a name that one side does not have.
    """
    _check_names(names, dict.fromkeys(names), candidate, "forward")
    for name in names.values():
        if name not in kwargs:
            found = f"they are {listed([*kwargs])}" if kwargs else "they have no names"
            raise InputError(
                f"{name!r} is mapped to an argument of the candidate's, and is none of the "
                f"inputs: {found}{near_names(name, kwargs)}"
            )
    made = {own: kwargs[name] for own, name in names.items()}
    made |= {name: value for name, value in kwargs.items() if name not in names.values()}
    known = _parameters(candidate)
    for name in [] if known is None else [name for name in made if name not in known]:
        value = made.pop(name)
        if not (DEFAULT_ROLES.is_mask(name) and hides_nothing(value)):
            own_name = next((own for own in known or [] if own not in made), "OWN_NAME")
            raise InputError(
                f"the inputs name {name!r}, which forward of the candidate's "
                f"{type(candidate).__name__} does not take; it takes "
                f"{listed(known or []) or 'nothing'}: say which of these it is "
                f"(map_inputs={{{own_name!r}: {name!r}}}, --map-input {own_name}={name}), or give "
                "the candidate inputs of its own (candidate_inputs, or what its function returns)"
            )
    return made


def check_same(
    reference: Mapping[str, object], candidate: Mapping[str, object], names: Mapping[str, str]
) -> None:
    """Checks that what both sides are given under one name is the same data.

    It may be in another dtype, and in another order of dimensions; masks may be written otherwise.

    Raises:
        InputError: it is not.
    """
    for own, value in candidate.items():
        name = names.get(own, own)
        if own in names and name not in reference:
            raise InputError(
                f"{own!r} is mapped to {name!r}, which is none of the reference's inputs "
                f"({listed([*reference])}){near_names(name, reference)}"
            )
        if name in reference and not _is_same(reference[name], value, name):
            shown = f"`{name}`" if own == name else f"`{name}` (the candidate's `{own}`)"
            raise InputError(
                f"both sides are given {shown}, and not the same data: the reference "
                f"{describe(reference[name])}, the candidate {describe(value)}. Leave the "
                "candidate's inputs out, or give the same; dtype and order of dimensions may "
                "differ"
            )


def _check_names(
    names: Mapping[str, str], own: Mapping[str, object], candidate: nn.Module, where: str
) -> None:
    """Checks that the candidate has the names that are mapped."""
    known = _parameters(candidate)
    for name in names:
        if name not in own or (known is not None and name not in known):
            there = list(known or own)
            raise InputError(
                f"the argument {name!r} is mapped, and {where} of the candidate's "
                f"{type(candidate).__name__} has none of that name; there are "
                f"{listed(there) or 'none'}{near_names(name, there)}"
            )


def argument_names(model: nn.Module) -> list[str]:
    """The names of what a model's forward takes, without what it collects."""
    parameters = inspect.signature(as_written(model).forward).parameters.values()
    collecting = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind not in collecting]


def _parameters(model: nn.Module) -> list[str] | None:
    """The names that a model's forward takes; None where it takes any, or cannot be asked."""
    try:
        parameters = inspect.signature(as_written(model).forward).parameters
    except (TypeError, ValueError):  # compiled code may have no signature
        return None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return None
    return list(parameters)


def hides_nothing(value: object) -> bool:
    """Whether a mask is none, or lets everything through."""
    if not isinstance(value, torch.Tensor):
        return value is None
    visible = visible_positions(value)
    return visible is not None and bool(visible.all())


def _is_same(reference: object, candidate: object, name: str) -> bool:
    """Whether two inputs are the same data; of what is not known, they are taken to be."""
    ours, theirs = dict(tensor_leaves(reference, "")), dict(tensor_leaves(candidate, ""))
    if ours.keys() != theirs.keys():
        return not isinstance(reference, torch.Tensor) or not isinstance(candidate, torch.Tensor)
    is_mask = DEFAULT_ROLES.is_mask(name)
    return all(_is_same_tensor(ours[path], theirs[path], is_mask=is_mask) for path in ours)


def _is_same_tensor(r: torch.Tensor, c: torch.Tensor, *, is_mask: bool) -> bool:
    r, c = r.detach().cpu(), c.detach().cpu()
    if is_mask:
        pair = visible_pair(r, c)
        return pair is None or torch.equal(*pair)
    if r.layout is not torch.strided or c.layout is not torch.strided:
        return r.layout == c.layout and r.shape == c.shape
    if r.numel() != c.numel():
        return False
    r = r.squeeze()
    given = tuple(range(r.dim()))
    orders = permutations(given) if r.dim() <= _MOST_DIMENSIONS else [given]
    return any(_is_equal(r.permute(order).reshape(c.shape), c) for order in orders)


def _is_equal(r: torch.Tensor, c: torch.Tensor) -> bool:
    """Whether two tensors are equal in the dtype of one of them."""
    pairs = ((r, c.to(r.dtype)), (r.to(c.dtype), c))
    return any(bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in pairs)


def shared_arguments(
    inputs: Inputs | None,
    reference: nn.Module,
    candidate: nn.Module,
    names: Mapping[str, str] | None = None,
) -> Arguments:
    """Positional and keyword arguments: what was given, and what was recorded if nothing was.

    Args:
        names: the reference's name of an argument by the candidate's.

    Raises:
        InputError: nothing was given nor recorded, something other than was recorded, or nothing
            that the model can take.
    """
    models = reference, candidate
    recordings = [m for m in models if isinstance(m, StandIn) and not m.computes]
    live = [model for model in models if model not in recordings]
    if not recordings:
        return arguments_of(inputs, reference)
    # Of a candidate beside a recording, the names are looked at when it has got its own.
    takes = live[0] if live and live[0] is reference else None
    given = None if inputs is None or not live else arguments_of(inputs, takes)
    for recording in recordings:
        recorded = recording.inputs()
        if recorded is not None and recording is candidate and names:
            values = recorded[1].items()
            recorded = recorded[0], {names.get(name, name): value for name, value in values}
        if given is None and live and not recording.inputs_are_whole:
            raise InputError(
                f"the inputs of {recording.label} hold an object that is not in the trace, such as "
                "a cache: give the inputs that it was recorded with"
            )
        if given is None:
            given = recorded
        elif recorded is not None:
            _check_recorded(given, recorded, recording, in_form=recording is reference)
    if given is None:
        labels = " and ".join(recording.label for recording in recordings)
        raise InputError(f"{labels} holds no inputs: give what it was recorded with")
    return given


def _check_recorded(
    given: Arguments, recorded: Arguments, recording: StandIn, *, in_form: bool
) -> None:
    """Checks that inputs are those of a recording; a mask that hides nothing may be missing.

    Args:
        in_form: in the same form too, and not another order of dimensions.
    """
    kwargs = {
        name: value
        for name, value in given[1].items()
        if name in recorded[1] or not (DEFAULT_ROLES.is_mask(name) and hides_nothing(value))
    }
    is_same = _same_inputs((given[0], kwargs), recorded)
    by_name = not given[0] and kwargs.keys() == recorded[1].keys()
    if not is_same and not in_form and by_name:
        is_same = all(_is_same(kwargs[name], recorded[1][name], name) for name in kwargs)
    if not is_same:
        raise InputError(
            f"the inputs are not those that {recording.label} was recorded with: leave them out, "
            "and the recorded ones are used"
        )


def _same_inputs(given: object, recorded: object) -> bool:
    left, right = dict(tensor_leaves(given, "")), dict(tensor_leaves(recorded, ""))
    return left.keys() == right.keys() and all(
        left[path].shape == right[path].shape
        and checksum(left[path].to(right[path].dtype)) == checksum(right[path])
        for path in left
    )


def arguments_of(inputs: Inputs | None, model: nn.Module | None) -> Arguments:
    """Positional and keyword arguments of what was given.

    Args:
        model: what takes them; None for names that are not checked.

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
    if model is None:
        return (), kwargs
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


def fitting(reference: Weights, candidate: Weights) -> Fitting:
    """What makes inputs of the reference's those of the candidate's.

    Floats of the reference's dtype take the candidate's, and tensors on its device go to the
    candidate's, where each side has only one.
    """
    cast = _change(reference.numbers.keys(), candidate.numbers.keys())
    move = _change(reference.devices, candidate.devices)

    def fitted(tensor: torch.Tensor) -> torch.Tensor:
        if cast and tensor.dtype == cast[0]:
            tensor = tensor.to(cast[1])
        return tensor.to(move[1]) if move and tensor.device == move[0] else tensor

    return fitted


_Kind = TypeVar("_Kind", torch.dtype, torch.device)


def _change(reference: Set[_Kind], candidate: Set[_Kind]) -> tuple[_Kind, _Kind] | None:
    """From what to what, if each side has one and they differ."""
    if len(reference) != 1 or len(candidate) != 1 or reference == candidate:
        return None
    return next(iter(reference)), next(iter(candidate))


def copied(inputs: Arguments, fits: Fitting) -> Arguments:
    """A copy of everything, caches and other objects included, tensors free of their graph.

    The models may edit what they are given, so each gets its own.
    """
    args, kwargs = deep_copy(inputs, lambda tensor: fits(tensor.detach().clone()))
    return args, kwargs
