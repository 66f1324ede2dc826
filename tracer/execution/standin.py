"""What can be a side of a comparison without being a module that runs under hooks.

A recording does not run at all; a model that runs once over all positions is compared as if it had
stepped. Both report their calls as events, and say what can be done with them. The room of each
implements this protocol; the rest of the tracer asks it and knows of no other room.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import nn

from tracer.execution.hooks import Answer, Call, Phase

Arguments = tuple[tuple[object, ...], dict[str, object]]


class EventSource(Protocol):
    """The calls of one run of a stand-in."""

    def note(self, call: Call, phase: Phase) -> Answer:
        """An event of its forward pass, where it has one."""

    def events(self) -> Iterator[tuple[Call, Phase]]:
        """Yields each start and end of a call, in the order in which they are compared."""

    def counts(self) -> Mapping[str, int] | None:
        """How often each module was called so far; None where the forward pass says it."""


class StandIn(nn.Module):
    """A side that is not run under hooks; see the module's docstring.

    A recording and a stepped reference are stand-ins; so is whatever else reports its calls itself.
    """

    @property
    def label(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @property
    def computes(self) -> bool:
        """Whether its forward is called on the inputs."""
        return True

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype that it works in, where its parameters do not show it."""
        return None

    @property
    def unavailable(self) -> frozenset[str]:
        """Names of modules whose calls it does not report."""
        return frozenset()

    @property
    def inputs_are_whole(self) -> bool:
        """Whether a model can be run on the inputs that it was made with."""
        return True

    def inputs(self) -> Arguments | None:
        """The positional and keyword arguments that it was made with; None if it takes any."""
        return None

    def why_not_run_again(self, side: str) -> str:
        """Why a further run with values replaced is impossible, in a clause; empty if it is not.

        Args:
            side: "reference" or "candidate", which it is.
        """
        return ""

    def check_counterpart(self, other: nn.Module, paired: int, modules: tuple[int, int]) -> None:
        """Checks that it was made from a model like the other side's.

        Args:
            paired: how many modules are paired, the roots not counted.
            modules: how many modules it and the other side have.

        Raises:
            TracerError: it was not.
        """

    @abstractmethod
    def event_source(self) -> EventSource:
        """The calls of one run."""
