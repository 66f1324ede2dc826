"""Nested values become leaves with paths; leaves and attention masks are put into words.

>>> list(leaves({"logits": tensor, "past": (keys, values)}, "output"))
[('output.logits', tensor), ('output.past.0', keys), ('output.past.1', values)]

Whatever passes in or out of a module is walked here and nowhere else: tensors, tuples, named
tuples, lists, mappings (transformers' `ModelOutput` among them), dataclasses, nested tensors (one
leaf for each tensor in them), containers that are registered with PyTorch's pytree, and other
objects that hold tensors, such as key-value caches.
"""

import array
import dataclasses
import reprlib
from collections import deque
from collections.abc import (
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    Set,
    ValuesView,
)
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from tracer.tensors.by_class import ByClass
from tracer.tensors.kinds import plain

# Deeper than this an object is walked at its first place only: where all refer to each other, the
# ways through them are beyond counting.
_MAX_OBJECT_DEPTH = 4
_MAX_DEPTH = 100

_PLAIN_TYPES = (bool, int, float, complex, str, bytes, type(None))


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Stands instead of a tensor of the reference's that is not to be compared, and why."""

    reason: str

    def __str__(self) -> str:
        return self.reason


class Unused(LeftOut):
    """Stands instead of a tensor that a graph does not have, since nothing uses it."""


@dataclasses.dataclass(frozen=True)
class Opaque:
    """Stands in the place of what has no value that can be compared: a generator, a function."""

    kind: str


def leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    """The tensors and plain Python values in a nested value, each with its dotted path.

    Plain values are numbers, strings and None. Of objects that are no container (a cache, say) only
    the tensors count. An object that contains itself is walked once.

    Args:
        value: any value that goes in or out of a module.
        path: the path of the value itself, such as "output".
    """
    if type(value) is torch.Tensor and not value.is_nested:
        return iter(((path, value),))
    found: list[tuple[str, object]] = []
    _walk(value, path, (), 0, set(), found)
    return iter(found)


def all_leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    """As `leaves`, and everything else that a value holds.

    Arrays count as tensors, and the public attributes of objects as parts; values that know whether
    they are equal (sets, dates, dtypes) are leaves, and what cannot be compared is an `Opaque`.
    """
    yield from _walk_all(value, path, ())


