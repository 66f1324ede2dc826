"""The loop or the condition that makes one side run a line fewer times than the other.

A layer that is not called leaves no operation behind. Where each line of a loop's body runs fewer
times, or a branch runs on one side alone, the statement above it is what differs.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from types import CodeType

from tracer.diagnosis.zoom.operations import OperationLog, Step
from tracer.execution.sources import Line

_Statement = ast.For | ast.While | ast.If


def deciding(index: int, recording: OperationLog, other: OperationLog) -> tuple[Line, Line] | None:
    """The statement that decides on a step of one side, where the other does not run it as often.

    Args:
        index: the step.
        recording: of the side that makes the step.
        other: of the other side.

    Returns:
        Its line on this side and on the other one, in the function of the same name.
    """
    for code, number in recording.steps[index].lines:
        peer = _function(code.co_qualname, other.steps)
        if peer is None or _is_same(peer, code):
            continue
        shift = peer.co_firstlineno - code.co_firstlineno
        for statement in _around(code, number):
            if _is_cut(statement, code, recording, peer, other):
                return (code, statement.lineno), (peer, statement.lineno + shift)
    return None


def _is_cut(
    statement: _Statement, code: CodeType, own: OperationLog, peer: CodeType, other: OperationLog
) -> bool:
    """Whether the other side runs each line of a loop fewer times, or none of a branch."""
    shift = peer.co_firstlineno - code.co_firstlineno
    body = _span(statement.body)
    runs = {line: _runs(own.steps, code, line) for line in body}
    ran = {line: count for line, count in runs.items() if count}
    theirs = {line: _runs(other.steps, peer, line + shift) for line in ran}
    if not ran:
        return False
    if isinstance(statement, ast.If):
        is_elsewhere = any(
            _runs(other.steps, peer, line + shift) for line in _span(statement.orelse)
        )
        return not any(theirs.values()) and (is_elsewhere or len(ran) > 1)
    is_shorter = all(theirs[line] < count for line, count in ran.items())
    return is_shorter and (any(theirs.values()) or len(ran) > 1)


def _function(name: str, steps: Iterable[Step]) -> CodeType | None:
    """The code of that name which steps run through."""
    codes = (code for step in steps for code, _ in step.lines)
    return next((code for code in codes if code.co_qualname == name), None)


def _is_same(peer: CodeType, code: CodeType) -> bool:
    """Whether two pieces of code are one, or were read from one place."""
    return peer is code or (peer.co_filename == code.co_filename and peer == code)


def _runs(steps: Iterable[Step], code: CodeType, line: int) -> int:
    """How many operations a line has made."""
    return sum((code, line) in step.lines for step in steps)


def _span(statements: Sequence[ast.stmt]) -> range:
    """The lines of some statements."""
    if not statements:
        return range(0)
    return range(statements[0].lineno, (statements[-1].end_lineno or 0) + 1)


def _around(code: CodeType, line: int) -> Iterator[_Statement]:
    """The loops and conditions whose body a line of a function lies in, the innermost first."""
    inside = [s for s in _statements(code) if line in _span(s.body)]
    yield from sorted(inside, key=lambda s: -s.lineno)
    # The other branch of a condition.
    for statement in _statements(code):
        if isinstance(statement, ast.If) and line in _span(statement.orelse):
            turned = ast.If(statement.test, statement.orelse, statement.body)
            yield ast.copy_location(turned, statement)


@lru_cache(maxsize=16)
def _statements(code: CodeType) -> tuple[_Statement, ...]:
    """A function's loops and conditions, with the lines of its file; none without source."""
    try:
        source, first = inspect.getsourcelines(code)
        tree = ast.parse(textwrap.dedent("".join(source)))
    except (OSError, TypeError, SyntaxError):
        return ()
    ast.increment_lineno(tree, first - 1)
    return tuple(n for n in ast.walk(tree) if isinstance(n, ast.For | ast.While | ast.If))
