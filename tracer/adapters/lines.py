"""Where the operations of a graph were written: from the traces that exporters leave with them.

    File "modeling_llama.py", line 392, in forward
        hidden_states = decoder_layer(
    File "modeling_llama.py", line 295, in forward
        hidden_states = self.input_layernorm(hidden_states)

A trace has a frame of each forward on the way, the outermost first, and with some exporters those
of the functions between. So each module on the way has its own lines.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType

from tracer.execution.sources import Line

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
# PyTorch's own files on whatever machine; the tracer's lines leave them out everywhere.
_OF_TORCH = re.compile(r"[/\\]torch[/\\](nn|_dynamo|export|_export|fx|utils)[/\\]")


@dataclass(frozen=True, slots=True)
class Frame:
    """A line of a trace."""

    file: str
    line: int
    function: str

    @property
    def is_of_torch(self) -> bool:
        """Whether the file is part of PyTorch, as far as its name says."""
        return _OF_TORCH.search(self.file) is not None


@dataclass(frozen=True, slots=True)
class Written:
    """Where an operation was written, as a module on the way to it sees it: its own lines.

    Attributes:
        frames: those of the module's forward and of what that calls, the outermost first.
    """

    frames: tuple[Frame, ...]

    def lines(self) -> tuple[Line, ...]:
        """The lines outside PyTorch, the innermost first."""
        own = (frame for frame in reversed(self.frames) if not frame.is_of_torch)
        return tuple((_code(frame), frame.line) for frame in own)

    def beginning(self) -> Line | None:
        """Where the module's forward is defined."""
        if not self.frames:
            return None
        code = _code(self.frames[0])
        return code, code.co_firstlineno


def frames_in(trace: str | None) -> tuple[Frame, ...]:
    """The frames of a trace as it is printed."""
    return tuple(
        Frame(found["file"], int(found["line"]), found["function"])
        for found in _FRAME.finditer(trace or "")
    )


def by_depth(frames: Sequence[Frame], depth: int) -> list[Written]:
    """The lines of each module on the way, the root's first.

    Args:
        depth: how many modules are around an operation, the root not counted.
    """
    starts = [index for index, frame in enumerate(frames) if frame.function == "forward"]
    starts = starts[-depth - 1 :]
    if not starts:
        return [Written(())] * depth + [Written(tuple(frames))]
    ends = [*starts[1:], len(frames)]
    found = [Written(tuple(frames[a:b])) for a, b in zip(starts, ends, strict=True)]
    return [Written(())] * (depth + 1 - len(found)) + found


@lru_cache(maxsize=4096)
def _code(frame: Frame) -> CodeType:
    """The code that a frame ran; one that only says where it is, if the file is not here."""
    around = [
        code
        for code in _codes_of(frame.file)
        if code.co_name == frame.function and frame.line in _lines_of(code)
    ]
    if around:
        return max(around, key=lambda code: code.co_firstlineno)
    return _NOWHERE.replace(
        co_filename=frame.file,
        co_firstlineno=frame.line,
        co_name=frame.function,
        co_qualname=frame.function,
    )


@lru_cache(maxsize=64)
def _codes_of(file: str) -> tuple[CodeType, ...]:
    """All code in a file; none where it cannot be read."""
    try:
        module = compile(Path(file).read_bytes(), file, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError):
        return ()
    return tuple(_inside(module))


def _inside(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _inside(constant)


@lru_cache(maxsize=4096)
def _lines_of(code: CodeType) -> frozenset[int]:
    return frozenset(line for _, _, line in code.co_lines() if line is not None)


_NOWHERE = compile("", os.devnull, "exec")
