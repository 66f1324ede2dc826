"""Which lines are named for the culprit's steps."""

import inspect
from collections.abc import Sequence
from difflib import SequenceMatcher
from types import CodeType
from typing import Any

from tracer.diagnosis.zoom.case import Culprit, ZoomKind
from tracer.diagnosis.zoom.operations import Operation, OperationLog, at_line, described
from tracer.diagnosis.zoom.statements import deciding
from tracer.execution.hooks import Location
from tracer.execution.sources import Line

# How much of its lines an edited copy of a function has in common with it.
_COPIED = 0.5
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
        instead = None
        if culprit.kind is ZoomKind.MISSING and expected is not None:
            instead = _in_its_place(reference.steps[expected].lines, candidate)
        own = instead or own_line(candidate, step, reference)
        return own, own_line(reference, expected, candidate)
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


def _in_its_place(lines: Sequence[Line], candidate: OperationLog) -> Operation | None:
    """What an edited copy of the reference's function has where the reference has some lines.

    Args:
        lines: those at which the reference makes what was left out, the innermost first.
        candidate: the side that leaves it out.
    """
    run = {line: index for index, s in reversed([*enumerate(candidate.steps)]) for line in s.lines}
    for code, number in lines:
        copies = {c for c, _ in run if c.co_name == code.co_name and _source(c) != _source(code)}
        for copy in sorted(copies, key=lambda c: c.co_qualname != code.co_qualname):
            line = copy, _changed_line(code, number, copy)
            if line in run:
                return described(candidate, run[line], line)
            if line[1]:
                return at_line(
                    "no operation", Location(copy.co_filename, line[1], copy.co_qualname)
                )
    return None


def _changed_line(code: CodeType, number: int, copy: CodeType) -> int:
    """The line that a copy of some code has instead of one of its lines; 0 if that is the same
    there, or the two have too little in common."""
    try:
        (own, first), (others, start) = (inspect.getsourcelines(each) for each in (code, copy))
    except OSError:  # there is no source
        return 0
    texts = [[line.strip() for line in side] for side in (own, others)]
    matcher = SequenceMatcher(None, texts[0], texts[1], autojunk=False)
    if matcher.ratio() < _COPIED:
        return 0
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "replace" and a <= number - first < b:
            return start + min(c + number - first - a, d - 1)
    return 0


def _source(code: CodeType) -> _Source:
    """What a piece of code does, wherever it was read from."""
    constants = (_source(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts)
    return code.co_qualname, code.co_code, code.co_names, tuple(constants)
