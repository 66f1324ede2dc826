"""One of two models in lockstep: a coroutine that stops at each event of a paired module."""

import contextvars
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Protocol, runtime_checkable

import greenlet

from tracer.errors import TracerError
from tracer.execution.fusions import Part
from tracer.execution.hooks import (
    Answer,
    Call,
    NewArguments,
    NewOutput,
    Phase,
    Recorder,
    calling_frame,
)
from tracer.execution.standin import EventSource
from tracer.execution.state import RandomNumbers, ThreadState

Run = Callable[[], object]
# An event's key is the reference's name of the module, the call index and the phase.
EventKey = tuple[str, int, Phase]


class Ended(BaseException):
    """The user has ended the run at a prompt. No model's own `except Exception` takes it."""


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
class Draws:
    """The calls of one side that draw random numbers in their own lines, in evaluation.

    Attributes:
        side: "reference" or "candidate".
        module, call: the first of them; the reference's name of the module if that is paired.
        calls: how many there are.
    """

    side: str
    module: str
    call: int
    calls: int


@dataclass(frozen=True, slots=True)
class Event:
    """A start or an end of a call of a paired module."""

    key: EventKey
    call: Call


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
        drawing: the calls that have drawn random numbers in evaluation, by name and index.
    """

    def __init__(
        self,
        label: str,
        run: Run,
        names: Mapping[int, str],
        pairs: Mapping[str, str],
        random: RandomNumbers,
        observer: SideObserver | None,
        source: EventSource | None = None,
        parts: Mapping[str, Mapping[str, Part]] | None = None,
        order: Mapping[tuple[str, int], int] | None = None,
    ) -> None:
        self.label = label
        own = self._meet_parts if parts else self._meet
        listener = own if source is None else source.note

        def listen(call: Call, phase: Phase) -> Answer:
            random.follow(call, phase)
            return listener(call, phase)

        self.recorder = Recorder(names, listen if random.are_followed else listener, pairs)
        self.greenlet = greenlet.greenlet(self._body)
        self.greenlet.gr_context = contextvars.copy_context()
        self.finished = False
        self.drawing: dict[tuple[str, int], None] = {}
        self._stopped = False
        self.failure: Failure | None = None
        self._run = run
        self._source = source
        # What is reported afterwards does not happen where it is reported.
        self._observer = observer if source is None else None
        self.is_replayed = source is not None
        self._pairs = pairs
        # By a module's name the parts that its calls are seen as, by theirs.
        self._parts = {
            name: {own: part for own, part in of_one.items() if own in pairs}
            for name, of_one in (parts or {}).items()
        }
        # The other side's index of calls that come in another order there, by the own one.
        self._order = order or {}
        self._reported: list[Call] = []
        self._random = random
        self._ambient = ThreadState.capture()
        self._driver = greenlet.getcurrent()

    def resume(self, answer: Answer = None) -> Event | None:
        """Lets the model run to its next event; None when it has ended."""
        event = self.greenlet.switch(answer)
        if self.finished:
            return None
        assert isinstance(event, Event)
        return event

    def calling_frame(self) -> FrameType | None:
        """The frame that made the call that this side stands at.

        None once it has ended, and where its events are reported after its run.
        """
        module = None
        for call in self.recorder.in_progress():
            module = call.module
        return None if module is None else calling_frame(module, self.greenlet.gr_frame)

    def is_inside(self, name: str, index: int) -> bool:
        """Whether the model is in that call of the reference's name."""
        return any(
            self._index(name, call) == index and self._pairs.get(call.name) == name
            for call in (*self.recorder.in_progress(), *self._reported)
        )

    def _index(self, name: str, call: Call) -> int:
        return self._order.get((name, call.index), call.index)

    def counts(self) -> dict[str, int]:
        """How often each module was called so far."""
        reported = None if self._source is None else self._source.counts()
        counts = dict(self.recorder.counts if reported is None else reported)
        for name, parts in self._parts.items():
            if name in counts:
                counts.update(dict.fromkeys(parts, counts[name]))
        return counts

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
                    self._meet_parts(reported, phase)
                    if phase is Phase.END:
                        self._reported.remove(reported)
        except (greenlet.GreenletExit, KeyboardInterrupt, Ended, TracerError):
            raise
        except BaseException as exception:  # sys.exit() in a forward is a mistake like any other
            self.failure = Failure(self.label, self.recorder.left_by(exception), exception)
        finally:
            self.finished = True

    def _meet_parts(self, call: Call, phase: Phase) -> Answer:
        """Stops at the event for one part of a module after the other, where it has some, and
        answers with all their answers."""
        parts = self._parts.get(call.name)
        if not parts:
            return self._meet(call, phase)
        arguments: dict[str, object] = {}
        output: Answer = None
        for own, part in parts.items():
            answer = self._meet(part.seen(call, own, phase), phase)
            if isinstance(answer, NewArguments):
                arguments.update(answer.values)
            elif isinstance(answer, NewOutput):
                call.output = part.put(call.output, answer.value)
                output = NewOutput(call.output)
        return NewArguments(arguments) if arguments else output

    def _meet(self, call: Call, phase: Phase) -> Answer:
        name = self._pairs.get(call.name)
        if name is None or self._stopped:
            return None
        if self._observer is not None and phase is Phase.END:
            self._observer.ends(self.label, name, call)
        index = self._index(name, call) if self._order else call.index
        event = Event((name, index, phase), call)
        if self._ambient.is_in_force():
            answer = self._hand_over(event)
        else:
            with self._ambient.put_back():
                answer = self._hand_over(event)
        if self._observer is not None and phase is Phase.START:
            self._observer.begins(self.label, name, call)
        return answer

    def _hand_over(self, event: Event) -> Answer:
        """Stops at an event until this side is to go on."""
        if self._random.leave():
            call = event.call
            self._note_drawing(call if event.key[2] is Phase.END else call.parent)
        answer: Answer = self._driver.switch(event)
        self._random.enter()
        return answer

    def draws(self) -> Draws | None:
        """What has drawn random numbers in evaluation; None if nothing has."""
        first = next(iter(self.drawing), None)
        return None if first is None else Draws(self.label, *first, len(self.drawing))

    def _note_drawing(self, call: Call | None) -> None:
        if call is not None:  # else what makes the inputs
            self.drawing[self._pairs.get(call.name, call.name), call.index] = None
