"""A parser whose options are the fields of a request."""

import argparse
from dataclasses import fields
from typing import Any, NoReturn

from tracer.cli.exit_codes import ExitCode
from tracer.cli.requests import ModelRequest, flag


class Parser(argparse.ArgumentParser):
    """Gives what was given and nothing else, and says what is wrong in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False, argument_default=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        self.exit(ExitCode.WRONG_USE, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_fields(parser: Parser, request: type[ModelRequest]) -> None:
    """Adds the options that a request declares, its own first."""
    declared = {field.name: dict(field.metadata) for field in fields(request)}
    own = list(request.__annotations__)
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
