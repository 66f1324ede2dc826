"""What the command line can be told: its options, and what can be checked of them at once.

Nothing here takes time to import: wrong use is answered without PyTorch.
"""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import tracer
from tracer.choices import (
    BREAK_AT,
    BREAK_WHEN,
    BUILT_IN,
    CANDIDATES,
    DEBUGGERS,
    DTYPES,
    LEVELS,
    NEED_WRAPPERS,
    NO_ISOLATION,
    PADDING_SIDES,
)
from tracer.errors import UsageError, near_names
from tracer.reports import check_path
from tracer.sources import locate, locate_processor

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
    compare = _add_compare(commands)
    if not arguments:
        parser.print_help()
        parser.exit(WRONG_USE)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = [name for action in compare._actions for name in action.option_strings]
        near = near_names(unknown[0], known)
        compare.error(f"unknown option or argument {unknown[0]!r}{near}")
    if options.command is None:
        parser.error("expected a command: compare")
    return options


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USE, f"{self.prog}: {message}; see {self.prog} --help\n")


_EXIT_CODES = (
    "exit codes: 0 the models agree, 1 they diverge, 2 wrong use or bad input, or a run that was "
    "ended at a breakpoint before they diverged"
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
            "given by --tolerance makes it 1."
        ),
        allow_abbrev=False,
    )
    built_in = "; ".join(f"{name}: {what}" for name, what in BUILT_IN.items())
    kinds = "; ".join(f"{name}: {what}" for name, what in CANDIDATES.items())
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"a local folder, a Hugging Face hub id, or a built-in model ({built_in})",
    )
    parser.add_argument(
        "--candidate",
        default="wrapped",
        metavar="KIND|PATH",
        help=f"the model under test (default: %(default)s). {kinds}; or another model's path",
    )

    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--tolerance",
        type=_tolerance,
        metavar="PEIR",
        help="peak error to interval ratio up to which values agree; by default a limit per dtype",
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
        type=_rule,
        default=[],
        metavar="REGEX=REPLACEMENT",
        help=(
            "turns the candidate's module names into the reference's; the last = separates "
            "(repeatable)"
        ),
    )

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
        type=_file,
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
        type=_count(1),
        metavar="N",
        help=(
            "shrinks larger images to at most N pixels, for fewer tokens: a Qwen3-VL makes one of "
            "32 x 32 pixels"
        ),
    )
    group.add_argument(
        "--video",
        type=_count(1),
        metavar="FRAMES",
        help="adds a synthetic clip of FRAMES frames to the synthetic image of a Qwen3-VL",
    )
    group.add_argument(
        "--sequence-length",
        type=_count(1),
        metavar="N",
        help="tokens in the longest sequence; a text is repeated or cut to it (not with --image)",
    )
    group.add_argument(
        "--batch",
        type=_count(1),
        metavar="N",
        help="sequences, of different lengths and padded if more than one (default: 1)",
    )
    group.add_argument(
        "--padding", choices=PADDING_SIDES, help="the side that is padded (default: right)"
    )
    group.add_argument(
        "--inputs",
        type=_file,
        metavar="FILE.safetensors",
        help="the model's keyword arguments, in place of the above",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of random inputs and of a built-in model's weights (default: %(default)s)",
    )

    group.add_argument(
        "--steps",
        type=_count(1),
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
        type=_count(0),
        metavar="N",
        help=(
            "how many inputs to calibrate on besides the inputs themselves: sequences, synthetic "
            "images, or random parts of the images with other questions (default: 8)"
        ),
    )
    group.add_argument(
        "--calibration-text",
        type=_file,
        metavar="FILE",
        help="a text to take them, or what is said about images, from (default: random tokens)",
    )

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
        type=_count(1),
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
            "name the guilty operation and its line inside a module, by the reference's name of it "
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
        type=_report,
        default=[],
        metavar="FILE",
        help="write a report as well, in the format of the suffix: .json (repeatable)",
    )
    group.add_argument("--json", action="store_true", help="print the JSON report and nothing else")
    return parser


# The types of options raise ArgumentTypeError, which argparse turns into its own error.


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a ratio of at least 0, such as 1e-5")
    return value


def _rule(text: str) -> tuple[str, str]:
    pattern, separator, replacement = text.rpartition("=")
    if not separator or not pattern:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected REGEX=REPLACEMENT, such as '^decoder\\.=model.'"
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"{pattern!r} is no regular expression: {error}"
        ) from error
    return pattern, replacement


def _count(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from {least} up")
        return value

    return count


def _file(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path


def _report(text: str) -> Path:
    try:
        check_path(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def check(options: argparse.Namespace) -> None:
    """Checks what can be checked before PyTorch is loaded.

    Raises:
        UsageError: options that do not go together.
        ModelLoadError: names that lead nowhere.
    """
    locate(options.model)
    if options.candidate not in CANDIDATES:
        locate(options.candidate, CANDIDATES)
    if options.processor is not None:
        locate_processor(options.processor)
    for needed, names in (
        (NEED_WRAPPERS, ("variant",)),
        (("quantized",), ("activation", "weight", "calibrate", "calibration_text")),
    ):
        for name in names:
            if getattr(options, name) is not None and options.candidate not in needed:
                raise UsageError(
                    f"{_flag(name)} goes with --candidate {' or '.join(needed)}, and the candidate "
                    f"is {options.candidate}"
                )
    if options.what_if and options.isolate == NO_ISOLATION:
        raise UsageError(
            f"--what-if swaps the modules that introduce most, and --isolate {NO_ISOLATION} "
            "measures none: leave one of them out"
        )
    if options.focus and options.json:
        raise UsageError(
            "--focus prints values, and --json the report and nothing else: choose one"
        )
    _check_debugger(options)
    if options.inputs is not None:
        for name in _MAKE_INPUTS:
            if getattr(options, name) is not None:
                raise UsageError(f"{_flag(name)} makes inputs, and --inputs gives them: choose one")


# The options that say how inputs are made.
_MAKE_INPUTS = (
    "prompt",
    "sequence_length",
    "batch",
    "padding",
    "image",
    "processor",
    "max_pixels",
    "video",
)


def _check_debugger(options: argparse.Namespace) -> None:
    for name in ("break_at", "break_when"):
        if getattr(options, name) is not None and not options.breakpoints:
            raise UsageError(f"{_flag(name)} goes with --break GLOB, and there is none")
    if not debugs(options):
        if options.debugger is not None:
            raise UsageError("--debugger goes with --break GLOB or --post-mortem: none is given")
        return
    if options.json:
        raise UsageError(
            "a debugger prints, and --json prints the report and nothing else: choose one, or "
            "write the report with --report FILE.json"
        )
    from tracer.prompt import choose

    choose(options.debugger)


def debugs(options: argparse.Namespace) -> bool:
    """Whether a debugger may open."""
    return bool(options.breakpoints) or options.post_mortem


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
