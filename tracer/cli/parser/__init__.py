"""The arguments of the command line become one frozen request; wrong use is said in one line.

Nothing here takes time to import: help and wrong use are answered without PyTorch.
"""

from collections.abc import Mapping, Sequence

import tracer
from tracer.cli.completion import complete
from tracer.cli.configuration import standing
from tracer.cli.exit_codes import ExitCode, exit_codes
from tracer.cli.keys import Keys
from tracer.cli.parser import ablate, check, compare, reports
from tracer.cli.parser.common import Parser, add_fields, add_output
from tracer.cli.parser.export import ExportRequest
from tracer.cli.parser.quantize import QuantizeRequest
from tracer.cli.report_requests import DiffRequest, HistoryRequest
from tracer.cli.requests import (
    CompareRequest,
    RecordRequest,
    Request,
    ShowRequest,
)
from tracer.cli.streams import Output
from tracer.errors import near_names

# The commands: what each does, in short and in full.
_COMMANDS: Mapping[str, tuple[str, str]] = {
    "compare": (
        "run a model and a candidate side by side and say where they diverge",
        "Runs a model and a candidate side by side on the same inputs and says where they diverge, "
        "and why.",
    ),
    "check": (
        "run the comparisons that the configuration names, with one summary and one exit code",
        "Runs the checks of pyproject.toml ([tool.trace_model.checks.NAME]) or trace_model.toml, "
        "each what `trace_model compare` would be with its keys as options. One that fails does "
        "not stop the others.",
    ),
    "record": (
        "write what goes through a model to disk, to compare with it elsewhere or later",
        "Runs a model once and writes what goes in and out of its modules to a folder, which can "
        "stand for a model in `trace_model compare`.",
    ),
    "show": (
        "print what goes through one model, or a trace of one",
        "Prints each call of a model's modules with its arguments and its output: shape, dtype, "
        "mean, min, max and standard deviation, and quantization points where there are.",
    ),
    "diff": (
        "say what has changed between two reports, without any model",
        "Reads two .json reports and prints the gate's table: which outputs are worse, better, "
        "gone and new, and whether the gate would pass.",
    ),
    "history": (
        "show the reports of many commits as a table and a curve",
        "Reads the .json reports of a folder and prints, in the order of their commits, the exit "
        "code, the verdict and the figures of each.",
    ),
    "quantize": (
        "quantise a model by a recipe, and write it with its figures and graphs",
        "Quantises a model as a recipe says (algorithms, calibration data, overrides, evaluation, "
        "export) and writes a folder that `trace_model compare` takes as a candidate and "
        "wrappers.load() loads without calibration.",
    ),
    "export": (
        "quantise a model and write it, or a part of it, as a graph",
        "Quantises a model as `trace_model compare --candidate quantized` does, and writes it or a "
        "part of it as a graph of static shapes, for torch (.pt2) or an accelerator (.circle).",
    ),
    "ablate": (
        "study which settings of the quantiser are better, and how sure that is",
        "Quantises a model with many settings, measures each with several calibration sets, and "
        "says what the figures speak for. A study that was killed goes on where it was.",
    ),
}


def make_parser(kind: type[Parser] = Parser) -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command line, and those of its commands by their names."""
    parser = kind(
        prog="trace_model",
        description="Finds where two PyTorch models that should agree stop agreeing, and why.",
        epilog=exit_codes(),
    )
    parser.add_argument("--version", action="version", version=f"trace_model {tracer.__version__}")
    added = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands: dict[str, Parser] = {
        name: added.add_parser(name, help=short, description=text)
        for name, (short, text) in _COMMANDS.items()
    }
    commands["compare"].epilog = (
        f"{exit_codes()}. With a quantised candidate differences are expected: only a limit "
        "(--tolerance, --max-peir, --min-sqnr, ...) or a --baseline makes it 1. --fail-on says "
        "what does."
    )
    add_fields(commands["compare"], CompareRequest)
    add_fields(commands["record"], RecordRequest)
    add_fields(commands["show"], ShowRequest)
    reports.add_diff_options(commands["diff"])
    reports.add_history_options(commands["history"])
    add_fields(commands["export"], ExportRequest)
    add_fields(commands["quantize"], QuantizeRequest)
    ablate.add_options(commands["ablate"])
    check.add_options(commands["check"])
    commands["check"].epilog = (
        f"{exit_codes()}. The exit code is that of the worst check: 3 before 2, 2 before 1, 1 "
        "before 0"
    )
    for command in commands.values():
        add_output(command)
    return parser, commands


def parse(
    arguments: Sequence[str], kind: type[Parser] = Parser
) -> Request | ExportRequest | QuantizeRequest:
    """Reads the arguments of the command line.

    What they name need not exist, but for files that are read or written; see `checks.check`.

    Raises:
        SystemExit: they make no sense, which has been said; or help was asked for.
        UsageError: names that do not go together, or what environment or configuration give.
    """
    parser, commands = make_parser(kind)
    complete(parser, commands)
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
    keys = Keys(commands[command])
    given = standing(keys, with_file=command != "check") | given
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    told = {name: given.pop(name) for name in Output.__annotations__ if name in given}
    given["output"] = Output(**told)
    match command:
        case "check":
            return check.request(given)
        case "compare":
            return compare.request(given)
        case "record":
            return RecordRequest(**given)
        case "show":
            return ShowRequest(**given)
        case "diff":
            return DiffRequest(**given)
        case "history":
            return HistoryRequest(**given)
        case "export":
            return ExportRequest(**given)
        case "quantize":
            return QuantizeRequest(**given)
        case _:
            return ablate.request(given)
