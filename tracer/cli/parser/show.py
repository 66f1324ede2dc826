"""`trace_model show`: its options."""

from tracer.cli.parser.common import (
    Commands,
    Parser,
    add_candidate,
    add_include,
    add_making,
    add_model,
)
from tracer.cli.types import PRINT_OPTIONS, print_option


def add(commands: Commands) -> Parser:
    """Adds the command and its options."""
    parser = commands.add_parser(
        "show",
        help="print what goes through one model, or a trace of one",
        description=(
            "Prints each call of a model's modules with its arguments and its output: shape, "
            "dtype, mean, min, max and standard deviation, and quantization points where there are."
        ),
    )
    add_model(parser, "; or a trace")
    add_candidate(parser)
    add_include(parser, "show")
    parser.add_argument(
        "--focus",
        action="append",
        metavar="GLOB",
        help="print the values themselves of matching modules (repeatable)",
    )
    parser.add_argument(
        "--print-options",
        action="append",
        type=print_option,
        metavar="KEY=VALUE",
        help=f"how tensors are printed: torch's {', '.join(PRINT_OPTIONS)} (repeatable)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--tree", action="store_true", help="one line per call, indented")
    form.add_argument("--json", action="store_true", help="print JSON and nothing else")
    add_making(parser)
    return parser
