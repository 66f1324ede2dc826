"""Pairs that accelerators measure while both models go on.

A pair on an accelerator leaves a few numbers there. Those of many pairs come to the host in one
transfer: once so many wait, or the tensors that they keep alive are too large, at the end of a run,
and whenever somebody asks for a row. What follows from them is done then, in the order of the
calls, as if each pair had been measured at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tracer.errors import ModelRunError
from tracer.execution.hooks import Call
from tracer.measurement.pairs import Measured, Tensor, by_meaning, judged
from tracer.measurement.rows import CallKey, CallRecord, Row
from tracer.measurement.tensor_pair import TensorPair
from tracer.tensors.difference import Difference
from tracer.tensors.enqueued import Enqueued
from tracer.tensors.leaves import version_of
from tracer.tensors.masks import reading_of
from tracer.tensors.value_path import ValuePath
from tracer.text import brief

# How many pairs wait at most, and how many bytes of tensors they keep alive.
MOST_PAIRS, MOST_BYTES = 256, 1 << 30
# On the host a pair is measured at once; Metal has no float64 to add up in.
_AT_ONCE = ("cpu", "meta", "mps")


@dataclass(eq=False, slots=True)
class Begun:
    """A pair that an accelerator measures.

    Attributes:
        numbers: on the accelerator, of the difference, and of masks whether they can be read by
            what they let through, and whether they are the same.
        found: the numbers on the host, once they are there.
    """

    pair: TensorPair
    enqueued: Enqueued
    numbers: torch.Tensor
    found: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, pair: TensorPair) -> "Begun | None":
        """Begins to measure a pair; None where that is to be done at once."""
        r, c = pair.r, pair.c
        if not (isinstance(r, torch.Tensor) and isinstance(c, torch.Tensor)):
            return None
        if r.device.type in _AT_ONCE or r.shape != c.shape or not (_is_usual(r) and _is_usual(c)):
            return None
        if not pair.is_mask:
            enqueued = Enqueued.of(r, c)
            return cls(pair, enqueued, enqueued.numbers)
        reading, other = reading_of(r), reading_of(c)
        if reading is None or other is None:
            return None
        enqueued = Enqueued.of(reading[0], other[0])
        are_read = reading[1] & other[1].to(r.device)
        is_same_kind = r.dtype == c.dtype and r.device == c.device
        are_same = (r == c).all() if is_same_kind else torch.zeros_like(are_read)
        flags = torch.stack([are_read, are_same]).double()
        return cls(pair, enqueued, torch.cat([enqueued.numbers, flags]))

    def measured(self) -> tuple[Measured, bool]:
        """What was found of the pair, and whether its values had to be looked at for it."""
        pair, numbers = self.pair, self.found
        r, c = pair.r, pair.c
        assert isinstance(r, torch.Tensor)
        assert isinstance(c, torch.Tensor)
        are_read, is_same = numbers[-2:] if pair.is_mask else (1.0, 0.0)
        whole = Difference.read(self.enqueued, numbers) if are_read else None
        if whole is None:
            found = pair.measured()
            assert found is not None  # their shapes are equal
            return found, True
        if pair.is_mask:
            return by_meaning(r, c, whole, is_same=bool(is_same)), not is_same
        agrees = pair.tolerance.agrees(whole, r.dtype, c.dtype)
        found = judged(r, c, whole, pair.tolerance, pair.unpadded, relates=pair.relates)
        return found, not agrees


class Underway:
    """What waits for numbers, in the order of the calls; true where anything does.

    Attributes:
        waiting: what is to be done.
    """

    def __init__(self) -> None:
        self._begun: list[Begun] = []
        self.waiting: list[Callable[[], None]] = []
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def record(
        self, reference: Call, candidate: Call, parent: CallKey | None, start: int
    ) -> "AwaitedRecord":
        """The record of two calls that have just begun."""
        made = AwaitedRecord.of(reference, candidate, parent, start)
        made.wait_for(self)
        return made

    def add(
        self, action: Callable[[], None], r: Tensor, c: Tensor, begun: Begun | None = None
    ) -> None:
        """Does something once all before it is done.

        Args:
            r, c: the tensors that it is about, which stay alive until then.
            begun: their numbers, if it is done with these.
        """
        if begun is not None:
            self._begun.append(begun)
        for each in (r, c):
            if id(each) not in self._kept and isinstance(each, torch.Tensor):
                self._kept[id(each)] = each
                self._bytes += each.numel() * each.element_size()
        self.then(action)
        if len(self._begun) >= MOST_PAIRS or self._bytes > MOST_BYTES:
            self.settle()

    def then(self, action: Callable[[], None]) -> None:
        """The same of what keeps no tensors."""
        self.waiting.append(action)

    def settle(self) -> None:
        """Does all that waits."""
        if not self.waiting:
            return
        begun, actions, kept = self._begun, self.waiting, self._kept
        self._begun, self.waiting, self._kept, self._bytes = [], [], {}, 0
        _transfer(begun)
        for action in actions:
            action()
        kept.clear()


def _transfer(begun: list[Begun]) -> None:
    """Brings the numbers to the host, in one transfer for each device."""
    for device in {each.numbers.device for each in begun}:
        own = [each for each in begun if each.numbers.device == device]
        try:
            numbers, end = torch.cat([each.numbers for each in own]).tolist(), 0
        except RuntimeError as error:
            raise ModelRunError(
                f"{device} failed while the models ran on it: {brief(error)}; with "
                "CUDA_LAUNCH_BLOCKING=1 in the environment it fails where the mistake is"
            ) from error
        for each in own:
            start, end = end, end + each.numbers.numel()
            each.found = numbers[start:end]


def _is_usual(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies as most do, says when it is edited, and needs no other ranks."""
    is_plain = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized
    return is_plain and version_of(tensor) is not None and not hasattr(tensor, "full_tensor")


class AwaitedRecord(CallRecord):
    """A record of a run in which pairs are underway: who asks for its rows waits for them."""

    _arguments: dict[ValuePath, Row]
    _outputs: list[Row]
    _underway: Underway | None = None

    def wait_for(self, underway: Underway) -> None:
        """What is waited for."""
        self._underway = underway

    def _settle(self) -> None:
        if self._underway is not None and self._underway.waiting:
            self._underway.settle()

    @property
    def arguments(self) -> dict[ValuePath, Row]:
        self._settle()
        return self._arguments

    @arguments.setter
    def arguments(self, rows: dict[ValuePath, Row]) -> None:
        self._arguments = rows

    @property
    def outputs(self) -> list[Row]:
        self._settle()
        return self._outputs

    @outputs.setter
    def outputs(self, rows: list[Row]) -> None:
        self._outputs = rows
