"""The command line: call what the options ask for, return the exit code.

    trace_model compare tiny-llama
    trace_model compare PATH --candidate quantized --report out.json

0: the models agree; 1: they diverge; 2: wrong use or bad input, said in one sentence. Whatever
takes time to import is imported after the options have been checked.
"""

import argparse
import fnmatch
import inspect
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tracer.choices import LEVELS, NEED_WRAPPERS, NO_ISOLATION
from tracer.errors import ModelRunError, TracerError, UsageError, near_names
from tracer.options import AGREES, DIVERGES, INTERRUPTED, WRONG_USE, check, debugs, parse
from tracer.reports import Run, save
from tracer.words import listed

if TYPE_CHECKING:
    from torch import nn

    from tracer.comparison import Captured, Comparison
    from tracer.models import Calibration, Loaded


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        argv: the arguments; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = parse(arguments)
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    try:
        code = _compare(options, shlex.join(["trace_model", *arguments]))
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


def _debugging(options: argparse.Namespace) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What `compare` is given for a debugger, and a note if it stays closed."""
    if not debugs(options):
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


def _compare(options: argparse.Namespace, command: str) -> int:
    """Does the work and returns the exit code."""
    check(options)
    from tracer.reports.progress import call_counter, status, tracked

    with status(f"loading {options.model}"):
        from tracer import capture, compare, models

        loaded = _load(options)
        _check_focus(options.focus, loaded)
        reference, inputs, how = _as_asked(options, loaded)
        data = _calibration(options, loaded)
    candidate = models.candidate(
        loaded,
        options.candidate,
        **_given(options, "variant", "steps", "activation", "weight"),
        calibration=data,
        progress=tracked,
        trust_remote_code=options.trust_remote_code,
    )
    quantized = options.candidate == "quantized"
    debugging, debugger_note = _debugging(options)
    run = Run(
        reference=_describe(loaded),
        candidate=_describe_candidate(options),
        notes=(
            *loaded.notes,
            *how,
            *(() if data is None else (f"calibrated on {data.description}",)),
            *debugger_note,
        ),
        command=command,
        quantized=quantized,
        differences_expected=quantized and options.tolerance is None,
    )
    rename = dict(options.map)
    calls = len(list(loaded.model.modules())) * (1 + (options.steps or 0))
    with call_counter("comparing", calls) as tell:
        comparison = compare(
            reference,
            candidate,
            inputs,
            rename=rename,
            tolerance=options.tolerance,
            confirm=not run.differences_expected,
            noise_floor=options.noise_floor,
            isolate=_isolation(options),
            what_if=options.what_if,
            zoom=options.zoom,
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


def _check_focus(globs: Sequence[str], loaded: "Loaded") -> None:
    names = [name for name, _ in loaded.model.named_modules()]
    for glob in globs:
        if not fnmatch.filter(names, glob):
            raise UsageError(
                f"--focus {glob!r} matches none of the {len(names)} modules of {loaded.name}, such "
                f"as {listed(names[1:4])}{near_names(glob, names)}"
            )


def _calibration(options: argparse.Namespace, loaded: "Loaded") -> "Calibration | None":
    if options.candidate != "quantized":
        return None
    from tracer import models

    count = {} if options.calibrate is None else {"count": options.calibrate}
    return models.calibration(loaded, **count, text=options.calibration_text, seed=options.seed)


def _isolation(options: argparse.Namespace) -> str | None:
    """What is isolated: what was asked for, and with quantisation on everything by default."""
    if options.isolate is None and (options.candidate == "quantized" or options.what_if):
        return LEVELS[0]
    return None if options.isolate == NO_ISOLATION else options.isolate


def _describe(loaded: "Loaded") -> str:
    parameter = next(loaded.model.parameters())
    dtype = str(parameter.dtype).removeprefix("torch.")
    return f"{loaded.name} ({type(loaded.model).__name__}, {dtype}, {parameter.device})"


def _describe_candidate(options: argparse.Namespace) -> str:
    """The candidate with its settings, whether given or at their defaults."""
    from tracer import models

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
    """What was ended by the user before anything differed is no success."""
    unknown = comparison.verdict.symptom is None or run.differences_expected
    if comparison.coverage.ended and unknown:
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
