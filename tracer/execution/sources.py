"""Lines of source, and modules that compute what was written elsewhere: parts of a graph.

The frames of such a module are the tracer's, which say nothing. What it is computing now, and from
where it calls the modules inside, it says itself, as lines of the original source.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Protocol, TypeGuard

import torch

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"

# A line that was being executed: the code, and the number of the line.
Line = tuple[CodeType, int]


@dataclass(frozen=True, slots=True)
class Location:
    """A line of source: the file's path, the line number and the function around it."""

    file: str
    line: int
    function: str

    @property
    def is_in_torch(self) -> bool:
        """Whether the file is part of PyTorch itself."""
        return self.file.startswith(_TORCH)

    @classmethod
    def of(cls, line: Line) -> "Location":
        """Where a line of some code is."""
        code, number = line
        return cls(code.co_filename, number, code.co_qualname)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Sourced(Protocol):
    """A module that runs no source of its own."""

    @property
    def defined_at(self) -> Line | None:
        """Where the forward that it computes is defined; None where that is not known."""

    def computing_at(self) -> tuple[Line, ...]:
        """The lines of that forward that it computes now, the innermost first."""


def is_sourced(owner: object) -> TypeGuard[Sourced]:
    """Whether a module runs no source of its own."""
    return hasattr(type(owner), "computing_at")
