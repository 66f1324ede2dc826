"""`trace_model check`: its options."""

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tracer.choices import SUMMARIES, VARIABLES
from tracer.cli import types
from tracer.cli.parser.common import Parser
from tracer.cli.requests import CheckRequest, ModelRequest, flag
from tracer.errors import UsageError

_ONE_OF = ("listing", "print_command", "update_baseline")


def add_options(parser: Parser) -> None:
    """Adds the options of the command; device, dtype and cache are those of `compare`."""
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="a check, or one of its input sets (port.padded); all of them without a name",
    )
    parser.add_argument(
        "--file",
        type=types.file,
        metavar="FILE.toml",
        help="the configuration (default: trace_model.toml, or pyproject.toml with "
        "[tool.trace_model], in the working directory or the nearest one above it)",
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--list", dest="listing", action="store_true", help="name the checks")
    either.add_argument(
        "--print-command",
        action="store_true",
        help="print what each check is as a `trace_model compare`, and run nothing",
    )
    either.add_argument(
        "--update-baseline",
        action="store_true",
        help="run the checks that have a baseline, write what they give as the new one, and say "
        "what has changed; nothing is written unless all of them come to their end",
    )
    parser.add_argument(
        "--report",
        action="append",
        type=_report,
        metavar="FILE",
        help="write all checks to one file as well: .xml (JUnit) or .md (repeatable)",
    )
    group = parser.add_argument_group("for every check, whatever it says itself")
    declared = {field.name: dict(field.metadata) for field in fields(ModelRequest)}
    for name in VARIABLES:
        settings = {key: value for key, value in declared[name].items() if key != "group"}
        group.add_argument(flag(name), **settings | {"help": "as for compare"})


def request(given: Mapping[str, Any]) -> CheckRequest:
    """The request of the options that were given.

    Raises:
        UsageError: options that do not go together.
    """
    made = CheckRequest(**given)
    for name in _ONE_OF:
        if made.report and getattr(made, name):
            raise UsageError(f"{flag('list' if name == 'listing' else name)} writes no --report")
    return made


def _report(text: str) -> Path:
    if Path(text).suffix.lower() not in SUMMARIES:
        raise argparse.ArgumentTypeError(
            f"the report {text} has the suffix {Path(text).suffix!r}: expected "
            f"{' or '.join(SUMMARIES)}; other reports are those of a check (report = ...)"
        )
    return types.report(text)
