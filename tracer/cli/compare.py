"""`trace_model compare`: compares, judges, reports."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TextIO

import torch

import tracer
from tracer.choices import LEVELS, NO_ISOLATION
from tracer.cli.exit_codes import ExitCode
from tracer.cli.requests import CompareRequest
from tracer.cli.resolve import Sides, resolve
from tracer.cli.settings import identified
from tracer.cli.thresholds import open_former, thresholds
from tracer.comparison.capturing import Captured
from tracer.comparison.result import Comparison
from tracer.comparison.trace_limits import why_not_run_again
from tracer.debugger.breakpoints import Breakpoint
from tracer.debugger.prompt import choose_debugger
from tracer.reports import Run, console, json, save, wants_samples
from tracer.reports.parts.headline import headline
from tracer.reports.progress import call_counter
from tracer.tensors.samples import SAMPLES
from tracer.text import visible


@dataclass(frozen=True)
class Compared:
    """What a comparison has given.

    Attributes:
        captured: the values of `--focus`.
        code: what the process exits with.
    """

    comparison: Comparison
    run: Run
    captured: Sequence[Captured]
    code: ExitCode


def compare(request: CompareRequest, command: str, out: TextIO) -> ExitCode:
    """Does the work and returns the exit code; `out` is where JSON goes."""
    if request.through is not None:
        from tracer.cli.through import through

        return through(request)
    done = examine(request, command)
    show(done, request, out)
    return done.code


def examine(request: CompareRequest, command: str) -> Compared:
    """Compares, judges and writes the reports."""
    former = open_former(request)
    sides = resolve(request)
    debugging, debugger_note = _debugging(request)
    run = Run(
        reference=sides.names[0],
        candidate=sides.names[1],
        notes=(*sides.notes, *debugger_note),
        command=command,
        quantized=sides.quantized,
        differences_expected=sides.quantized
        and request.tolerance is None
        and request.fail_on != "divergence",
    )
    rename = dict(request.map)
    limits = thresholds(request, sides, former)
    if request.train:
        torch.manual_seed(request.seed)  # of what drops out
    calls = len(list(sides.reference.modules())) * (1 + (request.steps or 0))
    with call_counter("comparing", calls) as tell:
        comparison = tracer.compare(
            sides.reference,
            sides.candidate,
            sides.inputs,
            candidate_inputs=sides.candidate_inputs,
            map_inputs=dict(request.map_input),
            rename=rename,
            tolerance=request.tolerance,
            train=request.train,
            inside=request.inside,
            confirm=not run.differences_expected,
            noise_floor=request.noise_floor,
            strict=request.strict,
            isolate=_isolation(request, sides),
            what_if=request.what_if,
            zoom=request.zoom,
            samples=SAMPLES if wants_samples(request.report) else 0,
            progress=None if debugging else tell,  # no bar where a prompt may open
            **debugging,
        )
    comparison = identified(comparison, request)
    if _is_whole(comparison):
        comparison = limits.judge(comparison, differences_expected=run.differences_expected)
    captured: list[Captured] = []
    if request.focus and not comparison.coverage.ended:
        captured = tracer.capture(
            *(sides.reference, sides.candidate, sides.inputs),
            include=request.focus,
            candidate_inputs=sides.candidate_inputs,
            map_inputs=dict(request.map_input),
            rename=rename,
            inside=request.inside,
        )
    code = _exit_code(comparison, run, request.fail_on)
    run = replace(run, exit_code=int(code))
    for report in request.report:
        save(comparison, report, run=run)
    return Compared(comparison, run, captured, code)


def show(done: Compared, request: CompareRequest, out: TextIO) -> None:
    """Prints what was found, as the request asks for it."""
    if request.json:
        out.write(json.render(done.comparison, done.run))
    elif request.output.quiet:
        said = headline(done.comparison, expected=done.run.differences_expected)
        print(visible(said.line), file=out)
    else:
        console.show(
            done.comparison,
            all_rows=request.all,
            ranked=done.run.quantized,
            focus=done.captured,
            run=done.run,
        )


def _debugging(request: CompareRequest) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What `compare` is given for a debugger, and a note if it stays closed."""
    if not request.debugs:
        return {}, ()
    choice = choose_debugger(request.debugger)
    if not choice.opens:
        return {}, (choice.note,)
    given = {"at": request.break_at, "when": request.break_when}
    how = {name: value for name, value in given.items() if value is not None}
    return {
        "breakpoints": [Breakpoint(glob, **how) for glob in request.breakpoints],
        "post_mortem": request.post_mortem,
        "debugger": request.debugger,
    }, ()


def _isolation(request: CompareRequest, sides: Sides) -> str | None:
    """What is isolated: what was asked for, and with quantisation on everything by default."""
    can_be = not why_not_run_again(sides.reference, sides.candidate)
    if request.isolate is None and ((sides.quantized and can_be) or request.what_if):
        return LEVELS[0]
    return None if request.isolate == NO_ISOLATION else request.isolate


def _exit_code(comparison: Comparison, run: Run, fail_on: str | None) -> ExitCode:
    """What was ended before anything differed, by the user or as a recording, is no success."""
    if not _is_whole(comparison):
        unknown = comparison.verdict.symptom is None or run.differences_expected
        # A run that was ended is judged by its divergence, where nothing else makes it fail.
        is_judged = fail_on in (None, "divergence")
        return ExitCode.WRONG_USE if unknown or not is_judged else ExitCode.DIVERGES
    passes = comparison.verdict.agrees or run.differences_expected
    if comparison.gate is not None:
        passes = comparison.gate.passes
    return ExitCode.AGREES if passes else ExitCode.DIVERGES


def _is_whole(comparison: Comparison) -> bool:
    return not (comparison.coverage.ended or comparison.coverage.recordings)
