"""compare(): two models and one set of inputs in, a Comparison out.

>>> comparison = tracer.compare(reference, candidate, {"input_ids": ids})
>>> comparison.verdict.agrees, comparison.verdict.origin.module
(False, 'model.layers.0.self_attn')
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from trace_model.annotations import checked
from tracer.adapters.opening import Model, as_models
from tracer.adapters.quantised import lookup, silent
from tracer.comparison.identity import Identity
from tracer.comparison.noise_floor import NoiseFloor, measure_noise
from tracer.comparison.nothing_compared import check_something_compared
from tracer.comparison.opened import is_hidden, with_inside
from tracer.comparison.options import Debugging, Isolate, what_to_isolate
from tracer.comparison.progress_bar import can_show_progress
from tracer.comparison.result import Comparison
from tracer.comparison.trace_limits import (
    check_asked,
    covering_recordings,
    is_recorded,
    why_not_run_again,
    with_recordings,
)
from tracer.debugger.breakpoints import Breakpoint, debugger_of
from tracer.diagnosis.discrete import NearTie, near_ties
from tracer.diagnosis.finding import OriginKind, RandomDraws, TightTolerance
from tracer.diagnosis.gradients import GradientsDiffer, compare_gradients
from tracer.diagnosis.optimised import optimised, with_optimised
from tracer.diagnosis.structure import wrong_structure
from tracer.diagnosis.verdict import Verdict, judge, judge_ended
from tracer.diagnosis.zoom.zoom import Zoomed, named_by_user, zoom_at, zoom_of
from tracer.errors import ModelRunError, UsageError
from tracer.execution.compilation import compiled_parts
from tracer.execution.dropout import check_training
from tracer.execution.inputs import Inputs
from tracer.execution.lockstep import Outcome
from tracer.execution.session import Session
from tracer.execution.side import EventKey, Failure
from tracer.execution.torch_internals import can_open_fused
from tracer.interventions.call_order import reorder_calls
from tracer.interventions.experiment import Experiment, failure_in_words
from tracer.interventions.forcing import SameChoices
from tracer.isolation.levels import modules_at
from tracer.isolation.measure import isolated
from tracer.measurement.comparer import Comparer
from tracer.measurement.coverage import make_coverage
from tracer.measurement.gradients import CannotDifferentiateError
from tracer.measurement.intervention import Intervention
from tracer.measurement.progress import Phases
from tracer.measurement.rows import first_divergence
from tracer.tensors.leaves import dtype_name
from tracer.tensors.roles import DEFAULT_ROLES, Roles
from tracer.tensors.samples import Sampler
from tracer.tensors.tolerance import Tolerance
from tracer.text import module_in_words

# A value that is edited in place before it can be compared costs one more run, in which it is
# cloned; that may bring to light another one. So do random numbers that both sides drew from one
# generator.
_MOST_RUNS = 4


@checked(UsageError, but=("inputs", "candidate_inputs"))
@can_show_progress
@can_open_fused
def compare(
    reference: Model,
    candidate: Model,
    inputs: Inputs | None = None,
    *,
    candidate_inputs: Inputs | None = None,
    map_inputs: Mapping[str, str] | None = None,
    rename: Mapping[str, str] | None = None,
    tolerance: float | Tolerance | None = None,
    roles: Roles = DEFAULT_ROLES,
    include: str | Sequence[str] = "*",
    inside: bool = False,
    train: bool = False,
    strict: bool = False,
    confirm: bool = True,
    isolate: str | Isolate | None = None,
    what_if: int = 0,
    causes: bool | Literal["all"] = True,
    noise_floor: bool = False,
    zoom: str | None = None,
    breakpoints: str | Breakpoint | Sequence[str | Breakpoint] = (),
    post_mortem: bool = False,
    debugger: str | None = None,
    debugging: Debugging | None = None,
    samples: int = 0,
    progress: Callable[[int], None] | bool | None = None,
) -> Comparison:
    """Runs two models side by side on the same inputs and says where they diverge, and why.

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
        candidate_inputs: what the candidate is given instead, in the same forms. What both are
            given under one name has to be the same data, in any dtype and order of dimensions.
        map_inputs: the reference's name of an argument by the candidate's, where they differ:
            `{"tokens": "input_ids"}`.
        rename: regular expressions and replacements that turn the candidate's module names into
            the reference's.
        tolerance: the PEIR (a ratio) up to which floats agree; by default a limit per dtype.
        roles: which arguments are attention masks, padding and caches, as their names say.
        include: globs of the modules to compare, by the reference's names or the candidate's.
        inside: opens what is compiled in the candidate, in stages and module by module, also where
            it agrees; where it diverges that is done by itself. The level of `isolate` then says
            which modules are compiled alone. And opens the layers that PyTorch
            computes in one piece (the fused path of `nn.TransformerEncoderLayer`), whose numbers
            are then those of the path without it.
        train: allows dropout that is active. Each paired call then draws the same random numbers on
            both sides, whatever is drawn before; another run draws the same again unless PyTorch is
            seeded otherwise.
        strict: values that differ inside and are made good again before the output (`equivalent`)
            are no agreement.
        confirm: whether the origin of a divergence is tested by running again.
        isolate: measures how much of the error modules introduce themselves: an `Isolate`, or its
            level.
        what_if, causes: as for `Isolate`, whose level is "leaves" unless `isolate` says otherwise.
        noise_floor: measures what rounding alone does to the reference, in two further runs of it,
            one in float64; rows then also have their PEIR as a multiple of that, and agree up to
            8 times of it.
        zoom: names the culprit, an operation and its line, inside a module, by the reference's name
            or the candidate's; for a confirmed origin in a module's own forward that is done by
            itself.
        breakpoints, post_mortem, debugger: as for `Debugging`.
        debugging: these three in one.
        samples: how many pairs of elements of each output to keep, for the drawings of an .html
            report; 256 are enough.
        progress: called with the number of finished pairs of calls; with a method `phase`, in all
            runs, and told what each is for: see `tracer.measurement.progress`. True shows them as a
            bar.

    Raises:
        InputError: the inputs are of another type, name arguments that forward does not take, are
            not those of a recording, or are not the same on both sides.
        StorageError: a recording is damaged, or one of another model.
        UsageError: a glob or rename rule matches nothing, the tolerance is no limit, there is
            nothing to isolate, a lazy module has not been run yet, a number is negative, or the
            debugger cannot be opened; dropout is active and `train` is not given; or something
            needs a model where there is a recording.
        ModelRunError: a model raised; `comparison` holds what was compared before.
        NothingComparedError: the models have no output in common.
    """
    reference, candidate = as_models(reference, candidate)
    isolating = what_to_isolate(isolate, what_if, causes=causes)
    debugging = debugging or Debugging(breakpoints, post_mortem, debugger)
    check_asked(
        reference,
        candidate,
        isolate=isolating is not None,
        what_if=isolating is not None and isolating.what_if > 0,
        noise_floor=noise_floor,
        zoom=zoom is not None,
        debugger=debugging.is_asked,
    )
    check_training(reference, candidate, train=train)
    lookup.settle(reference, candidate)
    session = Session(
        *(reference, candidate, inputs, rename, include),
        candidate_inputs=candidate_inputs,
        map_inputs=map_inputs,
    )
    level = None
    if inside and isolating is not None and not isolating.what_if and compiled_parts(candidate):
        level, isolating = isolating.level, None
    chosen = None if isolating is None else modules_at(isolating.level, session.pairing)
    zoom = None if zoom is None else named_by_user(zoom, session.pairs)
    if not isinstance(tolerance, Tolerance):
        tolerance = Tolerance(tolerance, session.dtypes)
    sampler = Sampler(samples) if samples else None
    phases = Phases(None if isinstance(progress, bool) else progress)
    floor = None
    if noise_floor:
        floor = measure_noise(reference, session.given, include, roles, phases)
    rounding = {} if floor is None else floor.peir

    def comparer(at_once: Set[EventKey], *interventions: Intervention) -> Comparer:
        made = Comparer(
            *(tolerance, interventions),
            roles=roles,
            progress=phases.next_run(),
            sampler=sampler,
            at_once=at_once,
            is_on_host=session.is_on_host,
        )
        made.rounding = rounding
        return made

    may_run = confirm and not why_not_run_again(reference, candidate)
    phases.begin_comparing()
    free = _run(session, comparer, debugging, may_run=may_run)
    experiment = Experiment(session, tolerance, roles, free.clone, rounding=rounding, phases=phases)
    phases.begin("confirming")
    ties: tuple[NearTie, ...] = ()
    is_whole = free.outcome.failure is None and not free.outcome.ended
    if confirm and is_whole and not is_recorded(reference, candidate):
        ties = near_ties(free.comparer, experiment)
    if ties:
        experiment = experiment.choosing_alike(tie.key for tie in ties)
        free = _run(
            session,
            lambda at_once: comparer(at_once, SameChoices(experiment.same_choices)),
            Debugging(),
            may_run=False,
        )
    comparison = _judged(free, experiment, confirm=confirm, strict=strict)
    if is_whole and not free.outcome.ended and (found := optimised(session, tolerance)):
        comparison = replace(comparison, verdict=with_optimised(comparison.verdict, found))
    if ties:
        first, records = first_divergence(free.comparer.rows), free.comparer.records
        before = [t for t in ties if first is None or records[t.key].start < first.order]
        comparison = replace(comparison, verdict=comparison.verdict.with_beside(*before))
    wrong = (wrong_structure(session), silent.silent_mistakes(candidate))
    beside = (each for each in wrong if each is not None)
    comparison = replace(comparison, verdict=comparison.verdict.with_beside(*beside))
    if free.outcome.ended:
        return comparison
    raise_failure(free.outcome.failure, comparison)
    check_something_compared(comparison, free.comparer, free.outcome, session.pairs)
    if train and comparison.verdict.agrees:
        phases.begin("comparing gradients")
        phases.next_run()
        comparison = _with_gradients(comparison, experiment, free.comparer.tolerance)
    near = free.comparer, experiment
    can_open = not why_not_run_again(reference, candidate)
    if can_open and (inside or (confirm and is_hidden(comparison.verdict))):
        draws = bool(free.outcome.draws)
        comparison, near = with_inside(comparison, *near, draws=draws, strict=strict, level=level)
    phases.begin("zooming")
    if zoom is not None:
        comparison = with_zoom(comparison, zoom_at(zoom, free.comparer, experiment))
    elif comparison.verdict.confirmed and not is_recorded(reference, candidate):
        zoomed = zoom_of(comparison.verdict.origin, *near)
        comparison = comparison if zoomed is None else with_zoom(comparison, zoomed)
    if floor is not None:
        comparison = with_floor(comparison, floor)
    if isolating is not None:
        with _holding(comparison):
            isolation = isolated(
                *(isolating.level, chosen, free.comparer, experiment),
                what_if=isolating.what_if,
                explain=isolating.causes,
            )
        comparison = replace(comparison, isolation=isolation)
    return comparison


@dataclass(frozen=True)
class _FreeRun:
    """The run in which the candidate inherits its errors, and which values were cloned in it."""

    comparer: Comparer
    outcome: Outcome
    clone: frozenset[EventKey]


def _run(
    session: Session,
    comparer_of: Callable[[Set[EventKey]], Comparer],
    debugging: Debugging,
    *,
    may_run: bool,
) -> _FreeRun:
    """Runs both models, and again where other modules were called than are paired, and as long as
    values turn out to be edited before they are seen.
    """
    clone: frozenset[EventKey] = frozenset()
    for run in range(_MOST_RUNS):
        comparer = comparer_of(clone)
        watch = None
        if run == 0:
            watch = debugger_of(
                debugging.breakpoints,
                session.pairs,
                comparer.records,
                debugger=debugging.debugger,
                post_mortem=debugging.post_mortem,
            )
        outcome = session.run(comparer, clone, watch)
        if watch is not None and not outcome.ended and outcome.failure is None:
            watch.warn_of_missed()
        if outcome.ended:
            break
        # What is registered and never run may have been paired instead of what is.
        is_paired_anew = outcome.failure is None and (
            (run == 0 and session.pair_again(outcome))
            or (may_run and reorder_calls(session, comparer))
        )
        if comparer.edited <= clone and not is_paired_anew and not outcome.shared_draws:
            break
        clone = frozenset() if is_paired_anew else clone | comparer.edited
    return _FreeRun(comparer, outcome, clone)


def _judged(free: _FreeRun, experiment: Experiment, *, confirm: bool, strict: bool) -> Comparison:
    """The comparison with its verdict, which may take further runs."""
    comparer, failure = free.comparer, free.outcome.failure
    reference, candidate = experiment.session.reference, experiment.session.candidate
    candidates_own = failure is not None and failure.side == "candidate"
    coverage = covering_recordings(
        make_coverage(experiment.session.pairing, comparer, free.outcome), reference, candidate
    )
    if free.outcome.ended:
        verdict = judge_ended(comparer.rows)
    else:
        verdict = judge(
            comparer,
            experiment,
            may_run=confirm
            and (failure is None or candidates_own)
            and not why_not_run_again(reference, candidate),
            strict=strict,
            one_sided=coverage.unmatched_calls,
            failure=failure if candidates_own else None,
        )
        if failure is not None and verdict.agrees:
            verdict = judge_ended(comparer.rows, failure.side)
    below = experiment.tolerance.below_rounding()
    if below is not None and verdict.symptom is not None:
        tight = TightTolerance(experiment.tolerance.peir or 0.0, dtype_name(below[0]), below[1])
        verdict = verdict.with_beside(tight)
    if free.outcome.draws:
        verdict = verdict.with_beside(RandomDraws(free.outcome.draws, verdict.agrees))
    records = comparer.records.values()
    names = {record.module: record.candidate_module for record in comparer.records.values()}
    verdict = replace(verdict, names={r: c for r, c in names.items() if r != c})
    return Comparison(
        verdict=with_recordings(verdict, reference, candidate),
        coverage=coverage,
        rows=tuple(comparer.rows),
        form_differences=tuple(form for record in records for form in record.form_differences),
        identity=Identity.of(experiment.session),
    )


def _with_gradients(
    comparison: Comparison, experiment: Experiment, tolerance: Tolerance
) -> Comparison:
    """The comparison of models that agree going forward, with what their gradients say."""
    order = len(comparison.rows)
    try:
        found = compare_gradients(experiment.session, tolerance, experiment.roles, order)
    except CannotDifferentiateError as error:
        ended = replace(comparison, verdict=judge_ended(comparison.rows, error.side))
        raise ModelRunError(
            f"the {error.side} raised {error}, in its forward with gradients or in its backward",
            ended,
        ) from error.__cause__
    if not isinstance(found, GradientsDiffer):
        return replace(comparison, verdict=comparison.verdict.with_beside(found))
    verdict = found.verdict.with_beside(*comparison.verdict.beside)
    verdict = replace(verdict, names=comparison.verdict.names)
    differing = replace(comparison, verdict=verdict, rows=(*comparison.rows, *found.rows))
    return differing if found.zoomed is None else with_zoom(differing, found.zoomed)


def with_zoom(comparison: Comparison, zoomed: Zoomed) -> Comparison:
    """The comparison with what was found inside a module, which its verdict says too."""
    verdict = comparison.verdict.with_beside(zoomed)
    return replace(comparison, verdict=verdict, zoomed=zoomed)


def with_floor(comparison: Comparison, floor: NoiseFloor) -> Comparison:
    """The comparison with the noise floor in its rows, and what that says in its verdict."""
    rows = floor.measured(comparison.rows)
    verdict = comparison.verdict.with_beside(floor.read(rows))
    return replace(comparison, verdict=verdict, rows=rows)


def raise_failure(failure: Failure | None, comparison: Comparison | None) -> None:
    """Raises what ended a run, with what was compared before."""
    if failure is not None:
        with _holding(comparison):
            raise ModelRunError(failure_in_words(failure)) from failure.exception


@contextmanager
def _holding(comparison: Comparison | None) -> Iterator[None]:
    """Gives what models raise the comparison so far, and its origin if that is confirmed."""
    try:
        yield
    except ModelRunError as error:
        text = str(error)
        if comparison is not None and comparison.verdict.confirmed:
            text += f"; it began when {_cause(comparison.verdict)}"
        raise ModelRunError(text, comparison) from error.__cause__


def _cause(verdict: Verdict) -> str:
    """The origin in a clause, for an error that names what was raised."""
    assert verdict.origin is not None
    module = module_in_words(verdict.origin.module)
    if verdict.origin.argument is not None:
        return f"{module} passed a wrong `{verdict.origin.argument}`"
    if verdict.origin.kind is OriginKind.PARAMETER:
        return f"{module} computed with a wrong parameter"
    return f"the forward of {module} itself went wrong"
