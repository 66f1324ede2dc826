"""Nested values as JSON: what comes back has the same leaves under the same paths."""

import json
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from enum import Enum

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from tracer.tensors.leaves import LeftOut, is_stateful, leaves
from tracer.traces.encoding import decode, encode, tensor_numbers

X, Y = torch.arange(3.0), torch.ones(2, 2)
Pair = namedtuple("Pair", ("first", "second"))


@dataclass
class Record:
    x: torch.Tensor
    note: str


@dataclass
class Hidden:
    _x: torch.Tensor


class Colour(Enum):
    RED = 1


class Holder:
    def __init__(self) -> None:
        self.x, self.number, self.itself = X, 3, self


def cache() -> DynamicCache:
    made = DynamicCache()
    made.update(torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 0)
    return made


def round_trip(value: object) -> object:
    kept: list[torch.Tensor] = []

    def store(tensor: torch.Tensor) -> dict[str, object]:
        kept.append(tensor)
        return {"tensor": len(kept) - 1}

    encoded = json.loads(json.dumps(encode(value, store)))
    assert sorted(tensor_numbers(encoded)) == list(range(len(kept)))
    return decode(encoded, kept.__getitem__)


@pytest.mark.parametrize("value", [
    X, None, (X, None, [Y, 3]), {"a": X, "b": {"c": (Y,)}}, OrderedDict(a=X),
    BaseModelOutput(last_hidden_state=X, hidden_states=(X, Y)),
    Pair(X, 2), Record(X, "text"), Hidden(X), cache(), Holder(), torch.max(Y, dim=0), [], (),
    {"flag": True, "ratio": 0.5, "big": 2**70, "nothing": None},
    torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged),
    (1 + 2j, b"\x00\xff", float("inf"), "text"),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_the_leaves_are_the_same(value: object) -> None:
    before, after = dict(leaves(value, "v")), dict(leaves(round_trip(value), "v"))
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        if isinstance(leaf, torch.Tensor):
            assert torch.equal(leaf, after[path])
        else:
            assert leaf == after[path]


@pytest.mark.parametrize("value", [(X,), [X], {"a": X}, cache(), Pair(X, 2), Record(X, "")])
def test_what_can_be_written_to_is_told_apart(value: object) -> None:
    assert is_stateful(round_trip(value)) == is_stateful(value) or isinstance(value, Hidden)


def test_no_tensor_and_a_list_in_itself() -> None:
    for value in (Colour.RED, Colour, len, DynamicCache(), torch.float32):
        assert not list(leaves(round_trip(value), "v"))
    assert round_trip({"a": LeftOut("too large")}) == {"a": LeftOut("too large")}
    value: list[object] = [X]
    value.append(value)
    again = round_trip(value)
    assert isinstance(again, list)
    assert torch.equal(again[0], X)
