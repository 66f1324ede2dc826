"""compare(): two models and one set of inputs in, a Comparison out.

>>> comparison = tracer.compare(reference, candidate, {"input_ids": ids})
>>> comparison.verdict.agrees, comparison.verdict.origin.module
(False, 'model.layers.0.self_attn')
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from tracer.comparison.noise_floor import NoiseFloor, measure_noise
from tracer.comparison.trace_limits import (
    check_asked,
    covering_recordings,
    is_recorded,
    why_not_run_again,
    with_recordings,
)
from tracer.debugger.breakpoints import Breakpoint, debugger_of
from tracer.diagnosis.finding import OriginKind
from tracer.diagnosis.verdict import Verdict, judge, judge_ended
from tracer.diagnosis.zoom.zoom import Zoomed, check_zoom, zoom_at, zoom_of
from tracer.errors import ModelRunError, NothingComparedError, UsageError
from tracer.execution.dropout import check_training
from tracer.execution.lockstep import EventKey, Failure, Outcome, Visitor
from tracer.execution.offload import lacks_values
from tracer.execution.session import Inputs, Session, working_dtype
from tracer.isolation.levels import modules_at
from tracer.isolation.measure import isolated
from tracer.measurement.comparer import Comparer
from tracer.measurement.coverage import make_coverage
from tracer.tensors.samples import Sampler
from tracer.tensors.tolerance import Tolerance
from tracer.text import brief, module_in_words

if TYPE_CHECKING:
    pass
from tracer.comparison.result import Comparison

# A value that is edited in place before it can be compared costs one more run, in which it is
# cloned; that may bring to light another one.
_MOST_RUNS = 4


def compare(
    reference: nn.Module,
    candidate: nn.Module,
    inputs: Inputs | None = None,
    *,
    rename: Mapping[str, str] | None = None,
    tolerance: float | Tolerance | None = None,
    include: str | Sequence[str] = "*",
    train: bool = False,
    confirm: bool = True,
    isolate: str | None = None,
    what_if: int = 0,
    causes: bool = True,
    noise_floor: bool = False,
    zoom: str | None = None,
    breakpoints: str | Breakpoint | Sequence[str | Breakpoint] = (),
    post_mortem: bool = False,
    debugger: str | None = None,
    samples: int = 0,
    progress: Callable[[int], None] | None = None,
) -> "Comparison":
    """Runs two models side by side on the same inputs and says where they part, and why.

    Both run without gradients, in the mode (training or evaluation) they are in, from the same
    random state, each on its own copy of the inputs. Neither the models, nor the inputs, nor the
    random state are changed: what modules keep from call to call in attributes and buffers (running
    statistics, a recurrent state) is put back. Where the models diverge, both are run again a few
    times to confirm the cause.

    Args:
        reference: the model that is right by definition, or a recording of it (`open_trace`).
        candidate: the model under test, or a recording of it; it may share modules with the
            reference or be the same, but for modules that keep a state.
        inputs: keyword arguments as a dict, positional ones as a tuple, or a single tensor. Floats
            of the reference's dtype are cast to the candidate's where that is another one. By
            default those of a recording.
        rename: regular expressions and replacements that turn the candidate's module names into
            the reference's.
        tolerance: the PEIR (a ratio) up to which floats agree; by default a limit per dtype.
        include: globs of the reference's module names to compare.
        train: allows dropout that is active. Each paired call then draws the same random numbers on
            both sides, whatever is drawn before; another run draws the same again unless PyTorch is
            seeded otherwise.
        confirm: whether the origin of a divergence is tested by running again.
        isolate: measures how much of the error modules introduce themselves, in further runs where
            they are given the reference's inputs: "leaves", "blocks", "layers" or a glob of the
            reference's module names; see `tracer.isolation.levels`.
        what_if: how many of the modules that introduce most ("leaves", unless `isolate` says
            otherwise) are swapped for the reference's, to see how far the final output recovers.
        causes: whether isolation looks for the quantization points that explain most; of whole
            layers that takes longer than all the rest.
        noise_floor: measures what rounding alone does to the reference, in two further runs of it,
            one in float64; rows then also have their PEIR as a multiple of that.
        zoom: names the guilty operation and its line inside a module, by the reference's name; for
            a confirmed origin in a module's own lines that is done by itself; `diagnosis.zoom`.
        breakpoints: where the debugger opens, with both models at the same call: globs of the
            reference's module names, or `Breakpoint`s. A run that is ended there
            returns what it has compared, with `coverage.ended`.
        post_mortem: the debugger opens where a model raises.
        debugger: "ipdb" or "pdb"; by default what PYTHONBREAKPOINT says, or ipdb in a terminal and
            pdb elsewhere.
        samples: how many pairs of elements of each output to keep, for the drawings of an .html
            report; 256 are enough.
        progress: called with the number of finished pairs of calls.

    Raises:
        InputError: the inputs are of another type, name arguments that forward does not take, or
            are not those of a recording.
        StorageError: a recording is damaged, or one of another model.
        UsageError: a glob or rename rule matches nothing, the tolerance is no limit, there is
            nothing to isolate, a lazy module has not been run yet, a number is negative, or the
            debugger cannot be opened; dropout is active and `train` is not given; or something
            needs a model where there is a recording.
        ModelRunError: a model raised; `comparison` holds what was compared before.
        NothingComparedError: the models have no output in common.
    """
    if what_if < 0:
        raise UsageError(f"what_if {what_if}: expected how many modules to swap, at least 0")
    check_asked(
        reference,
        candidate,
        isolate=isolate is not None,
        what_if=what_if > 0,
        noise_floor=noise_floor,
        zoom=zoom is not None,
        debugger=bool(breakpoints) or post_mortem,
    )
    check_training(reference, candidate, train=train)
    session = Session(reference, candidate, inputs, rename, include)
    if what_if and isolate is None:
        isolate = "leaves"
    chosen = None if isolate is None else modules_at(isolate, session.pairing)
    check_zoom(zoom, session.pairs.values())
    if not isinstance(tolerance, Tolerance):
        working = (working_dtype(model) for model in (reference, candidate))
        tolerance = Tolerance(tolerance, tuple(dtype for dtype in working if dtype is not None))
    sampler = Sampler(samples) if samples else None
    clone: frozenset[EventKey] = frozenset()
    for run in range(_MOST_RUNS):
        comparer = Comparer(tolerance, progress, sampler)
        watch = None
        if run == 0:
            watch = debugger_of(
                breakpoints,
                list(session.pairs.values()),
                comparer.records,
                debugger=debugger,
                post_mortem=post_mortem,
            )
        outcome = session.run(comparer, clone, watch)
        if watch is not None and not outcome.ended and outcome.failure is None:
            watch.warn_of_missed()
        if outcome.ended or comparer.edited <= clone:
            break
        clone |= comparer.edited

    def rerun(visitor: Visitor) -> str | None:
        failure = session.run(visitor, clone).failure
        return None if failure is None else _in_words(failure)

    failure = outcome.failure
    candidates_own = failure is not None and failure.side == "candidate"
    confirm &= not outcome.ended and not why_not_run_again(reference, candidate)
    coverage = covering_recordings(
        make_coverage(session.pairing, comparer, outcome), reference, candidate
    )
    modules = session.pairing.reference, session.pairing.candidate
    if outcome.ended:
        verdict = judge_ended(comparer.rows)
    else:
        verdict = judge(
            comparer,
            tolerance,
            rerun if confirm and (failure is None or candidates_own) else None,
            modules,
            coverage.unmatched_calls,
            failure if candidates_own else None,
        )
    verdict = with_recordings(verdict, reference, candidate)
    comparison = Comparison(
        verdict=verdict,
        coverage=coverage,
        rows=tuple(comparer.rows),
        form_differences=tuple(
            form for record in comparer.records.values() for form in record.form_differences
        ),
    )
    if outcome.ended:
        return comparison
    raise_failure(outcome, comparison)
    _check_something_compared(comparison, outcome)
    zoomed = None
    if zoom is not None:
        zoomed = zoom_at(zoom, comparer, tolerance, rerun, modules)
    elif verdict.confirmed and not is_recorded(reference, candidate):
        zoomed = zoom_of(verdict.origin, comparer, tolerance, rerun, modules)
    if zoomed is not None:
        comparison = with_zoom(comparison, zoomed)
    if noise_floor:
        comparison = with_floor(comparison, measure_noise(reference, session.given, include))
    if isolate is not None:

        def must_run(visitor: Visitor) -> None:
            raise_failure(session.run(visitor, clone), comparison)

        isolation = isolated(
            *(isolate, chosen, comparer, tolerance, must_run),
            candidate=candidate,
            what_if=what_if,
            explain=causes,
        )
        comparison = replace(comparison, isolation=isolation)
    return comparison


def with_zoom(comparison: "Comparison", zoomed: Zoomed) -> "Comparison":
    """The comparison with what was found inside a module, which its verdict says too."""
    verdict = comparison.verdict.with_beside(zoomed)
    return replace(comparison, verdict=verdict, zoomed=zoomed)


def with_floor(comparison: "Comparison", floor: NoiseFloor) -> "Comparison":
    """The comparison with the noise floor in its rows, and what that says in its verdict."""
    rows = floor.measured(comparison.rows)
    verdict = comparison.verdict.with_beside(floor.read(rows))
    return replace(comparison, verdict=verdict, rows=rows)


def raise_failure(outcome: Outcome, comparison: "Comparison | None") -> None:
    if outcome.failure is None:
        return
    text = _in_words(outcome.failure)
    if comparison is not None and comparison.verdict.confirmed:
        text += f"; it began when {_cause(comparison.verdict)}"
    raise ModelRunError(text, comparison) from outcome.failure.exception


def _cause(verdict: Verdict) -> str:
    """The origin in a clause, for an error that names what was raised."""
    assert verdict.origin is not None
    module = module_in_words(verdict.origin.module)
    if verdict.origin.argument is not None:
        return f"{module} passed a wrong `{verdict.origin.argument}`"
    if verdict.origin.kind is OriginKind.PARAMETER:
        return f"{module} computed with a wrong parameter"
    return f"the forward of {module} itself went wrong"


def _in_words(failure: Failure) -> str:
    where = "outside its modules"
    if failure.call is not None:
        where = f"in module {failure.call.name!r}" if failure.call.name else "in its own forward"
        where += f" ({type(failure.call.module).__name__}, call {failure.call.index})"
    text = f"the {failure.side} raised {type(failure.exception).__name__} {where}: "
    hint = ""
    if failure.call is not None and lacks_values(failure.call.module):
        hint = "; its parameters lie on the meta device and hold no values: load the weights first"
    also = "" if failure.also is None else "; the candidate raised too"
    return f"{text}{brief(failure.exception)}{hint}{also}"


def _check_something_compared(comparison: "Comparison", outcome: Outcome) -> None:
    compared = [row for row in comparison.rows if row.is_output and row.difference is not None]
    met = any(row.module for row in comparison.rows if row.is_output)
    called, others = (
        [name for name in calls if name]
        for calls in (outcome.reference_calls, outcome.candidate_calls)
    )
    hint = "Are these the same model? If only the names differ, give rename rules"
    if not compared:
        raise NothingComparedError(
            "no output of the candidate could be compared with the reference's: none of its "
            f"{len(others) + 1} called modules has an output of the same shape as its counterpart "
            f"among the reference's {len(called) + 1}. {hint}"
        )
    if called and others and not comparison.verdict.agrees and not met:
        raise NothingComparedError(
            f"the outputs differ, and none of the reference's {len(called)} called modules (such "
            f"as {', '.join(called[:3])}) has a counterpart among the candidate's {len(others)} "
            f"(such as {', '.join(others[:3])}). {hint}"
        )
