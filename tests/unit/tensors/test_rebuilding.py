"""Nested values of every kind made again: with other leaves, or as they are now."""

from collections import defaultdict, deque

import pytest
import torch
from transformers import DynamicCache, LlamaConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from tests.builders.nested import (
    CONTAINERS,
    OBJECTS,
    Box,
    Frozen,
    Names,
    Plain,
    filled_cache,
    found,
    tensor,
)
from tracer.tensors.leaves import leaves
from tracer.tensors.rebuilding import deep_copy, map_tensors, replace_leaves, snapshot


@pytest.mark.parametrize("kind", CONTAINERS)
def test_replacing_leaves_keeps_the_type_and_leaves_the_original(kind: str) -> None:
    build, paths = CONTAINERS[kind]
    value = build()
    before = {path: leaf.clone() for path, leaf in found(value).items()}
    identities = {path: id(leaf) for path, leaf in found(value).items()}
    new = torch.full((2,), 99)
    replaced = replace_leaves(value, "v", {paths[-1]: new})
    assert type(replaced) is type(value)
    assert list(found(replaced)) == paths
    assert found(replaced)[paths[-1]] is new
    for path in paths[:-1]:
        assert id(found(replaced)[path]) == identities[path]
    assert {path: id(leaf) for path, leaf in found(value).items()} == identities
    assert all(torch.equal(leaf, before[path]) for path, leaf in found(value).items())


def test_what_is_kept_of_containers_and_outputs() -> None:
    assert replace_leaves(Names("title", tensor()), "v", {"v.0": 1}).title == "title"
    replaced = replace_leaves(deque([tensor()], maxlen=3), "v", {"v.0": 1})
    assert (replaced, replaced.maxlen) == (deque([1], maxlen=3), 3)
    assert replace_leaves(defaultdict(list, a=tensor()), "v", {"v.a": 1})["absent"] == []
    plain = replace_leaves(Plain(tensor(), label="kept"), "v", {"v.value": 1})
    assert plain == Plain(1, label="kept")
    frozen = Frozen(tensor())
    replaced_frozen = replace_leaves(frozen, "v", {"v.derived": 1})
    assert (replaced_frozen.value, replaced_frozen.derived) == (frozen.value, 1)
    output = CausalLMOutputWithPast(logits=tensor(), hidden_states=(tensor(1),))
    replaced = replace_leaves(output, "output", {"output.logits": tensor(9)})
    assert torch.equal(replaced.logits, tensor(9))
    assert replaced["logits"] is replaced.logits is replaced[0]
    assert replaced.hidden_states is output.hidden_states
    assert replaced.loss is None
    assert torch.equal(output.logits, tensor())


@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_are_changed_in_place(kind: str) -> None:
    build, paths = OBJECTS[kind]
    value = build()
    new = torch.full((2,), 99)
    replaced = replace_leaves(value, "v", {paths[0]: new})
    assert found(value if kind != "object in a tuple" else replaced)[paths[0]] is new
    if kind != "object in a tuple":
        assert replaced is value


@pytest.mark.parametrize("kind", [*CONTAINERS, *OBJECTS])
def test_no_replacement_gives_the_very_same_value(kind: str) -> None:
    build, _ = {**CONTAINERS, **OBJECTS}[kind]
    value = build()
    assert replace_leaves(value, "v", {"w.0": 1, "vx": 2}) is value


@pytest.mark.parametrize("kind", [*CONTAINERS, *OBJECTS])
def test_map_tensors_reaches_each_tensor(kind: str) -> None:
    build, paths = {**CONTAINERS, **OBJECTS}[kind]
    before = found(build())
    mapped = map_tensors(build(), lambda t: t + 1)
    assert type(mapped) is type(build())
    for path in paths:
        assert torch.equal(found(mapped)[path], before[path] + 1), path


@pytest.mark.parametrize("kind", [*CONTAINERS, *OBJECTS])
def test_a_snapshot_holds_the_same_tensors(kind: str) -> None:
    build, _ = {**CONTAINERS, **OBJECTS}[kind]
    value = build()
    taken = snapshot(value)
    assert type(taken) is type(value)
    assert {p: id(t) for p, t in found(taken).items()} == {
        p: id(t) for p, t in found(value).items()
    }


def test_snapshots() -> None:
    box = Box(tensor())
    box.me = box
    taken = snapshot(box)
    assert taken is not box
    assert taken.value is box.value
    value = {"a": [1, 2.5, None, "text", True, 1j], "b": Box(4)}
    assert list(leaves(value, "v")) == [
        ("v.a.0", 1), ("v.a.1", 2.5), ("v.a.2", None), ("v.a.3", "text"), ("v.a.4", True),
        ("v.a.5", 1j),
    ]  # fmt: skip
    cache, growing, mapping = filled_cache(), [tensor()], {"a": tensor()}
    taken = snapshot({"cache": cache, "list": growing, "mapping": mapping})
    before = {path: id(leaf) for path, leaf in found(taken).items()}
    cache.update(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4), 0)
    growing.append(tensor(1))
    mapping["b"] = mapping.pop("a")
    assert {path: id(leaf) for path, leaf in found(taken).items()} == before
    assert found(cache)["v.layers.0.keys"].shape[-2] == 4


def test_a_deep_copy_shares_nothing_not_even_what_is_empty() -> None:
    cache = DynamicCache(config=LlamaConfig(num_hidden_layers=2))
    keys = torch.randn(1, 1, 2, 4)
    cache.update(keys, keys, 0)
    value = {"cache": cache, "again": cache, "keys": cache.layers[0].keys}
    copied = deep_copy(value, torch.Tensor.clone)
    assert copied["cache"] is copied["again"]
    assert copied["keys"] is copied["cache"].layers[0].keys
    assert torch.equal(copied["keys"], keys)
    copied["cache"].update(keys, keys, 1)
    copied["keys"].zero_()
    assert cache.get_seq_length(1) == 0
    assert torch.equal(cache.layers[0].keys, keys)


def test_a_deep_copy_takes_the_tensors_that_it_is_given() -> None:
    copied = deep_copy((torch.ones(2), [torch.ones(3)]), torch.Tensor.half)
    assert [tensor.dtype for tensor in (copied[0], copied[1][0])] == [torch.float16] * 2
