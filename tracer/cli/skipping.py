"""`--exit-skip CODE`: another exit code for what says nothing of the models.

`git bisect run` takes 1 to 124 for a bad commit and 125 for one that cannot be tested. A commit at
which the model cannot be built exits with 2, and would be called bad.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Protocol

from tracer.cli.exit_codes import ExitCode

_FLAG = "--exit-skip"
_SKIPPED = (ExitCode.WRONG_USE, ExitCode.INTERNAL_ERROR)


class Main(Protocol):
    """A main function; without arguments it takes those of the process."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def skipping(main: Main) -> Main:
    """A main function that exits with the code that is asked for instead of 2 and 3.

    That is looked for in the arguments themselves: they may make no sense at an older commit.
    """

    @functools.wraps(main)
    def skipped(argv: Sequence[str] | None = None) -> int:
        arguments = list(sys.argv[1:] if argv is None else argv)
        try:
            code = main(arguments)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else ExitCode.AGREES
        asked = _asked(arguments)
        return code if asked is None or code not in _SKIPPED else asked

    return skipped


def _asked(arguments: Sequence[str]) -> int | None:
    """The code that is asked for last; None without one that can be."""
    found = None
    for place, word in enumerate(arguments):
        name, separator, value = word.partition("=")
        if name == _FLAG:
            found = value if separator else next(iter(arguments[place + 1 :]), None)
    return int(found) if found is not None and found.isdecimal() and 1 < int(found) < 256 else None
