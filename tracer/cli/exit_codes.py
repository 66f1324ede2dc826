"""What the process exits with. This is the one table of it: help and documents are made from it."""

from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """An exit code of `trace_model`.

    Attributes:
        meaning: in words.
    """

    meaning: str

    def __new__(cls, value: int, meaning: str) -> "ExitCode":
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code

    AGREES = 0, "the models agree"
    DIVERGES = 1, "they diverge"
    WRONG_USE = (
        2,
        "wrong use or bad input, or a run that was ended at a breakpoint, or a recording that was "
        "ended, before they diverged",
    )
    INTERNAL_ERROR = 3, "trace_model itself has failed, which is to be reported"
    INTERRUPTED = 130, "the run was interrupted from the keyboard"


def worst(codes: Iterable[int]) -> ExitCode:
    """The exit code that stands for several: 3 before 2, 2 before 1, 1 before 0."""
    return {int(code): code for code in ExitCode}[max(codes)]


def exit_codes() -> str:
    """The table in one sentence, for the end of help texts."""
    return f"exit codes: {', '.join(f'{code} {code.meaning}' for code in ExitCode)}"
