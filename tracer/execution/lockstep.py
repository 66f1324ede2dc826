"""Runs reference and candidate together, one at a time, and hands over at each call.

Both models run as greenlets of one thread. At each start and end of a candidate's call the
reference is advanced to the same event of the paired module; a visitor then sees both calls while
both models stand there, and both go on. Memory beyond the two models is what is alive at one event,
whatever the depth. Only calls that come in another order on the other side are held back, by
reference, until their counterpart comes or their enclosing call has ended on both sides.
"""

import contextvars
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import FrameType
from typing import Protocol, runtime_checkable

import greenlet
import torch
from torch import nn

from tracer.execution.hooks import Answer, Call, Phase, Recorder, calling_frame, hooked
from tracer.execution.standin import EventSource, StandIn
from tracer.execution.state import RandomNumbers, ThreadState, random_state_kept
from tracer.tensors.leaves import map_tensors, snapshot, tensor_leaves, version_of

Run = Callable[[], object]
# An event's key is the reference's name of the module, the call index and the phase.
EventKey = tuple[str, int, Phase]

# How many events the reference may be ahead of the last one that was met before the candidate's is
# held back instead: the calls of two or three layers, so that a call that only the candidate makes
# does not send the reference through the whole model.
_MOST_AHEAD = 64


class Ended(BaseException):
    """The user has ended the run at a prompt. No model's own `except Exception` takes it."""


class Visitor(Protocol):
    """Sees each pair of calls while both models stand at it.

    Attributes:
        observer: what is also told of each side's events; None for nothing.
    """

    @property
    def observer(self) -> "SideObserver | None": ...

    def visit(self, reference: Call, candidate: Call, phase: Phase) -> Answer:
        """Both calls have started, or both have ended; what is answered goes to the candidate."""

    def stale(self, key: EventKey, paths: frozenset[str]) -> None:
        """What is visited next was held back on one side, and edited in place in the meantime.

        `paths` names the leaves that no longer hold what was passed; running again with the key
        among those to clone keeps them.
        """


@runtime_checkable
class SideObserver(Protocol):
    """Is told of each side's events where and when they happen.

    It is called in the side's own coroutine, in its own state of PyTorch, so that it may switch a
    mode on around a call.
    """

    def begins(self, side: str, name: str, call: Call) -> None:
        """A call has begun on a side, "reference" or "candidate"; `name` is the reference's."""

    def ends(self, side: str, name: str, call: Call) -> None:
        """A call has ended on a side."""


