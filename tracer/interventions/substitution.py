"""The reference's value instead of the candidate's: in its structure, dtype and on its device.

Whoever answers an event of the candidate's with a value of the reference's takes it from here.
"""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from tracer.execution.hooks import Call, NewArguments, NewOutput
from tracer.measurement.arguments import CallPair, read_argument, read_output, scale_between
from tracer.measurement.layout import in_shape_of, nested_otherwise
from tracer.tensors.kinds import copied
from tracer.tensors.leaves import is_stateful, leaves, tensor_leaves
from tracer.tensors.rebuilding import deep_copy, map_tensors, replace_leaves


def give_argument(calls: CallPair, name: str) -> NewArguments | None:
    """Gives the candidate's call the reference's value of an argument.

    Args:
        name: the reference's name of the argument.

    Returns:
        The answer to the event; None where the candidate's form of the argument cannot be made
        from the reference's.
    """
    reference, candidate = calls.reference, calls.candidate
    own_name = calls.names().get(name, name)
    own, value = candidate.arguments.get(own_name), reference.arguments.get(name)
    if not calls.is_of_one_form("to_reference_input"):
        value = _formed_back(
            own,
            read_argument("reference", reference, name, value),
            partial(read_argument, "candidate", candidate, name),
        )
        if value is None:
            return None
    others = {k: v for k, v in candidate.arguments.items() if k != own_name}
    given = in_form_of(own, value, _float_dtypes(others), device_of(others))
    if given is None and value is not None:
        return None
    candidate.arguments[own_name] = given
    return NewArguments({own_name: given})


def give_output(calls: CallPair) -> NewOutput | None:
    """Lets the candidate's call return the reference's output, and leave what that has left in
    caches, lists and dicts.

    Returns:
        The answer to the event; None where the candidate's form of the output cannot be made from
        the reference's.
    """
    reference, candidate = calls.reference, calls.candidate
    value, factor = reference.output, _factor_over(calls)
    if factor is None:
        read = read_output("reference", reference)
        value, factor = _formed_back(candidate.output, read, partial(_read_as, candidate)), 1.0
        if value is None:
            return None
    dtypes, device = _float_dtypes(candidate.arguments), device_of(candidate.arguments)
    for name, own_name in calls.names().items():
        left = reference.arguments[name], candidate.arguments[own_name]
        if all(map(is_stateful, left)):
            _leave(*left, dtypes, device)
    output = in_form_of(candidate.output, value, dtypes, device)
    if output is None and value is not None:
        return None
    if factor != 1.0:
        output = map_tensors(output, lambda tensor: tensor * factor)
    candidate.output = output
    return NewOutput(output)


def _factor_over(calls: CallPair) -> float | None:
    """What the reference's output is multiplied by to replace the candidate's."""
    if calls.is_of_one_form("to_reference_output"):
        return 1.0
    both = calls.reference, calls.candidate
    shapes = [[t.shape for _, t in tensor_leaves(call.output, "")] for call in both]
    return scale_between(*(c.module for c in both)) if shapes[0] == shapes[1] else None


def _formed_back(own: object, value: object, read: Callable[[object], object]) -> object | None:
    """A value of the reference's in the form of the candidate's, as its module declares it.

    Args:
        own: the candidate's value.
        value: the reference's, read back.
        read: reads a value of the candidate's back.

    Returns:
        None where what was made is not read back as the reference's value.
    """
    made = in_form_of(own, _reshaped(own, value), set(), None)
    if made is None or not any(tensor_leaves(own, "")) or _ranks(made) != _ranks(own):
        return None
    back, wanted = (dict(tensor_leaves(each, "")) for each in (read(made), value))
    is_it = bool(wanted) and back.keys() == wanted.keys()
    same = (torch.equal(back[path].to(wanted[path].device), wanted[path]) for path in wanted)
    return made if is_it and all(same) else None


def _reshaped(own: object, value: object) -> object:
    """A sole tensor in the candidate's shape with its numbers in order, where no order of
    dimensions is to be read; else the value as it is."""
    if not isinstance(own, torch.Tensor) or not isinstance(value, torch.Tensor):
        return value
    if own.numel() != value.numel() or in_shape_of(own, value) is not None:
        return value
    return value.reshape(own.shape)


def _ranks(value: object) -> dict[str, int]:
    """How many dimensions each tensor has, by its path: what a form fixes when sizes differ."""
    return {path: tensor.dim() for path, tensor in tensor_leaves(value, "")}


def _read_as(candidate: Call, output: object) -> object:
    """Another output read back as that of the candidate's call."""
    return read_output("candidate", replace(candidate, output=output))


def _leave(
    reference: object, candidate: object, dtypes: set[torch.dtype], device: torch.device | None
) -> None:
    """Makes the candidate's list, dict or object hold what the reference's does."""
    value: Any = in_form_of(candidate, reference, dtypes, device)
    if value is None or value is candidate:
        return
    if isinstance(candidate, list):
        candidate[:] = value
    elif isinstance(candidate, MutableMapping):
        candidate.clear()
        candidate.update(value)
    else:
        vars(candidate).update(vars(value))


def in_form_of(
    candidate: object,
    reference: object,
    dtypes: set[torch.dtype],
    device: torch.device | None,
) -> object | None:
    """A copy of the reference's value in the candidate's structure and on its devices.

    Floats take the candidate's dtype, unless the reference's is among `dtypes`, those that the
    candidate works in at this call: another dtype is then part of what went wrong.

    Args:
        device: where the candidate works at this call, for tensors where the candidate has
            none; None to leave them where they are.

    Returns:
        None where none of the candidate's tensors has a counterpart.
    """
    tensors = dict(tensor_leaves(candidate, ""))
    theirs = {path.removeprefix("."): leaf for path, leaf in leaves(reference, "")}
    if not tensors or not any(isinstance(leaf, torch.Tensor) for leaf in theirs.values()):
        made: object = deep_copy(reference, lambda t: t.detach().to(device, copy=True))
        return made
    names = {other: own for own, other in nested_otherwise(reference, candidate).items()}
    copies: dict[str, object] = {
        path: theirs[path.removeprefix(".")]
        for path, _ in leaves(candidate, "")
        if path not in tensors and path.removeprefix(".") in theirs and not names
    }
    for path, own in tensors.items():
        value = theirs.get(names.get(path.removeprefix("."), path.removeprefix(".")))
        shaped = _in_own_shape(own, value) if isinstance(value, torch.Tensor) else None
        if shaped is None:
            continue  # what the reference does not have stays as it is
        is_cast = own.is_floating_point() and shaped.is_floating_point()
        dtype = own.dtype if is_cast and shaped.dtype not in dtypes else shaped.dtype
        copies[path] = copied(shaped).to(own.device, dtype)
    if not any(path in copies for path in tensors):
        return None
    return replace_leaves(candidate, "", copies)


def _in_own_shape(own: torch.Tensor, value: torch.Tensor) -> torch.Tensor | None:
    """A tensor of the reference's in the candidate's shape; as it is where that is another one."""
    shaped = in_shape_of(own, value)
    return value if shaped is None else shaped[0]


def device_of(arguments: Mapping[str, object]) -> torch.device | None:
    """Where a call's arguments are; None without tensors among them."""
    return next((tensor.device for _, tensor in tensor_leaves(dict(arguments), "")), None)


def _float_dtypes(arguments: Mapping[str, object]) -> set[torch.dtype]:
    return {
        leaf.dtype for _, leaf in tensor_leaves(dict(arguments), "") if leaf.is_floating_point()
    }
