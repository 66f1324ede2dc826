"""`trace_model compare`: its options."""

from collections.abc import Mapping
from typing import Any

from tracer.choices import (
    BREAK_AT,
    BREAK_WHEN,
    CANDIDATES,
    DEBUGGERS,
    DEFAULT_CANDIDATE,
    FAIL_ON,
    ITSELF,
    LEVELS,
    NO_ISOLATION,
)
from tracer.cli.exit_codes import exit_codes
from tracer.cli.parser.common import Commands, Parser, add_making, add_model
from tracer.cli.requests import CompareRequest
from tracer.cli.types import baseline, count, limit, report, rule, tolerance
from tracer.errors import UsageError
from tracer.models.locate import is_trace
from tracer.reports import known_suffixes


def add(commands: Commands) -> Parser:
    """Adds the command and its options."""
    parser = commands.add_parser(
        "compare",
        help="run a model and a candidate side by side and say where they diverge",
        description=(
            "Runs a model and a candidate side by side on the same inputs and says where they "
            "diverge, and why."
        ),
        epilog=(
            f"{exit_codes()}. With a quantised candidate differences are expected: only a limit "
            "(--tolerance, --max-peir) or a --baseline makes it 1. --fail-on says what does."
        ),
    )
    kinds = "; ".join(f"{name}: {what}" for name, what in CANDIDATES.items())
    add_model(parser, "; or a trace, to be compared with --candidate")
    parser.add_argument(
        "--candidate",
        metavar="KIND|PATH",
        help=(
            f"the model under test (default: {DEFAULT_CANDIDATE}; with --reference or "
            f"--candidate-device the model itself). {kinds}; or the path "
            "of another model, of a trace, or of a function that makes a model, as for MODEL"
        ),
    )
    parser.add_argument(
        "--reference",
        metavar="TRACE",
        help="a trace of `trace_model record` instead of the model",
    )

    parser.add_argument(
        "--candidate-device",
        metavar="DEVICE",
        help=(
            "run the candidate on another device than the model: cuda, cuda:1, mps, cpu, ...; "
            "without --candidate it is the model itself"
        ),
    )

    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--tolerance",
        type=tolerance,
        metavar="PEIR",
        help="peak error to interval ratio up to which values agree; by default a limit per dtype",
    )
    group.add_argument(
        "--train",
        action="store_true",
        help=(
            "compare in training mode; dropout then drops the same elements on both sides, in each "
            "call of paired modules"
        ),
    )
    group.add_argument(
        "--noise-floor",
        action="store_true",
        help=(
            "measure what rounding alone does to the reference (against itself in float64, and "
            "with inputs moved by one unit in the last place); differences are also given as "
            "multiples of it"
        ),
    )
    group.add_argument(
        "--map",
        action="append",
        type=rule,
        metavar="REGEX=REPLACEMENT",
        help=(
            "turns the candidate's module names into the reference's; the last = separates "
            "(repeatable)"
        ),
    )

    add_making(parser)

    group = parser.add_argument_group("whose error it is")
    group.add_argument(
        "--isolate",
        metavar="|".join((*LEVELS, "GLOB", NO_ISOLATION)),
        help=(
            "measure the error that modules introduce themselves, with the reference's inputs: of "
            "every module in its own lines, of attention and MLP blocks, of layers, or of matching "
            "modules; for a quantised candidate also which quantization points cause it "
            f"(default: {LEVELS[0]} with --candidate quantized, else {NO_ISOLATION})"
        ),
    )
    group.add_argument(
        "--what-if",
        type=count(1),
        metavar="N",
        help=(
            "swap the reference's module in for each of the N that introduce most, and for all of "
            "them, and say how far the final output recovers"
        ),
    )
    group.add_argument(
        "--zoom",
        metavar="MODULE",
        help=(
            "name the operation that is the culprit inside a module (the reference's name of it), "
            "and its line (by itself where the origin lies in a module's own lines)"
        ),
    )

    group = parser.add_argument_group("the debugger")
    group.add_argument(
        "--break",
        dest="breakpoints",
        action="append",
        metavar="GLOB",
        help=(
            "open a debugger where the candidate calls matching modules (the reference's names), "
            "with both models at that call (repeatable)"
        ),
    )
    group.add_argument(
        "--break-at",
        choices=BREAK_AT,
        help=f"of a call: before it, or after it (default: {BREAK_AT[0]})",
    )
    group.add_argument(
        "--break-when",
        choices=BREAK_WHEN,
        help=(
            "diverged: only where an argument (--break-at end: an output) disagrees (default: "
            f"{BREAK_WHEN[0]})"
        ),
    )
    group.add_argument(
        "--post-mortem", action="store_true", help="open a debugger where a model raises"
    )
    group.add_argument(
        "--debugger",
        choices=DEBUGGERS,
        help=(
            "which one opens (default: what PYTHONBREAKPOINT says, else ipdb in a terminal and pdb "
            "elsewhere)"
        ),
    )

    group = parser.add_argument_group("what is reported")
    group.add_argument(
        "--focus",
        action="append",
        metavar="GLOB",
        help="print the values of matching modules, on both sides (repeatable)",
    )
    group.add_argument(
        "--all", action="store_true", help="print every row, arguments included, none folded"
    )
    group.add_argument(
        "--report",
        action="append",
        type=report,
        metavar="FILE",
        help=(
            f"write a report as well, in the format of the suffix: {known_suffixes()} (repeatable)"
        ),
    )
    group.add_argument("--json", action="store_true", help="print the JSON report and nothing else")

    group = parser.add_argument_group("the gate")
    group.add_argument(
        "--baseline",
        type=baseline,
        metavar="FILE.json|TRACE",
        help=(
            "a report of a former run, or a trace of a former candidate (`trace_model record ... "
            "--values fingerprints`): says which outputs are worse, better, gone and new since"
        ),
    )
    group.add_argument(
        "--max-peir",
        action="append",
        type=limit,
        metavar="GLOB=PEIR",
        help=(
            "a limit on the outputs of matching modules, instead of the tolerance "
            "(repeatable; the last one that matches counts)"
        ),
    )
    group.add_argument(
        "--fail-on",
        choices=FAIL_ON,
        help=(
            "what makes the exit code 1: less was compared than in the baseline (coverage); that, "
            "or an output is worse than in the baseline or beyond a --max-peir (regression); that, "
            "or the models diverge (divergence) (default: regression with --baseline, else "
            "divergence)"
        ),
    )
    return parser


def request(given: Mapping[str, Any]) -> CompareRequest:
    """The request of the options that were given.

    Raises:
        UsageError: traces where a model is expected, or the other way round.
    """
    model: str | None = given["model"]
    reference: str | None = given.get("reference")
    candidate: str | None = given.get("candidate")
    if is_trace(given["model"]):
        if reference is not None:
            raise UsageError(f"{model} is a trace, as --reference is: give one of them")
        if candidate is None or candidate in CANDIDATES:
            raise UsageError(
                f"{model} is a trace, which is compared with a model or another trace: "
                "--candidate PATH, or MODEL --reference TRACE --candidate KIND"
            )
        reference = model
        model, candidate = (None, candidate) if is_trace(candidate) else (candidate, ITSELF)
    elif reference is not None and not is_trace(reference):
        raise UsageError(
            f"--reference {reference} is no trace: expected a folder that `trace_model record` "
            "has made; a model that is the reference is given as MODEL"
        )
    if candidate is None:
        alone = reference is None and "candidate_device" not in given
        candidate = DEFAULT_CANDIDATE if alone else ITSELF
    sides = {"model": model, "reference": reference, "candidate": candidate}
    return CompareRequest(**{**given, **sides})
