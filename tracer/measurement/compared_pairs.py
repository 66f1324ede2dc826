"""Which pairs of tensors were compared, and what was found of a tensor, as long as they live
unchanged."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from tracer.measurement.pairs import Tensor
from tracer.measurement.rows import Row
from tracer.tensors.leaves import version_of

T = TypeVar("T")


@dataclass(slots=True)
class Compared:
    """A pair of tensors that was compared.

    Attributes:
        row: what was found; None while an accelerator still measures it.
    """

    reference: "weakref.ref[Tensor]"
    candidate: "weakref.ref[Tensor]"
    versions: tuple[int | None, int | None]
    row: Row | None = None

    def is_unchanged(self) -> bool:
        """Whether both live, and are as they were."""
        r, c = self.reference(), self.candidate()
        if r is None or c is None:
            return False
        return self.versions == (version_of(r), version_of(c))


class ComparedPairs:
    """The rows of pairs of tensors; it keeps no tensor alive."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[int, int], Compared] = {}

    def find(self, r: Tensor, c: Tensor) -> Compared | None:
        """A pair that was entered, and that has not changed since."""
        known = self._pairs.get((id(r), id(c)))
        if known is None or known.reference() is not r or known.candidate() is not c:
            return None
        return known if known.is_unchanged() else None

    def enter(self, r: Tensor, c: Tensor) -> Compared:
        """Notes a pair that is compared, unless nothing would say when it changes."""
        key = id(r), id(c)
        forget = lambda _: self._pairs.pop(key, None)  # noqa: E731
        versions = version_of(r), version_of(c)
        made = Compared(weakref.ref(r, forget), weakref.ref(c), versions)
        if None not in versions:
            self._pairs[key] = made
        return made


class Remembered(Generic[T]):
    """What a function says of a value, asked once for each tensor as long as it lives unchanged."""

    def __init__(self, function: Callable[[object], T]) -> None:
        self._function = function
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], int, T]] = {}

    def __call__(self, value: object) -> T:
        edits = version_of(value) if isinstance(value, torch.Tensor) else None
        if edits is None:
            return self._function(value)
        assert isinstance(value, torch.Tensor)
        key = id(value)
        known = self._known.get(key)
        if known is not None and known[0]() is value and known[1] == edits:
            return known[2]
        said = self._function(value)
        self._known[key] = weakref.ref(value, lambda _: self._known.pop(key, None)), edits, said
        return said