@dataclass(frozen=True)
class Failure:
    """An exception that ended one side.

    Attributes:
        side: "reference" or "candidate".
        call: the innermost call that it was raised in; None outside the model's own modules.
        exception: what was raised.
        also: what the candidate raised, where both sides did.
    """

    side: str
    call: Call | None
    exception: BaseException
    also: BaseException | None = None


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
    """

    reference_calls: Mapping[str, int]
    candidate_calls: Mapping[str, int]
    unmatched_reference: tuple[tuple[str, int], ...]
    unmatched_candidate: tuple[tuple[str, int], ...]
    held_bytes_peak: int
    failure: Failure | None
    ended: bool = False


class RunObserver(AbstractContextManager[None], Protocol):
    """Looks on while both models stand still; it is entered for the time of a run."""

    def meets(
        self, reference: Call, candidate: Call, phase: Phase, sides: "tuple[Side, Side]"
    ) -> None:
        """A pair of calls has been visited.

        Raises:
            Ended: the run is to end here.
        """

    def fails(self, failure: Failure, sides: "tuple[Side, Side]") -> None:
        """An exception has ended one side; the other still stands at its last event."""


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
    clone: frozenset[EventKey] = frozenset(),
    watch: RunObserver | None = None,
) -> Outcome:
    """Runs both models and lets the visitor see each pair of calls.

    Args:
        run_reference, run_candidate: call the models on their inputs; they run as coroutines.
        pairs: the reference's module name by the candidate's.
        reference_names, candidate_names: each side's module names by `id(module)`. The models may
            share modules, or be one and the same.
        streams: the reference's name by the candidate's of modules whose calls draw from random
            streams of their own in training; by default each side has a single stream.
        clone: events whose leaves are cloned when they are held back, because an earlier run
            found that they are edited in place before they can be compared.
        watch: looks on; the debugger.

    Returns:
        What was called, and the failure if a model raised; the hooks are gone in any case.
    """
    own_names = {name: name for name in pairs.values()}
    is_training = any(module.training for m in (reference, candidate) for module in m.modules())
    own_streams = None if streams is None else {name: name for name in streams.values()}
    sides = (
        Side(
            "reference",
            run_reference,
            reference_names,
            own_names,
            RandomNumbers(is_training, own_streams),
            visitor,
            reference.event_source() if isinstance(reference, StandIn) else None,
        ),
        Side(
            "candidate",
            run_candidate,
            candidate_names,
            pairs,
            RandomNumbers(is_training, streams),
            visitor,
            candidate.event_source() if isinstance(candidate, StandIn) else None,
        ),
    )

    def current() -> Recorder | None:
        running = greenlet.getcurrent()
        for side in sides:
            if side.greenlet is running:
                return side.recorder
        return None

    scheduler = Scheduler(*sides, visitor, clone, watch)
    failure, ended = None, False
    with random_state_kept(), hooked((reference, candidate), current):
        try:
            with watch or nullcontext():
                failure = scheduler.run()
        except Ended:
            ended = True
        finally:
            for side in sides:
                side.stop()
    return Outcome(
        reference_calls=sides[0].counts(),
        candidate_calls=sides[1].counts(),
        unmatched_reference=tuple(scheduler.unmatched[0]),
        unmatched_candidate=tuple(scheduler.unmatched[1]),
        held_bytes_peak=scheduler.held_bytes_peak,
        failure=failure,
        ended=ended,
    )


@dataclass(frozen=True, slots=True)
class _Event:
    key: EventKey
    call: Call


@dataclass(frozen=True, slots=True)
class _Held:
    """An event that waits for its counterpart, with the leaves as they were."""

    call: Call
    leaves: tuple[tuple[str, torch.Tensor, int | None], ...]
    size: int
    place: int

    def edited(self) -> frozenset[str]:
        """Paths of leaves that were edited in place since."""
        return frozenset(path for path, leaf, v in self.leaves if version_of(leaf) != v)


class Side:
    """One model as a coroutine that stops at each event of a paired module.

    A stand-in runs through first, if it runs at all, and stops at the events that its source
    reports afterwards.

    Attributes:
        label: "reference" or "candidate".
        greenlet: the coroutine.
        recorder: sees its calls.
        finished: whether it has run to its end, or raised.
        is_replayed: whether it stops at events that are reported after its run.
    """

    def __init__(
        self,
        label: str,
        run: Run,
        names: Mapping[int, str],
        pairs: Mapping[str, str],
        random: RandomNumbers,
        visitor: Visitor,
        source: EventSource | None = None,
    ) -> None:
        self.label = label
        listener = self._on_event if source is None else source.note

        def listen(call: Call, phase: Phase) -> Answer:
            random.follow(call, phase)
            return listener(call, phase)

        self.recorder = Recorder(names, listen, pairs)
        self.greenlet = greenlet.greenlet(self._body)
        self.greenlet.gr_context = contextvars.copy_context()
        self.finished = False
        self._stopped = False
        self.failure: Failure | None = None
        self._run = run
        self._source = source
        # What is reported afterwards does not happen where it is reported.
        self._observer = visitor.observer if source is None else None
        self.is_replayed = source is not None
        self._pairs = pairs
        self._reported: list[Call] = []
        self._random = random
        self._ambient = ThreadState.capture()
        self._driver = greenlet.getcurrent()

    def resume(self, answer: Answer = None) -> _Event | None:
        """Lets the model run to its next event; None when it has ended."""
        event = self.greenlet.switch(answer)
        if self.finished:
            return None
        assert isinstance(event, _Event)
        return event

    def calling_frame(self) -> FrameType | None:
        """The frame that made the call that this side stands at.

        None once it has ended, and where its events are told after its run.
        """
        module = None
        for call in self.recorder.in_progress():
            module = call.module
        return None if module is None else calling_frame(module, self.greenlet.gr_frame)

    def is_inside(self, name: str, index: int) -> bool:
        """Whether the model is in that call of the reference's name."""
        return any(
            call.index == index and self._pairs.get(call.name) == name
            for call in (*self.recorder.in_progress(), *self._reported)
        )

    def counts(self) -> dict[str, int]:
        """How often each module was called so far."""
        reported = None if self._source is None else self._source.counts()
        return dict(self.recorder.counts if reported is None else reported)

    def stop(self) -> None:
        """Ends a model that still stands at an event; its `finally` blocks run."""
        self._stopped = True
        if self.greenlet:
            self.greenlet.throw()

    def _body(self, _: Answer) -> None:
        self._random.enter()
        try:
            with self._ambient.kept():
                self._run()
            if self._source is not None:
                for reported, phase in self._source.events():
                    if phase is Phase.START:
                        self._reported.append(reported)
                    self._on_event(reported, phase)
                    if phase is Phase.END:
                        self._reported.remove(reported)
        except greenlet.GreenletExit:
            raise
        except Exception as exception:
            raised = self.recorder.raised
            call = raised[1] if raised is not None and raised[0] is exception else None
            self.failure = Failure(self.label, call, exception)
        finally:
            self.finished = True

    def _on_event(self, call: Call, phase: Phase) -> Answer:
        name = self._pairs.get(call.name)
        if name is None or self._stopped:
            return None
        if self._observer is not None and phase is Phase.END:
            self._observer.ends(self.label, name, call)
        with self._ambient.put_back():
            self._random.leave()
            answer: Answer = self._driver.switch(_Event((name, call.index, phase), call))
            self._random.enter()
        if self._observer is not None and phase is Phase.START:
            self._observer.begins(self.label, name, call)
        return answer


