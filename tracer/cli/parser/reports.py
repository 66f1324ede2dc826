"""`trace_model diff` and `trace_model history`: the options of what reads reports."""

from pathlib import Path

from tracer.choices import FAIL_ON
from tracer.cli.parser.common import Parser
from tracer.cli.types import count, file


def add_diff_options(parser: Parser) -> None:
    """Adds the options of `diff`."""
    for name, what in (("former", "the report that is the baseline"), ("now", "the newer one")):
        parser.add_argument(name, type=file, metavar=f"{name.upper()}.json", help=what)
    parser.add_argument(
        "--fail-on",
        choices=FAIL_ON,
        help=f"as for compare (default: {FAIL_ON[1]})",
    )
    parser.add_argument(
        "--baseline-any",
        action="store_true",
        help="compare reports of different models or inputs too, which is refused otherwise",
    )
    parser.add_argument("--exit-skip", type=count(2, 255), metavar="CODE", help="as for compare")
    parser.add_argument("--all", action="store_true", help="every change, none left out")


def add_history_options(parser: Parser) -> None:
    """Adds the options of `history`."""
    parser.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="a folder of .json reports, also in folders inside it",
    )
    parser.add_argument(
        "--module",
        metavar="GLOB",
        help="the figures are the worst of the outputs of matching modules (default: of the "
        "model's own output)",
    )
