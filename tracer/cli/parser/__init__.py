"""The arguments of the command line become one frozen request; wrong use is said in one line.

Nothing here takes time to import: help and wrong use are answered without PyTorch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tracer
from tracer.cli.exit_codes import ExitCode, exit_codes
from tracer.cli.parser import ablate, compare, record, show
from tracer.cli.parser.common import Commands, Parser
from tracer.cli.requests import RecordRequest, Request, ShowRequest
from tracer.errors import near_names

# What adds each command, and what makes its request of the options that were given.
_Command = tuple[Callable[[Commands], Parser], Callable[[dict[str, Any]], Request]]
_COMMANDS: Mapping[str, _Command] = {
    "compare": (compare.add, compare.request),
    "record": (record.add, lambda given: RecordRequest(**given)),
    "show": (show.add, lambda given: ShowRequest(**given)),
    "ablate": (ablate.add, ablate.request),
}


def make_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command line, and those of its commands by their names."""
    parser = Parser(
        prog="trace_model",
        description="Finds where two PyTorch models that should agree stop agreeing, and why.",
        epilog=exit_codes(),
    )
    parser.add_argument("--version", action="version", version=f"trace_model {tracer.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    return parser, {name: add(commands) for name, (add, _) in _COMMANDS.items()}


def parse(arguments: Sequence[str]) -> Request:
    """Reads the arguments of the command line.

    What they name need not exist, but for files that are read or written; see `checks.check`.

    Raises:
        SystemExit: they make no sense, which has been said; or help was asked for.
        UsageError: names that do not go together.
    """
    parser, commands = make_parser()
    if not arguments:
        parser.print_help()
        parser.exit(ExitCode.WRONG_USE)
    options, unknown = parser.parse_known_args(arguments)
    given = vars(options)
    command = given.pop("command")
    if unknown:
        chosen = commands.get(command, parser)
        known = [name for action in chosen._actions for name in action.option_strings]
        near = near_names(unknown[0], known)
        chosen.error(f"unknown option or argument {unknown[0]!r}{near}")
    if command is None:
        parser.error(f"expected a command: {', '.join(commands)}")
    _, request = _COMMANDS[command]
    return request({name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
