"""A parser whose options are the fields of a request."""

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NoReturn

from tracer.choices import COLORS, LOG_LEVELS
from tracer.cli.exit_codes import ExitCode
from tracer.cli.requests import flag
from tracer.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Parser(argparse.ArgumentParser):
    """Gives what was given and nothing else, and says what is wrong in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False, argument_default=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        self.exit(ExitCode.WRONG_USE, f"{self.prog}: {message}; see {self.prog} --help\n")


class StrictParser(Parser):
    """Raises what is wrong, for those who know where it was written."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def add_output(parser: Parser) -> None:
    """Adds the options of every command that say how much is printed: the fields of `Output`."""
    group = parser.add_argument_group("what is printed")
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        *("-q", "--quiet"),
        action="store_true",
        help="the verdict, or what became of all checks, in one line; no progress, and of what "
        "is logged errors alone",
    )
    either.add_argument(
        *("-v", "--verbose"),
        action="store_true",
        help="also what is done on the way, and the traceback of an error of trace_model's own",
    )
    group.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        help="of what trace_model and the libraries under it log to standard error (default: "
        "error with -q, what each of them does by itself without)",
    )
    group.add_argument(
        "--color",
        choices=COLORS,
        help=f"auto: on a terminal, unless NO_COLOR or FORCE_COLOR says so (default: {COLORS[0]})",
    )


def add_fields(parser: Parser, request: "type[DataclassInstance]") -> None:
    """Adds the options that a request declares, its own first."""
    declared = {field.name: dict(field.metadata) for field in fields(request) if field.metadata}
    own = [name for name in request.__annotations__ if name in declared]
    alternatives = None
    for names in (own, [name for name in declared if name not in own]):
        place: argparse._ActionsContainer = parser
        for name in names:
            settings = declared[name]
            if "group" in settings:
                place = parser.add_argument_group(settings.pop("group"))
            strings = settings.pop("names", (flag(name),))
            if settings.pop("exclusive", False):
                alternatives = alternatives or place.add_mutually_exclusive_group()
                alternatives.add_argument(*strings, **settings)
            else:
                place.add_argument(*strings, **settings)
