"""Nested values as plain JSON values, and back.

    {"logits": tensor, "past": (keys, None)}  <->  {"dict": [["logits", {"tensor": 4}],
                                                    ["past", {"tuple": [{"tensor": 5}, null]}]]}

What comes back has the same leaves under the same paths (`tracer.tensors.leaves`), and passes for a
container or an object as what went in did; its classes are others. Tensors are stored elsewhere, by
number.
"""

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from keyword import iskeyword
from typing import Any

import torch

from tracer.tensors.leaves import LeftOut, children, is_plain, is_stateful, tensor_leaves

# A tensor as a JSON value: {"tensor": 4}, or {"left_out": "..."}.
Store = Callable[[torch.Tensor], dict[str, object]]
Load = Callable[[int], object]


class Kept:
    """Stands for an object that holds tensors, such as a cache."""

    def __init__(self, parts: Mapping[str, object]) -> None:
        vars(self).update(parts)


def encode(value: object, store: Store) -> object:
    """A nested value as JSON.

    Args:
        store: is given each tensor, and returns what stands for it.
    """
    return _encode(value, store, ())


def decode(encoded: Any, load: Load) -> Any:
    """A nested value from JSON; see the module's docstring.

    Args:
        load: returns what a number stands for: a tensor or a fingerprint.
    """
    if not isinstance(encoded, dict):
        return encoded
    ((kind, inside),) = encoded.items()
    if kind == "tensor":
        return load(inside)
    if kind == "left_out":
        return LeftOut(inside)
    if kind == "complex":
        return complex(*inside)
    if kind == "bytes":
        return bytes.fromhex(inside)
    if kind == "list":
        return [decode(part, load) for part in inside]
    if kind == "tuple":
        return tuple(decode(part, load) for part in inside)
    parts = {key: decode(part, load) for key, part in inside}
    if kind == "dict":
        return parts
    if kind == "fields":
        return _with_fields(parts)
    return Kept(parts)


def tensor_numbers(encoded: Any) -> Iterator[int]:
    """The numbers of the tensors in a value, as far as it is encoded."""
    if isinstance(encoded, dict):
        for kind, inside in encoded.items():
            if kind == "tensor":
                yield inside
            else:
                yield from tensor_numbers(inside)
    elif isinstance(encoded, list):
        for part in encoded:
            yield from tensor_numbers(part)


def _encode(value: object, store: Store, above: tuple[int, ...]) -> object:
    if isinstance(value, torch.Tensor) and not value.is_nested:
        return store(value)
    if isinstance(value, LeftOut):
        return {"left_out": value.reason}
    if is_plain(value):
        return _plain(value)
    is_object = not isinstance(value, tuple | list | Mapping)
    if id(value) in above or (is_object and not any(tensor_leaves(value, ""))):
        return {"object": []}  # nothing in it is ever compared
    parts = [(key, _encode(part, store, (*above, id(value)))) for key, part in children(value)]
    if isinstance(value, Mapping):
        return {"dict": parts}
    if isinstance(value, list):
        return {"list": [part for _, part in parts]}
    if [key for key, _ in parts] == [str(index) for index in range(len(parts))]:
        return {"tuple": [part for _, part in parts]}
    return {"object" if is_stateful(value) else "fields": parts}


def _plain(value: object) -> object:
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    return value


def _with_fields(parts: Mapping[str, object]) -> object:
    """A named tuple: a container that is no mapping, as the named tuple or dataclass was."""
    if any(name.startswith("_") or iskeyword(name) or not name.isidentifier() for name in parts):
        return dict(parts)
    return namedtuple("Fields", parts)(**parts)