def tensor_leaves(value: object, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The leaves that are tensors."""
    for leaf_path, leaf in leaves(value, path):
        if isinstance(leaf, torch.Tensor):
            yield leaf_path, leaf


def version_of(value: "torch.Tensor | LeftOut") -> int | None:
    """A tensor's in-place version; None for inference tensors, which keep none.

    What a trace holds instead never changes.
    """
    if isinstance(value, LeftOut):
        return 0
    return None if value.is_inference() else value._version


def children(value: object) -> list[tuple[str, object]]:
    """The named parts of a value; nothing for what holds no tensors of interest."""
    return _children(value, _parts_of(value))


def _children(value: object, parts_of_it: "_Parts") -> list[tuple[str, object]]:
    make, names, _ = parts_of_it
    if make is _Make.PLAIN or make is _Make.NOTHING:
        return []
    if make is _Make.OBJECT:
        if _is_registered(value):
            parts, _ = pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)
            return [(str(index), child) for index, child in enumerate(parts)]
        attributes = getattr(value, "__dict__", {})
        if names:
            own = {name: getattr(value, name) for name in names if hasattr(value, name)}
            attributes = {**own, **attributes}
        return list(attributes.items())
    if make is _Make.KEYED:
        return [(str(key), child) for key, child in value.items()]  # type: ignore[attr-defined]
    if make is _Make.NAMED or make is _Make.RECORD:
        return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    if isinstance(value, torch.Tensor):
        value = value.unbind() if value.is_nested else ()
    items: Iterable[object] = value  # type: ignore[assignment]
    return [(str(index), child) for index, child in enumerate(items)]


class _Make(Enum):
    """How a value holds its parts."""

    PLAIN = "none, it is a number, a string or None"
    KEYED = "by key"
    ITEMS = "in a row"
    NAMED = "a named tuple"
    NOTHING = "none of interest"
    RECORD = "a dataclass"
    OBJECT = "by attribute"


class _Parts(NamedTuple):
    """How values of a class hold their parts, and the names of those that the class lists."""

    make: _Make
    names: tuple[str, ...] = ()
    is_container: bool = True


_KNOWN: ByClass[_Parts] = ByClass()


def _parts_of(value: object) -> _Parts:
    cls = type(value)
    return _KNOWN.get(cls) or _KNOWN.note(cls, _parts_of_class(cls))


def _parts_of_class(cls: Any) -> _Parts:
    if issubclass(cls, _PLAIN_TYPES):
        return _Parts(_Make.PLAIN, is_container=False)
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return _Parts(_Make.NAMED, tuple(cls._fields))
    if issubclass(cls, Mapping):
        return _Parts(_Make.KEYED)
    if issubclass(cls, torch.Tensor | tuple | list):
        return _Parts(_Make.ITEMS)
    is_record = dataclasses.is_dataclass(cls)
    is_callable = any("__call__" in vars(each) for each in cls.__mro__)
    if is_callable or issubclass(cls, type | nn.Module | Enum | Set):
        return _Parts(_Make.NOTHING, is_container=is_record)
    if is_record:
        return _Parts(_Make.RECORD, tuple(field.name for field in dataclasses.fields(cls)))
    slots = tuple(name for each in cls.__mro__ for name in _slots(each))
    return _Parts(_Make.OBJECT, slots, is_container=False)


def is_plain(value: object) -> bool:
    """Whether it is a number, a string, or None."""
    return isinstance(value, _PLAIN_TYPES)


def is_stateful(value: object) -> bool:
    """Whether a module can leave something in it for others to find: a cache, a list, a dict."""
    if isinstance(value, _STATELESS) or callable(value):
        return False
    if isinstance(value, _STATEFUL):
        return True
    return not is_container(value) and hasattr(value, "__dict__")


_STATELESS = (torch.Tensor, tuple, nn.Module, Enum, type, Set)
_STATEFUL = (list, Mapping)


def describe(value: object) -> str:
    """A leaf in a few words: "float32 [1, 1, 84, 84], additive mask, causal" without the mask."""
    if isinstance(value, torch.Tensor):
        text = f"{dtype_name(value.dtype)} {list(value.shape)}"
        if value.numel() and not value.is_meta and not value.is_complex():
            values = _ordered(plain(value))
            low, high = values.min().item(), values.max().item()
            if low == high:
                return f"{text}, all {_number(low)}"
            text += f", from {_number(low)} to {_number(high)}"
        return text
    if isinstance(value, LeftOut):
        return str(value)
    if isinstance(value, Opaque):
        return value.kind
    if _is_value(value):
        return reprlib.repr(value)
    return repr(value) if is_plain(value) else type(value).__name__


def dtype_name(dtype: torch.dtype | None) -> str:
    """The name without "torch."; the empty string where there is no tensor."""
    return "" if dtype is None else str(dtype).removeprefix("torch.")


def _number(value: float) -> str:
    return str(value) if isinstance(value, bool | int) else f"{value:.5g}"


def _walk(
    value: object,
    path: str,
    above: tuple[int, ...],
    object_depth: int,
    deep: set[int],
    found: list[tuple[str, object]],
) -> None:
    parts = _parts_of(value)
    make = parts.make
    if make is _Make.PLAIN:
        if not object_depth:
            found.append((path, value))
        return
    if make is _Make.NOTHING:
        return
    is_whole = isinstance(value, torch.Tensor) and not value.is_nested
    if is_whole or isinstance(value, LeftOut):
        found.append((path, value))
        return
    if id(value) in above or id(value) in deep or len(above) > _MAX_DEPTH:
        return
    if object_depth > _MAX_OBJECT_DEPTH:
        deep.add(id(value))
    if object_depth or not (parts.is_container or _is_registered(value)):
        object_depth += 1
    above = (*above, id(value))
    for key, child in _children(value, parts):
        kind = type(child)
        if kind is torch.Tensor and not child.is_nested:  # type: ignore[attr-defined]
            found.append((f"{path}.{key}", child))
        elif not (object_depth and kind in _PLAIN_TYPES):
            _walk(child, f"{path}.{key}", above, object_depth, deep, found)


def _walk_all(value: object, path: str, above: tuple[int, ...]) -> Iterator[tuple[str, object]]:
    if type(value) in _PLAIN_TYPES:
        yield path, value
        return
    value = _opened(value)
    if isinstance(value, LeftOut) or is_plain(value):
        yield path, value
        return
    if isinstance(value, torch.Tensor) and not value.is_nested:
        yield path, value
        return
    if id(value) in above:
        return
    if len(above) > _MAX_DEPTH:
        yield path, Opaque(f"what is nested more than {_MAX_DEPTH} deep")
        return
    is_empty = not is_container(value)
    for key, child in children(value):
        is_private = key.startswith("_") and not is_container(value)
        for leaf_path, leaf in _walk_all(child, f"{path}.{key}", (*above, id(value))):
            if not is_private or isinstance(leaf, torch.Tensor | LeftOut):
                is_empty = False
                yield leaf_path, leaf
    if is_empty:
        yield path, value if _is_value(value) else Opaque(type(value).__name__)


def _opened(value: object) -> object:
    """Arrays as tensors, or lists where their elements are no numbers; what holds others as lists.

    Nothing is taken from an iterator, since it would be gone for whoever is to have it.
    """
    if isinstance(value, torch.Tensor | type):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ma.MaskedArray):
        return [np.ma.getmaskarray(value), np.asarray(value.filled())]
    if isinstance(value, array.array) or hasattr(type(value), "__array__"):
        found = np.array(value)
        if found.dtype.kind not in "biufc":
            return found.tolist()
        if found.dtype.itemsize > 8 + 8 * (found.dtype.kind == "c"):
            found = found.astype(np.complex128 if found.dtype.kind == "c" else np.float64)
        return torch.from_numpy(found.astype(found.dtype.newbyteorder("=")))
    if isinstance(value, deque | KeysView | ValuesView | ItemsView):
        return list(value)
    if isinstance(value, Set) and all(isinstance(part, int | float) for part in value):
        return sorted(value)
    return value


def _is_value(value: object) -> bool:
    """Whether it knows if it is equal to another."""
    if isinstance(value, Enum | type | torch.dtype | torch.device | torch.layout):
        return True
    if isinstance(value, Set):
        parts = (part if isinstance(part, tuple) else (part,) for part in value)
        return all(_is_value(leaf) or is_plain(leaf) for part in parts for leaf in part)
    if isinstance(value, torch.Tensor | nn.Module) or callable(value) or is_container(value):
        return False
    return not is_plain(value) and type(value).__eq__ is not object.__eq__


def _slots(cls: type) -> Sequence[str]:
    """The attributes that a class keeps outside the `__dict__` of its objects."""
    slots = cls.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    mangled = f"_{cls.__name__.lstrip('_')}"
    return [
        f"{mangled}{name}" if name.startswith("__") and not name.endswith("__") else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    ]


def _ordered(tensor: torch.Tensor) -> torch.Tensor:
    """The same values where `min` and `max` are implemented for them."""
    unordered = tensor.is_floating_point() and tensor.element_size() == 1
    return tensor.double() if unordered or tensor.dtype in _UNORDERED else tensor


_UNORDERED = (torch.uint16, torch.uint32, torch.uint64)


def is_container(value: object) -> bool:
    """Whether it is no more than what holds its parts, and can be made of others."""
    return _parts_of(value).is_container or _is_registered(value)


def _is_registered(value: object) -> bool:
    """Whether PyTorch's pytree takes it apart, and it is no object with attributes of its own.

    Those are walked by attribute, whether or not someone has registered their class by now.
    """
    return type(value) in pytree.SUPPORTED_NODES and not hasattr(value, "__dict__")
