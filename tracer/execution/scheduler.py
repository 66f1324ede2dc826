"""Brings two models that run in lockstep together, event by event."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from tracer.execution.forms import bring_to_form
from tracer.execution.hooks import Answer, Call, Phase
from tracer.execution.side import Event, EventKey, Failure, Side, SideObserver
from tracer.tensors.leaves import tensor_leaves, version_of
from tracer.tensors.rebuilding import map_tensors, snapshot

# How many events the reference may be ahead of the last one that was met before the candidate's is
# held back instead: the calls of two or three layers, so that a call that only the candidate makes
# does not send the reference through the whole model.
_MOST_AHEAD = 64


class Visitor(Protocol):
    """Sees each pair of calls while both models stand at it.

    Attributes:
        observer: what is also told of each side's events; None for nothing.
    """

    @property
    def observer(self) -> SideObserver | None: ...

    def visit(self, reference: Call, candidate: Call, phase: Phase) -> Answer:
        """Both calls have started, or both have ended; what is answered goes to the candidate."""

    def stale(self, key: EventKey, paths: frozenset[str]) -> None:
        """What is visited next was held back on one side, and edited in place in the meantime.

        `paths` names the leaves that no longer hold what was passed; running again with the key
        among those to clone keeps them.
        """

    def end(self) -> None:
        """The run has ended, however it did; nothing more is visited."""


class RunObserver(AbstractContextManager[None], Protocol):
    """Looks on while both models stand still; it is entered for the time of a run."""

    def meets(
        self, reference: Call, candidate: Call, phase: Phase, sides: tuple[Side, Side]
    ) -> None:
        """A pair of calls has been visited.

        Raises:
            Ended: the run is to end here.
        """

    def fails(self, failure: Failure, sides: tuple[Side, Side]) -> None:
        """An exception has ended one side; the other still stands at its last event."""


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


class Scheduler:
    """Brings the two sides together event by event."""

    def __init__(
        self,
        reference: Side,
        candidate: Side,
        visitor: Visitor,
        clone: frozenset[EventKey],
        watch: RunObserver | None,
        *,
        has_forms: bool,
    ) -> None:
        """Begins with both sides before their first event.

        Args:
            has_forms: there are modules whose calls are seen in another form; see `forms`.
        """
        self.reference = reference
        self.candidate = candidate
        self.visitor = visitor
        self.clone = clone
        self.watch = watch
        self._has_forms = has_forms
        self.held: tuple[dict[EventKey, _Held], dict[EventKey, _Held]] = ({}, {})
        self.unmatched: tuple[list[tuple[str, int]], list[tuple[str, int]]] = ([], [])
        self.held_bytes_peak = 0
        self._held_bytes = 0
        # The event that the reference stands at and that nobody has seen yet.
        self._waiting: Event | None = None
        # Places of reference events in their own order: of the latest, and of the last one met.
        self._latest = 0
        self._met = 0

    def run(self) -> Failure | None:
        answer: Answer = None
        while (event := self.candidate.resume(answer)) is not None:
            answer = self._meet(event)
            if self.reference.failure is not None:
                return self.reference.failure
        self._tell_failure(self.candidate)
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

    def _tell_failure(self, side: Side) -> None:
        """A side has ended: tells who looks on, if an exception has ended it."""
        if side.failure is not None and self.watch is not None:
            self.watch.fails(side.failure, (self.reference, self.candidate))

    def _failure_of_both(self, failure: Failure) -> Failure:
        """The candidate is always a step ahead; inputs that fit neither model are not its fault."""
        while not self.reference.finished:
            self._next_of_reference()
            self._waiting = None
        if self.reference.failure is None:
            return failure
        return replace(self.reference.failure, also=failure.exception)

    def _meet(self, event: Event) -> Answer:
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

    def _next_of_reference(self) -> Event | None:
        if self._waiting is None and not self.reference.finished:
            self._waiting = self.reference.resume()
            self._latest += 1
            if self._waiting is None:
                self._tell_failure(self.reference)
        return self._waiting

    def _meet_held(self, waiting: Event) -> None:
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
        is_end = key[2] is Phase.END
        if self._has_forms:
            bring_to_form(reference, candidate, has_ended=is_end)
            bring_to_form(candidate, reference, has_ended=is_end)
        answer = self.visitor.visit(reference, candidate, key[2])
        if self.watch is not None:
            self.watch.meets(reference, candidate, key[2], (self.reference, self.candidate))
        if is_end and (self.held[0] or self.held[1]):
            self._forget_inside(key[0], (reference, candidate))
        return answer

    def _miss(self, side: int, event: Event) -> None:
        """Nothing is to come that an event could meet: its values need not be held."""
        if event.key[2] is Phase.START:
            self.unmatched[side].append(event.key[:2])

    def _hold(self, side: int, event: Event) -> None:
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


def _taken(event: Event, clone: bool) -> tuple[Call, object]:
    """The call as it is now, and the value that its event is about.

    A list that grows or a cache that is filled while the event waits must not change it. Edits of
    a tensor are seen by its version, but for inference tensors, which have none.
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
