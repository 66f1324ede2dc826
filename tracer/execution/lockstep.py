"""Runs reference and candidate together, one at a time, and switches at each call.

Both models run as greenlets of one thread. At each start and end of a candidate's call the
reference is advanced to the same event of the paired module; a visitor then sees both calls while
both models stand there, and both go on. Memory beyond the two models is what is alive at one event,
whatever the depth. Only calls that come in another order on the other side are held back, by
reference, until their counterpart comes or their enclosing call has ended on both sides.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import greenlet
from torch import nn

from tracer.execution.forms import may_have_forms
from tracer.execution.fusions import Part
from tracer.execution.hooks import Recorder, hooked
from tracer.execution.scheduler import RunObserver, Scheduler, Visitor
from tracer.execution.side import Draws, Ended, EventKey, Failure, Run, Side
from tracer.execution.standin import StandIn
from tracer.execution.state import RandomNumbers, RandomStates, random_state_kept
from tracer.execution.walks import modules_of


@dataclass(frozen=True)
class Outcome:
    """What is left when both sides have ended.

    Attributes:
        reference_calls, candidate_calls: how often each module was called, by its own name.
        unmatched_reference, unmatched_candidate: (name, call index) of calls that had a paired
            module but no counterpart on the other side.
        held_bytes_peak: the most memory that was held back for calls in another order, in bytes.
        failure: the exception that ended the run early, if one did.
        ended: whether the user ended it early.
        draws: for each side that has drawn random numbers in evaluation, where.
        shared_draws: generators of Python's or NumPy's have moved that were not switched: each side
            has seen the other's draws.
    """

    reference_calls: Mapping[str, int]
    candidate_calls: Mapping[str, int]
    unmatched_reference: tuple[tuple[str, int], ...]
    unmatched_candidate: tuple[tuple[str, int], ...]
    held_bytes_peak: int
    failure: Failure | None
    ended: bool = False
    draws: tuple[Draws, ...] = ()
    shared_draws: bool = False


def lockstep(
    reference: nn.Module,
    candidate: nn.Module,
    run_reference: Run,
    run_candidate: Run,
    pairs: Mapping[str, str],
    visitor: Visitor,
    *,
    reference_names: Mapping[int, str],
    candidate_names: Mapping[int, str],
    streams: Mapping[str, str] | None = None,
    parts: tuple[Mapping[str, Mapping[str, Part]], Mapping[str, Mapping[str, Part]]] = ({}, {}),
    order: Mapping[tuple[str, int], int] | None = None,
    clone: frozenset[EventKey] = frozenset(),
    watch: RunObserver | None = None,
    beyond_torch: bool = False,
) -> Outcome:
    """Runs both models and lets the visitor see each pair of calls.

    Args:
        run_reference, run_candidate: call the models on their inputs; they run as coroutines.
        pairs: the reference's module name by the candidate's.
        reference_names, candidate_names: each side's module names by `id(module)`. The models may
            share modules, or be one and the same.
        streams: the reference's name by the candidate's of modules whose calls draw from random
            streams of their own in training; by default each side has a single stream.
        parts: of each side, by a module's name the parts that its calls are seen as, by theirs.
        order: the index of the reference's call by the reference's name and the index of the
            candidate's, where they are called in another order.
        clone: events whose leaves are cloned when they are held back, because an earlier run
            found that they are edited in place before they can be compared.
        watch: looks on; the debugger.
        beyond_torch: whether each side has Python's and NumPy's generators for itself in
            evaluation, too.

    Returns:
        What was called, and the failure if a model raised; the hooks are gone in any case.
    """
    own_names = {name: name for name in pairs.values()}
    modules = modules_of(reference, candidate)
    is_training = any(module.training for module in modules)
    own_streams = None if streams is None else {name: name for name in streams.values()}
    sides = (
        Side(
            "reference",
            run_reference,
            reference_names,
            own_names,
            RandomNumbers(is_training, own_streams, beyond_torch=beyond_torch),
            visitor.observer,
            reference.event_source() if isinstance(reference, StandIn) else None,
            parts[0],
        ),
        Side(
            "candidate",
            run_candidate,
            candidate_names,
            pairs,
            RandomNumbers(is_training, streams, beyond_torch=beyond_torch),
            visitor.observer,
            candidate.event_source() if isinstance(candidate, StandIn) else None,
            parts[1],
            order,
        ),
    )

    recorders = {side.greenlet: side.recorder for side in sides}

    def current() -> Recorder | None:
        return recorders.get(greenlet.getcurrent())

    has_forms = any(map(may_have_forms, {type(module) for module in modules}))
    scheduler = Scheduler(*sides, visitor, clone, watch, has_forms=has_forms)
    failure, ended = None, False
    with random_state_kept() as states, hooked((reference, candidate), current):
        try:
            with watch or nullcontext():
                failure = scheduler.run()
        except Ended:
            ended = True
        finally:
            for side in sides:
                side.stop()
            visitor.end()
        moved = not RandomStates.read(beyond_torch=True).equals_beyond_torch(states)
    return Outcome(
        reference_calls=sides[0].counts(),
        candidate_calls=sides[1].counts(),
        unmatched_reference=tuple(scheduler.unmatched[0]),
        unmatched_candidate=tuple(scheduler.unmatched[1]),
        held_bytes_peak=scheduler.held_bytes_peak,
        failure=failure,
        ended=ended,
        draws=tuple(draws for side in sides if (draws := side.draws()) is not None),
        shared_draws=moved and not is_training and not beyond_torch,
    )
