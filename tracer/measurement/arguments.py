"""Arguments and outputs of both sides, paired and in the same form.

A module whose form differs on purpose from that of the model it was made from says how to read it
back, by `to_reference_output(output)` and `to_reference_input(name, value)`; nothing else is known
of it. As a rule that is the candidate's; a reference that was made in the same way is read back
too.
"""

from collections.abc import Iterator

import torch
from torch import nn

from tracer.errors import ModelRunError
from tracer.execution.hooks import Call
from tracer.tensors.masks import is_mask_name


def read_output(side: str, call: Call) -> object:
    """An output, read back where its module says how.

    Args:
        side: "reference" or "candidate".
        call: one that has ended.
    """
    convert = getattr(call.module, "to_reference_output", None)
    if convert is None:
        return call.output
    try:
        return convert(call.output)
    except Exception as error:
        raise ModelRunError(
            f"to_reference_output of the {side}'s module {call.name!r} raised "
            f"{type(error).__name__}: {error}"
        ) from error


def read_argument(side: str, call: Call, name: str, value: object) -> object:
    """A value of an argument, read back where the call's module says how.

    Args:
        side: "reference" or "candidate".
        name: the reference's name of the argument.
    """
    convert = getattr(call.module, "to_reference_input", None)
    if convert is None:
        return value
    try:
        return convert(name, value)
    except Exception as error:
        raise ModelRunError(
            f"to_reference_input of the {side}'s module {call.name!r} raised "
            f"{type(error).__name__} for {name!r}: {error}"
        ) from error


def argument_names(reference: Call, candidate: Call) -> dict[str, str]:
    """The candidate's name of an argument by the reference's.

    By name, else by position; and what is left of attention masks, if it is one on each side.
    """
    names = {name: name for name in candidate.arguments if name in reference.arguments}
    for left, right in zip(reference.positional, candidate.positional, strict=False):
        if left not in names and right not in names.values():
            names[left] = right
    masks = [name for name in reference.arguments if is_mask_name(name) and name not in names]
    own = [n for n in candidate.arguments if is_mask_name(n) and n not in names.values()]
    if len(masks) == len(own) == 1:
        names[masks[0]] = own[0]
    return names


def paired_arguments(reference: Call, candidate: Call) -> Iterator[tuple[str, object, object]]:
    """Yields (the reference's parameter name, its value, the candidate's in the same form).

    An argument that one side does not pass counts as None there.
    """
    own_names = {own: name for name, own in argument_names(reference, candidate).items()}
    values = {}
    for own, value in candidate.arguments.items():
        name = own_names.get(own, own)
        values[name] = read_argument("candidate", candidate, name, value)
    for name, value in reference.arguments.items():
        yield name, read_argument("reference", reference, name, value), values.pop(name, None)
    for name, value in values.items():
        yield name, None, value


def output_factor(module: nn.Module) -> float | None:
    """The factor that a module's output carries over what it declares; 1 if it declares nothing.

    None where it declares something else than a factor: another shape, say.
    """
    convert = getattr(module, "to_reference_output", None)
    if convert is None:
        return 1.0
    probe = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # no two alike: an order is no factor
    try:
        read = convert(probe)
    except Exception:  # whatever a method raises that was written for another kind of value
        return None
    if not isinstance(read, torch.Tensor) or read.shape != probe.shape:
        return None
    factor = 1.0 / read[0, 0].item() if read[0, 0] else 0.0
    return factor if torch.allclose(read * factor, probe) else None


def is_of_one_form(reference: Call, candidate: Call, method: str) -> bool:
    """Whether a value of the reference's can take the candidate's place as it is.

    Args:
        method: which of the two would have to read it back.
    """
    declared = [hasattr(call.module, method) for call in (reference, candidate)]
    return not any(declared) or (all(declared) and type(reference.module) is type(candidate.module))
