"""`trace_model record`: its options."""

from tracer.choices import VALUES
from tracer.cli.parser.common import (
    Commands,
    Parser,
    add_candidate,
    add_include,
    add_making,
    add_model,
)


def add(commands: Commands) -> Parser:
    """Adds the command and its options."""
    parser = commands.add_parser(
        "record",
        help="write what goes through a model to disk, to compare with it elsewhere or later",
        description=(
            "Runs a model once and writes what goes in and out of its modules to a folder, which "
            "can stand for a model in `trace_model compare`."
        ),
    )
    add_model(parser)
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="the folder to make: run.trace"
    )
    add_candidate(parser)
    add_include(parser, "record")
    parser.add_argument(
        "--values",
        choices=VALUES,
        help=(
            "arguments and outputs; outputs alone; or fingerprints of 176 bytes instead of "
            "each tensor, from which differences are estimated (default: "
            f"{VALUES[0]})"
        ),
    )
    add_making(parser)
    return parser