class Scheduler:
    """Brings the two sides together event by event."""

    def __init__(
        self,
        reference: Side,
        candidate: Side,
        visitor: Visitor,
        clone: frozenset[EventKey],
        watch: RunObserver | None,
    ) -> None:
        self.reference = reference
        self.candidate = candidate
        self.visitor = visitor
        self.clone = clone
        self.watch = watch
        self.held: tuple[dict[EventKey, _Held], dict[EventKey, _Held]] = ({}, {})
        self.unmatched: tuple[list[tuple[str, int]], list[tuple[str, int]]] = ([], [])
        self.held_bytes_peak = 0
        self._held_bytes = 0
        # The event that the reference stands at and that nobody has seen yet.
        self._waiting: _Event | None = None
        # Places of reference events in their own order: of the latest, and of the last one met.
        self._latest = 0
        self._met = 0

    def run(self) -> Failure | None:
        answer: Answer = None
        while (event := self._resume(self.candidate, answer)) is not None:
            answer = self._meet(event)
            if self.reference.failure is not None:
                return self.reference.failure
        if self.candidate.failure is not None:
            return self._failure_of_both(self.candidate.failure)
        while (waiting := self._next_of_reference()) is not None:
            self._waiting = None
            if waiting.key in self.held[1]:
                self._meet_held(waiting)
            else:
                self._miss(0, waiting)
        for side, held in enumerate(self.held):
            self.unmatched[side].extend(key[:2] for key in held if key[2] is Phase.START)
        return self.reference.failure

    def _resume(self, side: Side, answer: Answer = None) -> _Event | None:
        event = side.resume(answer)
        if side.failure is not None and self.watch is not None:
            self.watch.fails(side.failure, (self.reference, self.candidate))
        return event

    def _failure_of_both(self, failure: Failure) -> Failure:
        """The candidate is always a step ahead; inputs that fit neither model are not its fault."""
        while self._resume(self.reference) is not None:
            pass
        if self.reference.failure is None:
            return failure
        return replace(self.reference.failure, also=failure.exception)

    def _meet(self, event: _Event) -> Answer:
        """Brings the reference to the candidate's event, if it comes to it."""
        key = event.key
        answer: Answer = None
        held = self._release(0, key)
        if held is not None:
            self._met = max(self._met, held.place)
            answer = self._visit(key, held.call, event.call, held.edited())
        else:
            # One step at least, so that what only the reference calls is got through.
            last = max(self._met + _MOST_AHEAD, self._latest + 1)
            while (waiting := self._next_of_reference()) is not None:
                if waiting.key == key:
                    self._waiting = None
                    self._met = self._latest
                    answer = self._visit(key, waiting.call, event.call)
                    break
                name, index, phase = waiting.key
                is_end = phase is Phase.END and (name, index) != key[:2]
                if self._latest > last or (is_end and self.candidate.is_inside(name, index)):
                    # The candidate is still inside the call that the reference is about to leave:
                    # what it does there has no counterpart ahead. Or the search went far enough.
                    self._hold(1, event)
                    break
                self._waiting = None
                self._meet_held(waiting)
            else:
                self._miss(1, event)
        return answer

    def _next_of_reference(self) -> _Event | None:
        if self._waiting is None and not self.reference.finished:
            self._waiting = self._resume(self.reference)
            self._latest += 1
        return self._waiting

    def _meet_held(self, waiting: _Event) -> None:
        """The reference's event meets one that the candidate left behind, or is held itself."""
        held = self._release(1, waiting.key)
        if held is None:
            self._hold(0, waiting)
        else:
            self._met = self._latest
            self._visit(waiting.key, waiting.call, held.call, held.edited())

    def _visit(
        self, key: EventKey, reference: Call, candidate: Call, edited: frozenset[str] = frozenset()
    ) -> Answer:
        if edited:
            self.visitor.stale(key, edited)
        answer = self.visitor.visit(reference, candidate, key[2])
        if self.watch is not None:
            self.watch.meets(reference, candidate, key[2], (self.reference, self.candidate))
        if key[2] is Phase.END:
            self._forget_inside(key[0], (reference, candidate))
        return answer

    def _miss(self, side: int, event: _Event) -> None:
        """Nothing is to come that an event could meet: its values need not be held."""
        if event.key[2] is Phase.START:
            self.unmatched[side].append(event.key[:2])

    def _hold(self, side: int, event: _Event) -> None:
        call, value = _taken(event, event.key in self.clone)
        leaves = tuple((path, t, version_of(t)) for path, t in tensor_leaves(value, ""))
        size = sum(t.numel() * t.element_size() for _, t, _ in leaves)
        held = _Held(call, leaves, size, self._latest)
        self.held[side][event.key] = held
        self._held_bytes += held.size
        self.held_bytes_peak = max(self.held_bytes_peak, self._held_bytes)

    def _release(self, side: int, key: EventKey) -> _Held | None:
        held = self.held[side].pop(key, None)
        if held is not None:
            self._held_bytes -= held.size
        return held

    def _forget_inside(self, name: str, ended: tuple[Call, Call]) -> None:
        """Drops what was held for the modules below one whose call has ended on both sides.

        They were called on one side only; waiting on for a counterpart would keep every such
        activation alive to the end of the run.
        """
        for side, held in enumerate(self.held):
            for key, waiting in list(held.items()):
                if key[0].startswith(f"{name}.") and _is_inside(waiting.call, ended[side]):
                    self._release(side, key)
                    if key[2] is Phase.START:
                        self.unmatched[side].append(key[:2])


def _taken(event: _Event, clone: bool) -> tuple[Call, object]:
    """The call as it is now, and the value that its event is about.

    A list that grows or a cache that is filled while the event waits must not change it. Edits of
    a tensor are told by its version, but for inference tensors, which have none.
    """
    phase = event.key[2]
    value = snapshot(event.call.arguments if phase is Phase.START else event.call.output)
    if clone or any(tensor.is_inference() for _, tensor in tensor_leaves(value, "")):
        value = map_tensors(value, torch.Tensor.clone)
    if phase is Phase.START:
        assert isinstance(value, dict)
        return replace(event.call, arguments=value), value
    left = {name: snapshot(argument) for name, argument in event.call.arguments.items()}
    return replace(event.call, arguments=left, output=value), value


def _is_inside(call: Call, outer: Call) -> bool:
    parent = call.parent
    while parent is not None and (parent.name, parent.index) != (outer.name, outer.index):
        parent = parent.parent
    return parent is not None
