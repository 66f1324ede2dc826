"""The command line: parse, call, return the exit code.

    trace_model compare tiny-llama
    trace_model compare PATH --candidate quantized --report out.json

0: the models agree; 1: they diverge; 2: wrong use or bad input, said in one sentence. Whatever
takes time to import is imported after the options have been checked.
"""

import argparse
import fnmatch
import inspect
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import tracer
from tracer.choices import (
    BREAK_AT,
    BREAK_WHEN,
    BUILT_IN,
    CANDIDATES,
    DEBUGGERS,
    DTYPES,
    ITSELF,
    LEVELS,
    NEED_WRAPPERS,
    NO_ISOLATION,
    PADDING_SIDES,
    VALUES,
)
from tracer.errors import ModelRunError, TracerError, UsageError, near_names
from tracer.reports import Run, check_path, known_suffixes, save, wants_samples
from tracer.sources import is_trace, locate, locate_processor
from tracer.words import listed

if TYPE_CHECKING:
    from torch import nn

    from tracer.comparison import Captured, Comparison
    from tracer.models import Calibration, Loaded
    from tracer.recorded import Recorded

AGREES, DIVERGES, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        argv: the arguments; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parse(arguments)
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    try:
        command = {"compare": _compare, "record": _record, "show": _show}[options.command]
        code = command(options, shlex.join(["trace_model", *arguments]))
        sys.stdout.flush()  # here, where a reader that has gone is taken for what it is
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`): the interpreter must not try to flush for it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WRONG_USE
    except Exception as error:
        if not _is_known(error):
            raise
        if isinstance(error, ModelRunError) and error.comparison is not None and not options.json:
            from tracer.reports.console import show_rows

            show_rows(error.comparison, all_rows=options.all)
            sys.stdout.flush()
        print(f"trace_model: {error}", file=sys.stderr)
        return WRONG_USE


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
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
            "given by --tolerance makes it 1."
        ),
        allow_abbrev=False,
    )
    kinds = "; ".join(f"{name}: {what}" for name, what in CANDIDATES.items())
    _add_model(parser, "; or a trace, to be compared with --candidate")
    parser.add_argument(
        "--candidate",
        metavar="KIND|PATH",
        help=(
            "the model under test (default: wrapped; with --reference the model itself). "
            f"{kinds}; or the path of another model, or of a trace"
        ),
    )
    parser.add_argument(
        "--reference",
        metavar="TRACE",
        help="a trace of `trace_model record` in the place of the model",
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
        type=_count(1),
        default=0,
        metavar="N",
        help=(
            "swap the reference's module in for each of the N that introduce most, and for all of "
            "them, and say how far the final output recovers"
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
        help=(
            f"write a report as well, in the format of the suffix: {known_suffixes()} (repeatable)"
        ),
    )
    group.add_argument("--json", action="store_true", help="print the JSON report and nothing else")
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
        type=_print_option,
        default=[],
        metavar="KEY=VALUE",
        help=f"how tensors are printed: torch's {', '.join(_PRINT_OPTIONS)} (repeatable)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--tree", action="store_true", help="one line per call, indented")
    form.add_argument("--json", action="store_true", help="print JSON and nothing else")
    _add_making(parser)
    return parser


def _add_model(parser: argparse.ArgumentParser, others: str = "") -> None:
    built_in = "; ".join(f"{name}: {what}" for name, what in BUILT_IN.items())
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"a local folder, a Hugging Face hub id, or a built-in model ({built_in}){others}",
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


# What torch.set_printoptions takes, and of what type.
_PRINT_OPTIONS: Mapping[str, Callable[[str], object]] = {
    "precision": int,
    "threshold": float,
    "edgeitems": int,
    "linewidth": int,
    "sci_mode": lambda text: {"true": True, "false": False}[text.lower()],
}


def _print_option(text: str) -> tuple[str, object]:
    key, _, value = text.partition("=")
    try:
        return key, _PRINT_OPTIONS[key](value)
    except (KeyError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected KEY=VALUE with one of {', '.join(_PRINT_OPTIONS)}, such as "
            "precision=2 or sci_mode=false"
        ) from error


def _report(text: str) -> Path:
    try:
        check_path(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def _check(options: argparse.Namespace) -> None:
    """Checks what can be checked before PyTorch is loaded.

    Raises:
        UsageError: options that do not go together.
        ModelLoadError: names that lead nowhere.
    """
    _sort_sides(options)
    _check_making(options)
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


def _sort_sides(options: argparse.Namespace) -> None:
    """Tells what is reference, model and candidate: a trace in the place of MODEL is the reference.

    `model` is None afterwards where both sides are traces.
    """
    if is_trace(options.model):
        if options.reference is not None:
            raise UsageError(f"{options.model} is a trace, as --reference is: give one of them")
        if options.candidate is None or options.candidate in CANDIDATES:
            raise UsageError(
                f"{options.model} is a trace, which is compared with a model or another trace: "
                "--candidate PATH, or MODEL --reference TRACE --candidate KIND"
            )
        options.reference, options.model = options.model, options.candidate
        options.candidate = None
        if is_trace(options.model):
            options.model, options.candidate = None, options.model
    elif options.reference is not None and not is_trace(options.reference):
        raise UsageError(
            f"--reference {options.reference} is no trace: expected a folder that `trace_model "
            "record` has made; a model that is the reference is given as MODEL"
        )
    if options.candidate is None:
        options.candidate = "wrapped" if options.reference is None else ITSELF


