"""What the command line can be told: its commands and their options.

Nothing here takes time to import: wrong use is answered without PyTorch.
"""

import argparse
from collections.abc import Sequence
from typing import NoReturn

import tracer
from tracer.choices import (
    BREAK_AT,
    BREAK_WHEN,
    BUILT_IN,
    CANDIDATES,
    DEBUGGERS,
    DTYPES,
    FAIL_ON,
    ITSELF,
    LEVELS,
    NO_ISOLATION,
    PADDING_SIDES,
    VALUES,
)
from tracer.cli import ablate as ablation
from tracer.cli.types import (
    PRINT_OPTIONS,
    baseline,
    count,
    file,
    limit,
    print_option,
    report,
    rule,
    tolerance,
)
from tracer.errors import near_names
from tracer.reports import known_suffixes

# What the process exits with.
AGREES, DIVERGES, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the arguments of the command line.

    Raises:
        SystemExit: they make no sense, which has been said; or help was asked for.
    """
    parser = _Parser(
        prog="trace_model",
        description="Finds where two PyTorch models that should agree stop agreeing, and why.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"trace_model {tracer.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    parsers = {
        "compare": _add_compare(commands),
        "record": _add_record(commands),
        "show": _add_show(commands),
        "ablate": _add_ablate(commands),
    }
    if not arguments:
        parser.print_help()
        parser.exit(WRONG_USE)
    options, unknown = parser.parse_known_args(arguments)
    chosen = parsers.get(options.command, parser)
    if unknown:
        known = [name for action in chosen._actions for name in action.option_strings]
        near = near_names(unknown[0], known)
        chosen.error(f"unknown option or argument {unknown[0]!r}{near}")
    if options.command is None:
        parser.error(f"expected a command: {', '.join(parsers)}")
    return options


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USE, f"{self.prog}: {message}; see {self.prog} --help\n")


_EXIT_CODES = (
    "exit codes: 0 the models agree, 1 they diverge, 2 wrong use or bad input, or a run that was "
    "ended at a breakpoint, or a recording that was ended, before they diverged"
)


def _add_compare(
    commands: "argparse._SubParsersAction[_Parser]",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "compare",
        help="run a model and a candidate side by side and say where they part",
        description=(
            "Runs a model and a candidate side by side on the same inputs and says where they "
            "part, and why."
        ),
        epilog=(
            f"{_EXIT_CODES}. With a quantised candidate differences are expected: only a limit "
            "(--tolerance, --max-peir) or a --baseline makes it 1. --fail-on says what does."
        ),
        allow_abbrev=False,
    )
    kinds = "; ".join(f"{name}: {what}" for name, what in CANDIDATES.items())
    _add_model(parser, "; or a trace, to be compared with --candidate")
    parser.add_argument(
        "--candidate",
        metavar="KIND|PATH",
        help=(
            "the model under test (default: wrapped; with --reference or --candidate-device the "
            "model itself). "
            f"{kinds}; or the path of another model, of a trace, or of a function that makes a "
            "model, as for MODEL"
        ),
    )
    parser.add_argument(
        "--reference",
        metavar="TRACE",
        help="a trace of `trace_model record` in the place of the model",
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
        default=[],
        metavar="REGEX=REPLACEMENT",
        help=(
            "turns the candidate's module names into the reference's; the last = separates "
            "(repeatable)"
        ),
    )

    _add_making(parser)

    group = parser.add_argument_group("whose error it is")
    group.add_argument(
        "--isolate",
        metavar="|".join((*LEVELS, "GLOB", NO_ISOLATION)),
        help=(
            "measure the error that modules introduce themselves, with the reference's inputs: of "
            "every module in its own lines, of attention and MLP blocks, of layers, or of modules "
            "with such names; for a quantised candidate also which quantization points cause it "
            f"(default: {LEVELS[0]} with --candidate quantized, else {NO_ISOLATION})"
        ),
    )
    group.add_argument(
        "--what-if",
        type=count(1),
        default=0,
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
            "name the culprit, an operation and its line, inside a module, by the reference's name "
            "(by itself where the origin lies in a module's own lines)"
        ),
    )

    group = parser.add_argument_group("the debugger")
    group.add_argument(
        "--break",
        dest="breakpoints",
        action="append",
        default=[],
        metavar="GLOB",
        help=(
            "open a debugger where the candidate calls modules of such names (the reference's), "
            "with both models at that call (repeatable)"
        ),
    )
    group.add_argument(
        "--break-at", choices=BREAK_AT, help="of a call: before it, or after it (default: start)"
    )
    group.add_argument(
        "--break-when",
        choices=BREAK_WHEN,
        help=(
            "diverged: only where an argument (--break-at end: an output) disagrees (default: "
            "always)"
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
        default=[],
        metavar="GLOB",
        help="print the values of the modules with such names, on both sides (repeatable)",
    )
    group.add_argument(
        "--all", action="store_true", help="print every row, arguments included, none folded"
    )
    group.add_argument(
        "--report",
        action="append",
        type=report,
        default=[],
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
        default=[],
        metavar="GLOB=PEIR",
        help=(
            "a limit on the outputs of modules of such names, in the place of the tolerance "
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


def _add_record(commands: "argparse._SubParsersAction[_Parser]") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "record",
        help="write what goes through a model to disk, to compare with it elsewhere or later",
        description=(
            "Runs a model once and writes what goes in and out of its modules to a folder, which "
            "can stand for a model in `trace_model compare`."
        ),
        allow_abbrev=False,
    )
    _add_model(parser)
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="the folder to make: run.trace"
    )
    _add_as(parser)
    _add_include(parser, "record")
    parser.add_argument(
        "--values",
        choices=VALUES,
        help=(
            "arguments and outputs; outputs alone; or fingerprints of 176 bytes in the place of "
            "each tensor, from which differences are estimated (default: all)"
        ),
    )
    _add_making(parser)
    return parser


def _add_show(commands: "argparse._SubParsersAction[_Parser]") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "show",
        help="print what goes through one model, or a trace of one",
        description=(
            "Prints each call of a model's modules with its arguments and its output: shape, "
            "dtype, mean, min, max and standard deviation, and quantization points where there are."
        ),
        allow_abbrev=False,
    )
    _add_model(parser, "; or a trace")
    _add_as(parser)
    _add_include(parser, "show")
    parser.add_argument(
        "--focus",
        action="append",
        default=[],
        metavar="GLOB",
        help="print the values themselves of the modules with such names (repeatable)",
    )
    parser.add_argument(
        "--print-options",
        action="append",
        type=print_option,
        default=[],
        metavar="KEY=VALUE",
        help=f"how tensors are printed: torch's {', '.join(PRINT_OPTIONS)} (repeatable)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--tree", action="store_true", help="one line per call, indented")
    form.add_argument("--json", action="store_true", help="print JSON and nothing else")
    _add_making(parser)
    return parser


def _add_ablate(commands: "argparse._SubParsersAction[_Parser]") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "ablate",
        help="study which settings of the quantiser are better, and how sure that is",
        description=(
            "Quantises a model with many settings, measures each with several calibration sets, "
            "and says what the figures speak for. A study that was killed goes on where it was."
        ),
        allow_abbrev=False,
    )
    ablation.add_options(parser)
    return parser


def _add_model(parser: argparse.ArgumentParser, others: str = "") -> None:
    built_in = "; ".join(f"{name}: {what}" for name, what in BUILT_IN.items())
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=(
            f"a local folder, a Hugging Face hub id, or a built-in model ({built_in}); or a "
            "function, FILE.py:FUNCTION or MODULE:FUNCTION, that returns a model, or a pair of it "
            f"and its inputs by name, whose code is run{others}"
        ),
    )


def _add_include(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="GLOB",
        help=f"{verb} the modules with such names only (repeatable)",
    )


def _add_as(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--candidate",
        default=ITSELF,
        metavar="KIND",
        help=(
            "a candidate made from the model in its place, as `trace_model compare` makes it: "
            f"{', '.join(CANDIDATES)} (default: the model itself)"
        ),
    )


def _add_making(parser: argparse.ArgumentParser) -> None:
    """How the model, its inputs and its wrapped or quantised form are made."""
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        help=(
            "of the weights, on both sides unless the candidate says otherwise; auto: as stored "
            "(default: float32, so that rounding in half precision hides nothing)"
        ),
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: cpu)")
    group.add_argument(
        "--offload",
        nargs="?",
        const=True,
        metavar="FOLDER",
        help=(
            "leave the weights of both models on disk until a module needs its own, for models "
            "that do not fit in memory; those that a checkpoint does not hold as they are needed "
            "are kept in FOLDER meanwhile (default: the system's temporary folder)"
        ),
    )
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with a checkpoint (default: off)",
    )

    group = parser.add_argument_group("the inputs")
    group.add_argument(
        "--prompt",
        metavar="TEXT",
        help=(
            "a text (default: a short English one, or a question about --image; random tokens "
            "without a tokenizer, and around a synthetic image for a Qwen3-VL)"
        ),
    )
    group.add_argument(
        "--image",
        action="append",
        type=file,
        metavar="FILE",
        help=(
            "a photo that a Qwen3-VL sees before the prompt (repeatable: all in one sequence; with "
            "--batch one in each, or the only one in all)"
        ),
    )
    group.add_argument(
        "--processor",
        metavar="FOLDER|HUB_ID",
        help=(
            "what makes tokens and patches of prompt and images (default: the model's own); "
            "tiny-qwen3-vl, which has none, is built with its vocabulary"
        ),
    )
    group.add_argument(
        "--max-pixels",
        type=count(1),
        metavar="N",
        help=(
            "shrinks larger images to at most N pixels, for fewer tokens: a Qwen3-VL makes one of "
            "32 x 32 pixels"
        ),
    )
    group.add_argument(
        "--video",
        type=count(1),
        metavar="FRAMES",
        help="adds a synthetic clip of FRAMES frames to the synthetic image of a Qwen3-VL",
    )
    group.add_argument(
        "--sequence-length",
        type=count(1),
        metavar="N",
        help="tokens in the longest sequence; a text is repeated or cut to it (not with --image)",
    )
    group.add_argument(
        "--batch",
        type=count(1),
        metavar="N",
        help="sequences, of different lengths and padded if more than one (default: 1)",
    )
    group.add_argument(
        "--padding", choices=PADDING_SIDES, help="the side that is padded (default: right)"
    )
    group.add_argument(
        "--inputs",
        type=file,
        metavar="FILE.safetensors",
        help="the model's keyword arguments, in place of the above",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help=(
            "of random inputs, of what a model writes to be calibrated on, of what drops out with "
            "--train, and of the weights of random-llama and tiny-qwen3-vl (default: %(default)s)"
        ),
    )

    group.add_argument(
        "--steps",
        type=count(1),
        metavar="N",
        help=(
            "generate: a prefill, and N decode steps with the last tokens of each sequence; with "
            "--variant decode the candidate's prefill is in the variant prefill"
        ),
    )

    group = parser.add_argument_group("the wrapped or quantised candidate")
    group.add_argument(
        "--variant",
        help=(
            "form of the wrappers: prefill, prefill_reference, or decode, which is run on the last "
            "token of each sequence over the float model's cache (default: prefill)"
        ),
    )
    group.add_argument("--activation", metavar="DTYPE", help="uint8, int16, ... (default: uint8)")
    group.add_argument("--weight", metavar="DTYPE", help="uint8, uint4, ... (default: uint8)")
    group.add_argument(
        "--calibrate",
        type=count(0),
        metavar="N",
        help=(
            "how many inputs to calibrate on besides the inputs themselves: sequences, synthetic "
            "images, or random parts of the images with other questions (default: 8)"
        ),
    )
    group.add_argument(
        "--calibration-text",
        type=file,
        metavar="FILE",
        help=(
            "a text to take them, or what is said about images, from (default: what the model "
            "writes itself, with this --seed; random tokens for one without a tokenizer)"
        ),
    )
