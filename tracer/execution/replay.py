"""One long forward pass, reported as if it had been a prefill and decode steps.

    reference = tracer.Stepped(model, steps=16)
    tracer.compare(reference, tracer.Stepping(prefill, decode, steps=16), inputs)

The reference runs once over all positions, and each of its calls is kept. Then the calls come once
for each step, with what the step would have seen: of activations the positions of the step, of a
mask or of attention weights also the keys up to there, of a cache the positions so far. Pairing,
comparison, verdict and counterfactual take them for the calls of a model that steps.

What cannot be separated (a value with no dimension as long as the sequence, or with two where one
is expected) is left out, and so is what was edited in place afterwards; the coverage counts it.
Memory holds the values of one forward pass.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from tracer.execution.hooks import Answer, Call, Phase
from tracer.tensors.leaves import LeftOut, children, is_stateful, tensor_leaves, version_of
from tracer.tensors.rebuilding import deep_copy
from tracer.tensors.roles import DEFAULT_ROLES, Roles, is_any

# Where in a tensor something is: dimensions, each from a position up to another.
_Place = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Window:
    """The positions of a step: from `start` up to `stop` of `length`; step 0 is the prefill."""

    step: int
    start: int
    stop: int
    batch: int
    length: int


@dataclass(frozen=True, slots=True)
class _Taken:
    """A nested value as it was at an event.

    Attributes:
        value: in containers and objects of its own, with the tensors themselves.
        caches: objects in it that modules write to, each with the one that it was copied from.
        versions: of its tensors by id.
    """

    value: object
    caches: tuple[tuple[object, object], ...]
    versions: Mapping[int, int | None]

    @classmethod
    def of(cls, value: object) -> "_Taken":
        taken = deep_copy(value, lambda tensor: tensor)
        caches = tuple(zip(_caches(taken), _caches(value), strict=True))
        versions = {id(tensor): version_of(tensor) for _, tensor in tensor_leaves(taken, "")}
        return cls(taken, caches, versions)


@dataclass(slots=True, eq=False)
class _Kept:
    """A call with what it was given, and what it returned and left in its arguments."""

    call: Call
    given: _Taken
    left: _Taken | None = None
    output: _Taken | None = None


@dataclass(eq=False)
class Replay:
    """Keeps the calls of one forward pass, and tells them again step by step.

    Attributes:
        steps: how many of the last positions are steps of their own.
        roles: which arguments are masks and caches, as their names say.
    """

    steps: int
    roles: Roles = DEFAULT_ROLES
    _kept: dict[tuple[str, int], _Kept] = field(default_factory=dict)
    _events: list[tuple[_Kept, Phase]] = field(default_factory=list)
    _parts: dict[tuple[int, _Place], torch.Tensor] = field(default_factory=dict)

    def note(self, call: Call, phase: Phase) -> Answer:
        """Keeps an event of the forward pass: a listener of a `Recorder`."""
        key = call.name, call.index
        if phase is Phase.START:
            self._kept[key] = _Kept(call, _Taken.of(call.arguments))
        else:
            self._kept[key].left = _Taken.of(call.arguments)
            self._kept[key].output = _Taken.of(call.output)
        self._events.append((self._kept[key], phase))
        return None

    def counts(self) -> None:
        """The forward pass counts them."""

    def events(self) -> Iterator[tuple[Call, Phase]]:
        """Yields the events once for each step."""
        ids = self._events[0][0].given.value["input_ids"]  # type: ignore[index]
        batch, length = ids.shape
        often = {name: index + 1 for name, index in self._kept}
        for step in range(self.steps + 1):
            start = 0 if step == 0 else length - self.steps + step - 1
            window = _Window(step, start, length - self.steps + step, batch, length)
            reported: dict[Call, Call] = {}
            for kept, phase in self._events:
                call = kept.call
                if phase is Phase.START:
                    reported[call] = Call(
                        name=call.name,
                        index=step * often[call.name] + call.index,
                        module=call.module,
                        arguments=self._arguments(kept, Phase.START, window),
                        positional=call.positional,
                        caller=call.caller,
                        parent=None if call.parent is None else reported[call.parent],
                    )
                else:
                    assert kept.output is not None
                    reported[call].arguments = self._arguments(kept, phase, window)
                    reported[call].output = self._seen(kept.output, window)
                yield reported[call], phase

    def _arguments(self, kept: _Kept, phase: Phase, window: _Window) -> dict[str, object]:
        """What a step would have given to a call, or found there afterwards.

        A call that made a cache itself is given it, from the first step on.
        """
        taken = kept.given if phase is Phase.START else kept.left
        assert taken is not None
        arguments = self._seen(taken, window)
        assert isinstance(arguments, dict)
        if not window.step or kept.output is None:
            return arguments
        for name, made in children(kept.output.value):
            if arguments.get(name) is not None or not is_any(name, self.roles.caches):
                continue
            original = next((own for cache, own in kept.output.caches if cache is made), None)
            if original is not None:
                end = window.start if phase is Phase.START else window.stop
                arguments[name] = self._cut(original, {}, window.length, end, end)
        return arguments

    def _seen(self, taken: _Taken, window: _Window) -> object:
        """What a step would have seen of a value."""
        memo: dict[int, object] = {}
        for path, tensor in tensor_leaves(taken.value, ""):
            if version_of(tensor) == taken.versions[id(tensor)]:
                memo[id(tensor)] = self._part(
                    tensor, _place(tensor, window, is_mask=self.roles.is_mask(path))
                )
            else:
                memo[id(tensor)] = LeftOut("edited in place after the call")
        for cache, original in taken.caches:
            present = dict(tensor_leaves(cache, ""))
            whole = original if window.step else cache
            memo[id(cache)] = self._cut(whole, present, window.length, window.start, window.stop)
        return copy.deepcopy(taken.value, memo)

    def _cut(
        self,
        cache: object,
        present: Mapping[str, object],
        length: int,
        before: int,
        stop: int,
    ) -> object:
        """A cache up to `stop` where it had been written by then, else up to `before`."""
        memo: dict[int, object] = {}
        for path, tensor in tensor_leaves(cache, ""):
            place: _Place | LeftOut = LeftOut("no positions in it")
            if tensor.dim() >= 3 and tensor.shape[-2] == length:
                end = stop if path in present else before
                place = ((tensor.dim() - 2, 0, end),)
            memo[id(tensor)] = self._part(tensor, place)
        return copy.deepcopy(cache, memo)

    def _part(self, tensor: torch.Tensor, place: _Place | LeftOut) -> torch.Tensor | LeftOut:
        """A part of a tensor, always as the same object."""
        if isinstance(place, LeftOut):
            return place
        key = id(tensor), place
        if key not in self._parts:
            for dim, start, stop in place:
                tensor = tensor.narrow(dim, start, stop - start)
            self._parts[key] = tensor
        return self._parts[key]


def _place(tensor: torch.Tensor, window: _Window, *, is_mask: bool) -> _Place | LeftOut:
    """Where in a tensor the positions of a step are."""
    # The first dimension is the batch wherever it may be.
    first = int(window.batch == window.length)
    dims = [dim for dim in range(first, tensor.dim()) if tensor.shape[dim] == window.length]
    last = tensor.dim() - 1
    own, keys = (window.start, window.stop), (0, window.stop)
    if is_mask and dims and dims[-1] == last:
        if dims in ([last], [last - 1, last]):
            return ((last, *keys), *((dim, *own) for dim in dims[:-1]))
    elif tensor.dim() > 3 and dims == [last - 1, last]:  # attention weights
        return (last - 1, *own), (last, *keys)
    elif len(dims) == 1 and (tensor.dim() < 3 or dims[0] < last):
        return ((dims[0], *own),)
    found = "none" if not dims else f"{len(dims)}"
    return LeftOut(f"{found} of the dimensions {list(tensor.shape)} is known to be that of tokens")


def _caches(value: object) -> Iterator[object]:
    """The objects in a value that modules write to, but for lists and dicts."""
    if is_stateful(value) and not isinstance(value, list | Mapping):
        yield value
        return
    if not isinstance(value, torch.Tensor):
        for _, child in children(value):
            yield from _caches(child)
