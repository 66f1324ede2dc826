"""A candidate's arguments and outputs, paired with the reference's and in its form.

A module whose form differs on purpose says how to read it back, by `to_reference_output(output)`
and `to_reference_input(name, value)`; nothing else is known of it.
"""

from collections.abc import Iterator

from tracer.calls import Call
from tracer.errors import ModelRunError


def reference_output(candidate: Call) -> object:
    """A candidate's output, read back into the reference's form where its module says how."""
    convert = getattr(candidate.module, "to_reference_output", None)
    if convert is None:
        return candidate.output
    try:
        return convert(candidate.output)
    except Exception as error:
        raise ModelRunError(
            f"to_reference_output of the candidate's module {candidate.name!r} raised "
            f"{type(error).__name__}: {error}"
        ) from error


def argument_names(reference: Call, candidate: Call) -> dict[str, str]:
    """The candidate's name of an argument by the reference's: by name, else by position."""
    names = {name: name for name in candidate.arguments if name in reference.arguments}
    for left, right in zip(reference.positional, candidate.positional, strict=False):
        if left not in names and right not in names.values():
            names[left] = right
    return names


def paired_arguments(reference: Call, candidate: Call) -> Iterator[tuple[str, object, object]]:
    """Yields (the reference's parameter name, its value, the candidate's in the same form).

    An argument that one side does not pass counts as None there.
    """
    own_names = {own: name for name, own in argument_names(reference, candidate).items()}
    values = {}
    for own, value in candidate.arguments.items():
        name = own_names.get(own, own)
        values[name] = _reference_input(candidate, name, value)
    for name, value in reference.arguments.items():
        yield name, value, values.pop(name, None)
    for name, value in values.items():
        yield name, None, value


def _reference_input(candidate: Call, name: str, value: object) -> object:
    convert = getattr(candidate.module, "to_reference_input", None)
    if convert is None:
        return value
    try:
        return convert(name, value)
    except Exception as error:
        raise ModelRunError(
            f"to_reference_input of the candidate's module {candidate.name!r} raised "
            f"{type(error).__name__} for {name!r}: {error}"
        ) from error
