"""What the header and the events of a trace must be like: types, ranges, and what fits together.

Each function raises ValueError with what is wrong; the reader says where.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tracer.choices import VALUES
from tracer.execution.limits import LARGEST_INTEGER, MOST_NESTED, is_text
from tracer.traces.shards import DTYPES

_TEXTS = ("values", "model", "device", "checksum")
_LISTS = ("files", "include", "notes")
_LARGEST_LINE = 2**31 - 1


def check_header(header: Mapping[str, Any]) -> None:
    """Checks what a recording says of its model."""
    for name in _TEXTS:
        _expect(isinstance(header.get(name), str), f"{name} is {header.get(name)!r:.60}")
    for name in _LISTS:
        _expect(_all(header.get(name), str), f"{name} is {header.get(name)!r:.60}")
    _expect(header["values"] in VALUES, f"values is {header['values']!r:.60}")
    dtype = header.get("dtype")
    is_dtype = isinstance(getattr(torch, str(dtype), None), torch.dtype)
    _expect(dtype is None or is_dtype, f"dtype is {dtype!r:.60}")
    _expect(isinstance(header.get("training"), bool), "training is neither true nor false")
    _expect(isinstance(header.get("modules"), dict), "it lists no modules")
    for name, module in header["modules"].items():
        try:
            _expect(name.count(".") < MOST_NESTED, "it lies too deep")
            _check_module(module, len(header["files"]))
        except ValueError as error:
            raise ValueError(f"module {name!r:.60}: {error}") from error


def _check_module(module: Any, files: int) -> None:
    _expect(isinstance(module, dict), "it is no object")
    kind = module.get("class")
    _expect(isinstance(kind, str) and is_text(kind) and "\0" not in kind, f"class is {kind!r:.60}")
    _expect(isinstance(module.get("recorded"), bool), "recorded is neither true nor false")
    _expect(module.get("formless") in (None, True), "formless is neither true nor left out")
    _expect(module.get("container") in (None, "ModuleList", "Sequential"), "container is unknown")
    _check_place(module.get("definition"), files)
    for part in ("parameters", "points"):
        _expect(isinstance(module.get(part, {}), dict), f"{part} is no object")
    for name, known in module.get("parameters", {}).items():
        fits = isinstance(known, list) and len(known) == 3 and _all([known[0], known[2]], str)
        _expect(fits and _is_shape(known[1]), f"parameter {name!r:.60} is {known!r:.60}")
    for name, facts in module.get("points", {}).items():
        _expect(isinstance(facts, dict), f"point {name!r:.60} is no object")


def check_entry(entry: Any, least: int) -> None:
    """Checks what is said of a tensor: where it lies, or its fingerprint.

    Args:
        least: its number is that or a later one.
    """
    number = entry.get("id") if isinstance(entry, dict) else None
    _expect(type(number) is int and number >= least, f"a tensor has the number {number!r:.60}")
    what = f"tensor {number}"
    dtype, shape = entry.get("dtype"), entry.get("shape")
    _expect(isinstance(dtype, str) and dtype in DTYPES, f"{what} has the dtype {dtype!r:.60}")
    _expect(_is_shape(shape), f"{what} has the shape {shape!r:.60}")
    _expect(_is_count(entry.get("crc")), f"{what} has no checksum")
    if "fingerprint" in entry:
        shown = entry.get("shown", [])
        fits = isinstance(shown, list) and all(
            isinstance(part, list)
            and len(part) == 3
            and _all([part[0], part[2]], str)
            and _is_shape(part[1])
            for part in shown
        )
        _expect(fits and isinstance(entry["fingerprint"], str), f"{what} has no fingerprint")
        return
    for key in ("shard", "at", "bytes"):
        _expect(_is_count(entry.get(key)), f"{what}: {key} is {entry.get(key)!r:.60}")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    _expect(entry["bytes"] == expected, f"{what} has {entry['bytes']:,} bytes for {shape} {dtype}")


@dataclass(eq=False)
class EventCheck:
    """Checks the events of a recording, each with regard to those before it.

    Args:
        header: one that has been checked.
    """

    header: Mapping[str, Any]
    _files: int = 0
    _tensors: int = 0
    _begun: int = 0
    _called: Counter[str] = field(default_factory=Counter)
    _open: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._files = len(self.header["files"])

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Checks the next one."""
        for entry in event.get("tensors", ()):
            self._tensors = entry["id"] + 1
        kind = event.get("event")
        if kind == "inputs":
            value = event.get("value")
            self._check_value(value, "value")
            parts = value.get("tuple", ()) if isinstance(value, dict) else ()
            kinds = [next(iter(part), "") for part in parts if isinstance(part, dict)]
            _expect(kinds == ["tuple", "dict"], "value is no pair of arguments")
        elif kind == "start":
            self._check_start(event)
        elif kind == "end":
            _expect(self._is_open(event.get("call")), f"call {event.get('call')!r:.60} is not open")
            self._open.remove(event["call"])
            for key in ("left", "output") if "left" in event else ("output",):
                self._check_value(event.get(key, {}), key, key == "left")
        else:
            _expect(kind == "finished", f"event is {kind!r:.60}")

    def _check_start(self, event: Mapping[str, Any]) -> None:
        _expect(event.get("call") == self._begun, f"call is {event.get('call')!r:.60}")
        self._open.add(self._begun)
        self._begun += 1
        module, parent = event.get("module"), event.get("parent")
        _expect(parent is None or self._is_open(parent), f"parent is {parent!r:.60}")
        known = isinstance(module, str) and module in self.header["modules"]
        _expect(known, f"module is {module!r:.60}")
        self._called[str(module)] += 1
        _expect(_is_count(event.get("index")), f"index is {event.get('index')!r:.60}")
        expected = self._called[str(module)] - 1
        _expect(event["index"] >= expected, f"index is {event['index']}, after {expected} calls")
        _expect(_all(event.get("positional"), str), "positional is no list of names")
        _expect(_all(event.get("files", []), str), "files is no list of names")
        self._files += len(event.get("files", ()))
        _expect("caller" in event, "it names no caller")
        _check_place(event["caller"], self._files)
        self._check_value(event.get("arguments", {}), "arguments", True)

    def _is_open(self, call: Any) -> bool:
        return type(call) is int and call in self._open

    def _check_value(self, value: Any, name: str, is_named: bool = False) -> None:
        if is_named:
            _expect(isinstance(value, dict) and "dict" in value, f"{name} are no values by name")
        _expect(self._is_value(value), f"{name} is no value")

    def _is_value(self, value: Any) -> bool:
        if not isinstance(value, dict):
            return value is None or isinstance(value, bool | int | float | str)
        if len(value) != 1:
            return False
        ((kind, inside),) = value.items()
        match kind:
            case "tensor":
                return _is_count(inside) and inside < self._tensors
            case "left_out":
                return isinstance(inside, str)
            case "complex":
                return _all(inside, int | float) and len(inside) == 2
            case "bytes":
                return isinstance(inside, str) and _is_hexadecimal(inside)
            case "list" | "tuple":
                return isinstance(inside, list) and all(self._is_value(part) for part in inside)
            case "dict" | "fields" | "object":
                return isinstance(inside, list) and all(
                    isinstance(part, list)
                    and len(part) == 2
                    and isinstance(part[0], str)
                    and self._is_value(part[1])
                    for part in inside
                )
        return False


def _check_place(place: Any, files: int) -> None:
    fits = place is None or (
        isinstance(place, list)
        and len(place) == 3
        and _is_count(place[0])
        and place[0] < files
        and _is_count(place[1])
        and place[1] <= _LARGEST_LINE
        and isinstance(place[2], str)
    )
    _expect(fits, f"a line of source is {place!r:.60}")


def _is_hexadecimal(text: str) -> bool:
    try:
        bytes.fromhex(text)
    except ValueError:
        return False
    return True


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_INTEGER


def _is_shape(value: Any) -> bool:
    is_list = isinstance(value, list) and all(_is_count(size) for size in value)
    return is_list and math.prod(value) <= LARGEST_INTEGER


def _all(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, kind) for part in value)


def _expect(condition: bool, found: str) -> None:
    if not condition:
        raise ValueError(found)
