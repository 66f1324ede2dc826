"""Leaves of every kind of nested value, and leaves in words."""

import copy
import math
from collections import UserDict

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from tests.builders.nested import (
    CONTAINERS,
    OBJECTS,
    Box,
    Plain,
    filled_cache,
    found,
    tensor,
)
from tracer.tensors.leaves import describe, is_stateful, leaves
from tracer.tensors.rebuilding import map_tensors


@pytest.mark.parametrize("kind", CONTAINERS)
def test_the_leaves_of_containers(kind: str) -> None:
    build, paths = CONTAINERS[kind]
    assert list(found(build())) == paths


@pytest.mark.parametrize("kind", OBJECTS)
def test_the_leaves_of_objects(kind: str) -> None:
    build, paths = OBJECTS[kind]
    assert set(paths) <= set(found(build()))
    extra = set(found(build())) - set(paths)
    assert all(path.rpartition(".")[2] not in ("keys", "values", "value") for path in extra)


@pytest.mark.parametrize("value", [None, 3, "text", True, 2.5])
def test_a_plain_value_is_its_own_leaf(value: object) -> None:
    assert list(leaves(value, "v")) == [("v", value)]


@pytest.mark.parametrize(
    "value",
    [{1, 2}, nn.Linear(2, 2), print, torch.float32, torch.device("cpu"), Plain, (), {}, object()],
)
def test_values_without_leaves(value: object) -> None:
    assert list(leaves(value, "v")) == []


def test_cycles_are_walked_once() -> None:
    looped: list[object] = [tensor()]
    looped.append(looped)
    box = Box([tensor(1)])
    box.me = box
    box.value.append(box)
    assert (list(found(looped)), list(found(box))) == (["v.0"], ["v.value.0"])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_has_a_leaf_for_each_tensor_in_it(layout: torch.layout) -> None:
    parts = [torch.ones(3, 4), torch.full((2, 4), 2.0)]
    value = {"states": torch.nested.nested_tensor(parts, layout=layout)}
    assert list(found(value)) == ["v.states.0", "v.states.1"]
    for leaf, part in zip(found(value).values(), parts, strict=True):
        torch.testing.assert_close(leaf, part)
    doubled = map_tensors(value, lambda tensor: 2 * tensor)
    assert doubled["states"].layout == layout
    for leaf, part in zip(found(doubled).values(), parts, strict=True):
        torch.testing.assert_close(leaf, 2 * part)


def test_leaves_found_twice_and_parameters() -> None:
    shared = tensor()
    assert list(found((shared, {"again": shared}))) == ["v.0", "v.1.again"]
    assert list(found(nn.Parameter(torch.ones(2)))) == ["v"]


@pytest.mark.parametrize(("value", "text"), [
    (torch.tensor([1.5, -2.0]), "float32 [2], from -2 to 1.5"),
    (torch.ones(2, 3, dtype=torch.int64), "int64 [2, 3], all 1"),
    (torch.tensor(True), "bool [], all True"), (torch.empty(0, 4), "float32 [0, 4]"),
    (torch.tensor([math.nan, 1.0]), "float32 [2], from nan to nan"),
    (torch.tensor([1j]), "complex64 [1]"),
    (torch.tensor([1, 3], dtype=torch.uint16), "uint16 [2], from 1 to 3"),
    (torch.tensor([1, 3], dtype=torch.uint64), "uint64 [2], from 1 to 3"),
    (torch.tensor([1.0, 3.0]).to(torch.float8_e4m3fn), "float8_e4m3fn [2], from 1 to 3"),
    (torch.tensor([0.0, 3.0]).to_sparse(), "float32 [2], from 0 to 3"),
    (torch.empty(2, device="meta"), "float32 [2]"), (None, "None"), (3, "3"), ("text", "'text'"),
    (filled_cache(), "DynamicCache"),
])  # fmt: skip
def test_leaves_in_words(value: object, text: str) -> None:
    assert describe(value) == text


def test_a_copied_cache_is_found_at_the_same_paths() -> None:
    cache = filled_cache()
    assert list(found(copy.deepcopy(cache))) == list(found(cache))


@pytest.mark.parametrize(("value", "stateful"), [
    (DynamicCache(), True), ([], True), ({}, True), (UserDict(), True), ((), False),
    (torch.ones(1), False), (Plain(1), False), (1.0, False), ("x", False), (None, False),
    (nn.Linear(1, 1), False), (len, False), (Plain, False),
])  # fmt: skip
def test_what_others_may_find_something_in(value: object, stateful: bool) -> None:
    assert is_stateful(value) is stateful
