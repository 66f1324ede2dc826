"""The command line: call what the options ask for, return the exit code.

    trace_model compare tiny-llama
    trace_model compare PATH --candidate quantized --report out.json

0: the models agree; 1: they diverge; 2: wrong use or bad input, said in one sentence. Whatever
takes time to import is imported after the options have been checked.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tracer.choices import LEVELS, NO_ISOLATION
from tracer.cli import ablate as ablation
from tracer.cli.checks import check, check_making, debugs
from tracer.cli.parser import AGREES, DIVERGES, INTERRUPTED, WRONG_USE, parse
from tracer.cli.sides import Sides, alone, given, sides_of
from tracer.errors import ModelRunError, TracerError
from tracer.models.locate import is_trace
from tracer.reports import Run, save, wants_samples

if TYPE_CHECKING:
    from tracer.comparison.capturing import Captured
    from tracer.comparison.result import Comparison


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
        command = {"compare": _compare, "record": _record, "show": _show, "ablate": _ablate}[
            options.command
        ]
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


def _debugging(options: argparse.Namespace) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What `compare` is given for a debugger, and a note if it stays closed."""
    if not debugs(options):
        return {}, ()
    from tracer.debugger.breakpoints import Breakpoint
    from tracer.debugger.prompt import choose_debugger

    choice = choose_debugger(options.debugger)
    if not choice.opens:
        return {}, (choice.note,)
    given = {"at": options.break_at, "when": options.break_when}
    how = {name: value for name, value in given.items() if value is not None}
    return {
        "breakpoints": [Breakpoint(glob, **how) for glob in options.breakpoints],
        "post_mortem": options.post_mortem,
        "debugger": options.debugger,
    }, ()


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _record(options: argparse.Namespace, command: str) -> int:
    """Records a model and returns the exit code."""
    check_making(options)
    from tracer.traces.files import check_new

    check_new(options.out)
    from tracer import record

    model, inputs, notes = alone(options)
    made = record(
        model,
        inputs,
        options.out,
        include=options.include or "*",
        name=options.model,
        seed=options.seed,
        command=command,
        notes=notes,
        **given(options, "values"),
    )
    print(
        f"{made.path}: {made.calls} calls, {made.tensors} tensors, {made.size / 2**20:.2f} MiB of "
        "values"
    )
    return AGREES


def _show(options: argparse.Namespace, command: str) -> int:
    """Prints the data flow of a model or a trace and returns the exit code."""
    if not is_trace(options.model):
        check_making(options)
    import torch

    from tracer import flow, open_trace
    from tracer.reports.console import make_console
    from tracer.reports.dataflow import render, show

    given = (open_trace(options.model),) if is_trace(options.model) else alone(options)[:2]
    shown = flow(*given, include=options.include or "*", focus=options.focus)
    if options.json:
        sys.stdout.write(render(shown))
        return AGREES
    torch.set_printoptions(**dict(options.print_options))
    show(shown, width=make_console().width, tree=options.tree)
    return AGREES


def _ablate(options: argparse.Namespace, command: str) -> int:
    """Runs a study and returns the exit code."""
    ablation.run(options, command)
    return AGREES


def _compare(options: argparse.Namespace, command: str) -> int:
    """Does the work and returns the exit code."""
    check(options)
    import torch

    from tracer.cli.thresholds import held_against, open_former
    from tracer.reports.progress import call_counter

    former = open_former(options)
    sides = sides_of(options)
    from tracer import capture, compare
    from tracer.tensors.samples import SAMPLES

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
    held = held_against(options, sides, former)
    if options.train:
        torch.manual_seed(options.seed)  # of what drops out
    calls = len(list(reference.modules())) * (1 + (options.steps or 0))
    with call_counter("comparing", calls) as tell:
        comparison = compare(
            reference,
            candidate,
            inputs,
            rename=rename,
            tolerance=options.tolerance,
            train=options.train,
            confirm=not run.differences_expected,
            noise_floor=options.noise_floor,
            isolate=_isolation(options, sides),
            what_if=options.what_if,
            zoom=options.zoom,
            samples=SAMPLES if wants_samples(options.report) else 0,
            progress=None if debugging else tell,  # no bar where a prompt may open
            **debugging,
        )
    if _is_whole(comparison):
        comparison = held.judge(comparison, differences_expected=run.differences_expected)
    captured: list[Captured] = []
    if options.focus and not comparison.coverage.ended:
        captured = capture(reference, candidate, inputs, include=options.focus, rename=rename)
    for report in options.report:
        save(comparison, report, run=run)
    _print(comparison, options, run, captured)
    only_divergence = (options.fail_on or "divergence") == "divergence"
    return _exit_code(comparison, run, only_divergence=only_divergence)


def _isolation(options: argparse.Namespace, sides: Sides) -> str | None:
    """What is isolated: what was asked for, and with quantisation on everything by default."""
    from tracer.comparison.trace_limits import why_not_run_again

    can_be = not why_not_run_again(sides.reference, sides.candidate)
    if options.isolate is None and ((sides.quantized and can_be) or options.what_if):
        return LEVELS[0]
    return None if options.isolate == NO_ISOLATION else options.isolate


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


def _exit_code(comparison: "Comparison", run: Run, *, only_divergence: bool) -> int:
    """What was ended before anything differed, by the user or as a recording, is no success.

    Args:
        only_divergence: nothing else makes the run fail, so that one that was ended may be judged.
    """
    if not _is_whole(comparison):
        unknown = comparison.verdict.symptom is None or run.differences_expected
        return WRONG_USE if unknown or not only_divergence else DIVERGES
    passes = comparison.verdict.agrees or run.differences_expected
    if comparison.gate is not None:
        passes = comparison.gate.passes
    return AGREES if passes else DIVERGES


def _is_whole(comparison: "Comparison") -> bool:
    return not (comparison.coverage.ended or comparison.coverage.recordings)


def _is_known(error: Exception) -> bool:
    """Whether an error says in one sentence what the user can do about it."""
    if isinstance(error, TracerError):
        return True
    if "wrappers" not in sys.modules:
        return False
    import wrappers

    return isinstance(error, wrappers.errors.WrappersError)
