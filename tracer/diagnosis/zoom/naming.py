"""Which lines are named for the culprit's steps."""

from types import CodeType
from typing import Any

from tracer.diagnosis.zoom.case import Culprit
from tracer.diagnosis.zoom.operations import Operation, OperationLog, at_line, described
from tracer.diagnosis.zoom.statements import deciding
from tracer.execution.hooks import Location

# Name, bytecode, names and constants.
_Source = tuple[Any, ...]


def named_operations(
    reference: OperationLog, candidate: OperationLog, culprit: Culprit
) -> tuple[Operation | None, Operation | None]:
    """The candidate's operation, and what the reference does there.

    Where a loop or a condition decides that a line runs less often, it is named instead.
    """
    step, expected = culprit.step, culprit.expected
    lines = None if expected is None else deciding(expected, reference, candidate)
    if lines is None and step is not None:
        turned = deciding(step, candidate, reference)
        lines = None if turned is None else turned[::-1]
    if lines is None:
        return own_line(candidate, step, reference), own_line(reference, expected, candidate)
    theirs, own = (
        at_line("statement", Location(code.co_filename, number, code.co_qualname))
        for code, number in lines
    )
    return own, theirs


def own_line(recording: OperationLog, index: int | None, other: OperationLog) -> Operation | None:
    """A step at its innermost line of code that the other side does not run as well.

    A helper that both sides share is no mistake; the line that calls it may be.
    """
    if index is None:
        return None
    shared = {_source(code) for step in other.steps for code, _ in step.lines}
    lines = recording.steps[index].lines
    line = next((line for line in lines if _source(line[0]) not in shared), None)
    return described(recording, index, line)


def _source(code: CodeType) -> _Source:
    """What a piece of code does, wherever it was read from."""
    constants = (_source(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts)
    return code.co_qualname, code.co_code, code.co_names, tuple(constants)