def _check_making(options: argparse.Namespace) -> None:
    """Checks how the model, its inputs and its candidate are to be made."""
    if options.model is not None:
        locate(options.model)
    if options.candidate not in (*CANDIDATES, ITSELF) and not is_trace(options.candidate):
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
    if not _debugs(options):
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


def _debugs(options: argparse.Namespace) -> bool:
    return bool(options.breakpoints) or options.post_mortem


def _debugging(options: argparse.Namespace) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What `compare` is given for a debugger, and a note if it stays closed."""
    if not _debugs(options):
        return {}, ()
    from tracer.debugger import Breakpoint
    from tracer.prompt import choose

    choice = choose(options.debugger)
    if not choice.opens:
        return {}, (choice.note,)
    given = {"at": options.break_at, "when": options.break_when}
    how = {name: value for name, value in given.items() if value is not None}
    return {
        "breakpoints": [Breakpoint(glob, **how) for glob in options.breakpoints],
        "post_mortem": options.post_mortem,
        "debugger": options.debugger,
    }, ()


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _record(options: argparse.Namespace, command: str) -> int:
    """Records a model and returns the exit code."""
    _check_making(options)
    from tracer.storage import check_new

    check_new(options.out)
    from tracer import record

    model, inputs, notes = _alone(options)
    made = record(
        model,
        inputs,
        options.out,
        include=options.include or "*",
        name=options.model,
        seed=options.seed,
        command=command,
        notes=notes,
        **_given(options, "values"),
    )
    print(
        f"{made.path}: {made.calls} calls, {made.tensors} tensors, {made.size / 2**20:.2f} MiB of "
        "values"
    )
    return AGREES


def _show(options: argparse.Namespace, command: str) -> int:
    """Prints the data flow of a model or a trace and returns the exit code."""
    if not is_trace(options.model):
        _check_making(options)
    import torch

    from tracer import flow, open_trace
    from tracer.reports.console import make_console
    from tracer.reports.dataflow import render, show

    given = (open_trace(options.model),) if is_trace(options.model) else _alone(options)[:2]
    shown = flow(*given, include=options.include or "*", focus=options.focus)
    if options.json:
        sys.stdout.write(render(shown))
        return AGREES
    torch.set_printoptions(**dict(options.print_options))
    show(shown, width=make_console().width, tree=options.tree)
    return AGREES


def _alone(
    options: argparse.Namespace,
) -> "tuple[nn.Module, dict[str, Any], tuple[str, ...]]":
    """One model, the inputs that it is run on, and notes on both."""
    from tracer.reports.progress import status

    with status(f"loading {options.model}"):
        loaded = _load(options)
        reference, inputs, how = _as_asked(options, loaded)
        data = _calibration(options, loaded)
    model = _candidate(options, loaded, reference, data)
    return model, inputs, (*loaded.notes, *how, *_calibrated(data))


def _candidate(
    options: argparse.Namespace,
    loaded: "Loaded",
    reference: "nn.Module",
    data: "Calibration | None",
) -> "nn.Module":
    """The model that is run in the place of the candidate."""
    from tracer import models
    from tracer.reports.progress import tracked

    if options.candidate == ITSELF:
        return reference
    return models.candidate(
        loaded,
        options.candidate,
        **_given(options, "variant", "steps", "activation", "weight"),
        calibration=data,
        progress=tracked,
        trust_remote_code=options.trust_remote_code,
    )


def _calibrated(data: "Calibration | None") -> tuple[str, ...]:
    return () if data is None else (f"calibrated on {data.description}",)


def _compare(options: argparse.Namespace, command: str) -> int:
    """Does the work and returns the exit code."""
    _check(options)
    from tracer.reports.progress import call_counter

    sides = _sides(options)
    from tracer import capture, compare
    from tracer.samples import SAMPLES

    reference, candidate, inputs = sides.reference, sides.candidate, sides.inputs
    debugging, debugger_note = _debugging(options)
    run = Run(
        reference=sides.names[0],
        candidate=sides.names[1],
        notes=(*sides.notes, *debugger_note),
        command=command,
        quantized=sides.quantized,
        differences_expected=sides.quantized and options.tolerance is None,
    )
    rename = dict(options.map)
    calls = len(list(reference.modules())) * (1 + (options.steps or 0))
    with call_counter("comparing", calls) as tell:
        comparison = compare(
            reference,
            candidate,
            inputs,
            rename=rename,
            tolerance=options.tolerance,
            confirm=not run.differences_expected,
            noise_floor=options.noise_floor,
            isolate=_isolation(options, sides),
            what_if=options.what_if,
            samples=SAMPLES if wants_samples(options.report) else 0,
            progress=None if debugging else tell,  # no bar where a prompt may open
            **debugging,
        )
    captured: list[Captured] = []
    if options.focus and not comparison.coverage.ended:
        captured = capture(reference, candidate, inputs, include=options.focus, rename=rename)
    for report in options.report:
        save(comparison, report, run=run)
    _print(comparison, options, run, captured)
    return _exit_code(comparison, run)


@dataclass(frozen=True)
class _Sides:
    """What is compared.

    Attributes:
        reference, candidate: models or recordings.
        inputs: None where both are recordings.
        names: both in words.
        notes: how they came about.
        quantized: whether the candidate is.
    """

    reference: "nn.Module"
    candidate: "nn.Module"
    inputs: "dict[str, Any] | None"
    names: tuple[str, str]
    notes: tuple[str, ...]
    quantized: bool


def _sides(options: argparse.Namespace) -> _Sides:
    """Opens traces and makes models; a model is run on the inputs of the trace beside it."""
    from tracer.reports.progress import status

    with status(f"loading {options.model or 'traces'}"):
        from tracer import open_trace

        reference = None if options.reference is None else open_trace(options.reference)
        candidate = open_trace(options.candidate) if is_trace(options.candidate) else None
        quantized = options.candidate == "quantized" or _is_quantized(candidate)
        if reference is not None and candidate is not None:
            _check_focus(options.focus, reference, reference.name)
            names = _describe_trace(reference), _describe_trace(candidate)
            return _Sides(reference, candidate, None, names, (), quantized)
        recorded = reference or candidate
        if recorded is not None:
            _take_inputs(options, recorded)
        loaded = _load(options)
        _check_focus(options.focus, loaded.model, loaded.name)
        live, inputs, how = _as_asked(options, loaded)
        data = _calibration(options, loaded)
    made = candidate or _candidate(options, loaded, live, data)
    names = (
        _describe(loaded) if reference is None else _describe_trace(reference),
        _describe_candidate(options, loaded) if candidate is None else _describe_trace(candidate),
    )
    notes = *loaded.notes, *how, *_calibrated(data)
    return _Sides(reference or live, made, inputs, names, notes, quantized)


def _take_inputs(options: argparse.Namespace, recorded: "Recorded") -> None:
    """Makes the inputs of a trace those of the model beside it."""
    for name in (*_MAKE_INPUTS, "inputs"):
        if getattr(options, name) is not None:
            raise UsageError(
                f"{_flag(name)} says what the model is run on, and {recorded.name} holds what it "
                "was recorded with: leave it out"
            )
    args, kwargs = recorded.inputs() or ((), {})
    if args or not kwargs or not all(hasattr(value, "shape") for value in kwargs.values()):
        raise UsageError(
            f"{recorded.name} was recorded with other inputs than tensors by name: compare it in "
            "Python, tracer.compare(tracer.open_trace(PATH), model, inputs)"
        )
    options.inputs = kwargs


def _is_quantized(recorded: "Recorded | None") -> bool:
    """Whether a trace is that of a quantised model."""
    if recorded is None:
        return False
    modules = recorded.header["modules"].values()
    points = (point for module in modules for point in module["points"].values())
    return any(point.get("scale") is not None for point in points)


def _load(options: argparse.Namespace) -> "Loaded":
    from tracer import models

    return models.load(
        options.model,
        seed=options.seed,
        attn_implementation="sdpa" if options.candidate == "eager" else "eager",
        trust_remote_code=options.trust_remote_code,
        images=options.image or (),
        **_given(
            options,
            "dtype",
            "device",
            "prompt",
            "sequence_length",
            "batch",
            "padding",
            "processor",
            "max_pixels",
            "video",
            "inputs",
        ),
    )


def _as_asked(
    options: argparse.Namespace, loaded: "Loaded"
) -> "tuple[nn.Module, dict[str, Any], tuple[str, ...]]":
    """The reference and the inputs as they are run, and notes on how."""
    from tracer import models

    if options.steps is not None:
        note = (
            f"a prefill, and {options.steps} decode steps with the last tokens of each sequence: "
            f"call #0 is the prefill's, and call #{options.steps} that of the last step"
        )
        inputs = models.ending_in_steps(loaded.inputs, options.steps)
        return models.Stepping(loaded.model, steps=options.steps), inputs, (note,)
    if options.variant == "decode":
        note = (
            "a decode step: the last token of each sequence, over the float model's cache of "
            "those before it"
        )
        return loaded.model, models.decode_step(loaded.model, loaded.inputs), (note,)
    return loaded.model, loaded.inputs, ()


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; the defaults of the others are written where they apply."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _check_focus(globs: Sequence[str], model: "nn.Module", model_name: str) -> None:
    names = [name for name, _ in model.named_modules()]
    for glob in globs:
        if not fnmatch.filter(names, glob):
            raise UsageError(
                f"--focus {glob!r} matches none of the {len(names)} modules of {model_name}, such "
                f"as {listed(names[1:4])}{near_names(glob, names)}"
            )


def _calibration(options: argparse.Namespace, loaded: "Loaded") -> "Calibration | None":
    if options.candidate != "quantized":
        return None
    from tracer import models

    count = {} if options.calibrate is None else {"count": options.calibrate}
    return models.calibration(loaded, **count, text=options.calibration_text, seed=options.seed)


def _isolation(options: argparse.Namespace, sides: _Sides) -> str | None:
    """What is isolated: what was asked for, and with quantisation on everything by default."""
    from tracer.provenance import why_not_run_again

    can_be = not why_not_run_again(sides.reference, sides.candidate)
    if options.isolate is None and ((sides.quantized and can_be) or options.what_if):
        return LEVELS[0]
    return None if options.isolate == NO_ISOLATION else options.isolate


def _describe(loaded: "Loaded") -> str:
    parameter = next(loaded.model.parameters())
    dtype = str(parameter.dtype).removeprefix("torch.")
    return f"{loaded.name} ({type(loaded.model).__name__}, {dtype}, {parameter.device})"


def _describe_trace(recorded: "Recorded") -> str:
    header = recorded.header
    what = ", ".join(str(header[key]) for key in ("model", "dtype", "device"))
    return f"{recorded.name} (recorded {what})"


def _describe_candidate(options: argparse.Namespace, loaded: "Loaded") -> str:
    """The candidate with its settings, whether given or at their defaults."""
    from tracer import models

    if options.candidate == ITSELF:
        return _describe(loaded)

    defaults = inspect.signature(models.candidate).parameters
    names: tuple[str, ...] = ("variant",) if options.candidate in NEED_WRAPPERS else ()
    if options.candidate == "quantized":
        names += ("activation", "weight")
    settings = [f"{name} {getattr(options, name) or defaults[name].default}" for name in names]
    return f"{options.candidate} ({', '.join(settings)})" if settings else str(options.candidate)


def _print(
    comparison: "Comparison",
    options: argparse.Namespace,
    run: Run,
    captured: "Sequence[Captured]",
) -> None:
    if options.json:
        from tracer.reports.json import render

        sys.stdout.write(render(comparison, run))
        return
    from tracer.reports.console import show

    show(comparison, all_rows=options.all, ranked=run.quantized, focus=captured, run=run)


def _exit_code(comparison: "Comparison", run: Run) -> int:
    """What was ended before anything differed, by the user or as a recording, is no success."""
    coverage = comparison.coverage
    unknown = comparison.verdict.symptom is None or run.differences_expected
    if (coverage.ended or coverage.recordings) and unknown:
        return WRONG_USE
    return AGREES if comparison.verdict.agrees or run.differences_expected else DIVERGES


def _is_known(error: Exception) -> bool:
    """Whether an error says in one sentence what the user can do about it."""
    if isinstance(error, TracerError):
        return True
    if "wrappers" not in sys.modules:
        return False
    import wrappers

    return isinstance(error, wrappers.errors.WrappersError)
