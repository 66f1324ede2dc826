"""Which value of a call it is: of an argument, of the output, or of what it wrote.

>>> path = ValuePath.of_argument("position_embeddings").inner("0")
>>> path, path.kind, path.argument, path.inside
('kwargs.position_embeddings.0', <ValueKind.ARGUMENT: 'kwargs'>, 'position_embeddings', '0')
"""

import functools
from collections.abc import Iterator
from enum import Enum

import torch

from tracer.tensors.leaves import all_leaves, leaves


class ValueKind(Enum):
    """What a value is to a call; what it leaves in a cache, list or dict is a result of it, and so
    is the gradient of an argument or of a parameter."""

    ARGUMENT = "kwargs"
    OUTPUT = "output"
    WRITTEN = "written"
    GRADIENT = "gradient"

    __hash__ = object.__hash__  # each is one object; that of `Enum` takes a call of Python


class ValuePath(str):
    """The path of a value as users and reports know it, such as "output.logits", with its parts.

    Attributes:
        kind: what the value is to its call.
        argument: the argument's name; None for an output.
        inside: where it is in that argument or output; None for the whole.
        is_result: whether it came out of the call.
    """

    __slots__ = ("argument", "inside", "is_result", "kind")
    kind: ValueKind
    argument: str | None
    inside: str | None
    is_result: bool

    def __new__(
        cls, kind: ValueKind, argument: str | None = None, inside: str | None = None
    ) -> "ValuePath":
        parts = (kind.value, argument, inside)
        path = super().__new__(cls, ".".join(part for part in parts if part is not None))
        path.kind, path.argument, path.inside = kind, argument, inside
        path.is_result = kind is not ValueKind.ARGUMENT
        return path

    def __getnewargs__(self) -> tuple[ValueKind, str | None, str | None]:  # type: ignore[override]
        return self.kind, self.argument, self.inside

    @classmethod
    def parse(cls, text: str) -> "ValuePath":
        """Reads a path that was written down, as in a report.

        Raises:
            ValueError: it is none.
        """
        if isinstance(text, ValuePath):
            return text
        root, *rest = text.split(".", 1)
        kind = ValueKind(root)
        if kind is ValueKind.OUTPUT:
            return cls(kind, None, *rest)
        return cls(kind, *rest[0].split(".", 1)) if rest else cls(kind)

    @classmethod
    def of_argument(cls, name: str) -> "ValuePath":
        """The path of a whole argument."""
        return _made(ValueKind.ARGUMENT, name, None)

    @classmethod
    def of_written(cls, name: str) -> "ValuePath":
        """The path of what a call leaves in an argument."""
        return _made(ValueKind.WRITTEN, name, None)

    @classmethod
    def of_gradient(cls, name: str) -> "ValuePath":
        """The path of the gradient of an argument, or of what is in one, or of a parameter."""
        return cls(ValueKind.GRADIENT, *name.split(".", 1))

    @property
    def is_gradient(self) -> bool:
        """Whether it is the gradient of something."""
        return self.kind is ValueKind.GRADIENT

    @property
    def in_argument(self) -> str:
        """The argument's name and the path in it, for whoever is told that it is an argument."""
        return ".".join(part for part in (self.argument, self.inside) if part is not None)

    @property
    def label(self) -> str:
        """The path where arguments are the usual ones: "x.0", "output.0", "written.cache.0"."""
        return str(self) if self.is_result else self.in_argument

    def inner(self, path: str) -> "ValuePath":
        """The path of what is inside this whole value, or of the whole where that is empty."""
        return _made(self.kind, self.argument, path or None)

    def leaves(
        self, value: object, *, everything: bool = False, walk: "Walk | None" = None
    ) -> Iterator[tuple["ValuePath", object]]:
        """The leaves of the value of this path, each with its own; see `leaves`, `all_leaves`.

        Args:
            walk: knows the leaves of values that were walked before.
        """
        found = all_leaves(value, "") if everything else (walk or leaves)(value, "")
        for path, leaf in found:
            yield self.inner(path[1:]) if path else self, leaf

    def tensors(self, value: object) -> dict["ValuePath", torch.Tensor]:
        """Those leaves that are tensors."""
        return {path: leaf for path, leaf in self.leaves(value) if isinstance(leaf, torch.Tensor)}


class Walk:
    """`leaves`, of each value once: for as long as nothing is changed in them.

    Attributes:
        forget: is called when that may be.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[object, list[tuple[str, object]]]] = {}
        self.forget = self._found.clear

    def __call__(self, value: object, path: str) -> list[tuple[str, object]]:
        known = self._found.get(id(value))
        if known is None:
            known = self._found[id(value)] = value, [*leaves(value, path)]
        return known[1]


@functools.lru_cache(maxsize=65536)
def _made(kind: ValueKind, argument: str | None, inside: str | None) -> ValuePath:
    return ValuePath(kind, argument, inside)


OUTPUT = ValuePath(ValueKind.OUTPUT)
