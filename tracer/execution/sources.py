"""Modules that compute what was written elsewhere: the parts of an exported graph.

Their own frames are the tracer's, which say nothing. What they are computing now, and from where
they call the modules inside them, they say themselves, as lines of the original source.
"""

from types import CodeType
from typing import Protocol, runtime_checkable

# A line that was being executed: the code, and the number of the line.
Line = tuple[CodeType, int]


@runtime_checkable
class Sourced(Protocol):
    """A module that runs no source of its own."""

    @property
    def defined_at(self) -> Line | None:
        """Where the forward that it computes is defined; None where that is not known."""

    def computing_at(self) -> tuple[Line, ...]:
        """The lines of that forward that it computes now, the innermost first."""
