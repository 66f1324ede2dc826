"""What can be asked of a comparison beside the verdict, grouped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trace_model.annotations import checked
from tracer.debugger.breakpoints import Breakpoint
from tracer.errors import UsageError


@checked(UsageError)
@dataclass(frozen=True)
class Isolate:
    """How much of the error modules introduce themselves, measured in further runs.

    Attributes:
        level: "leaves", "blocks", "layers" or a glob of the reference's module names; see
            `tracer.isolation.levels`.
        what_if: how many of the modules that introduce most are swapped for the reference's, to see
            how far the final output recovers.
        causes: whether to look for the quantization points that explain most. Of modules that are
            alike but for their layer the worst one is looked into, and stands for the others; none
            of those that introduce less than 1 % of the error together. "all" looks into each
            module that introduces any, which takes longer than all the rest.

    Raises:
        UsageError: the number is negative.
    """

    level: str = "leaves"
    what_if: int = 0
    causes: bool | Literal["all"] = True

    def __post_init__(self) -> None:
        if self.what_if < 0:
            raise UsageError(
                f"what_if {self.what_if}: expected how many modules to swap, at least 0"
            )


@checked(UsageError)
@dataclass(frozen=True)
class Debugging:
    """Where the debugger opens, with both models at the same call.

    Attributes:
        breakpoints: globs of module names, the reference's or the candidate's, or `Breakpoint`s. A
            run that is ended there returns what it has compared, with `coverage.ended`.
        post_mortem: it also opens where a model raises.
        debugger: "ipdb" or "pdb"; by default what PYTHONBREAKPOINT says, or ipdb in a terminal and
            pdb elsewhere.
    """

    breakpoints: str | Breakpoint | Sequence[str | Breakpoint] = ()
    post_mortem: bool = False
    debugger: str | None = None

    @property
    def is_asked(self) -> bool:
        """Whether it opens anywhere."""
        return bool(self.breakpoints) or self.post_mortem


def what_to_isolate(
    isolate: str | Isolate | None, what_if: int, *, causes: bool | Literal["all"]
) -> Isolate | None:
    """What to isolate; None for nothing."""
    if isinstance(isolate, Isolate):
        if what_if or causes is not True:
            raise UsageError("what_if and causes: expected them in the Isolate that is given")
        return isolate
    level = {} if isolate is None else {"level": isolate}
    asked = Isolate(**level, what_if=what_if, causes=causes)
    return asked if isolate is not None or what_if else None
