"""Leaves of every kind of nested value, replacing them, and what attention masks mean."""

import copy
import dataclasses
import math
import types
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers import BatchEncoding, DynamicCache, EncoderDecoderCache, LlamaConfig, StaticCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from tracer.tensors.leaves import (
    deep_copy,
    describe,
    is_stateful,
    leaves,
    map_tensors,
    replace_leaves,
    snapshot,
    tensor_leaves,
)


class Pair(NamedTuple):
    left: object
    right: object


Loose = namedtuple("Loose", ["a", "b"])


@dataclasses.dataclass
class Plain:
    value: object
    label: str = "x"


@dataclasses.dataclass(frozen=True)
class Frozen:
    value: object
    derived: object = dataclasses.field(init=False)
    unset: object = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "derived", torch.zeros(2))


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    value: object


class Box:
    """An object that is no container."""

    def __init__(self, value: object) -> None:
        self.value = value
        self.number = 3


class Registered:
    """A container without attributes of its own that only pytree can take apart."""

    __slots__ = ("first", "second")

    def __init__(self, first: object, second: object) -> None:
        self.first, self.second = first, second


pytree.register_pytree_node(
    Registered, lambda r: ([r.first, r.second], None), lambda parts, _: Registered(*parts)
)


class ReadOnly(Mapping[str, object]):
    def __init__(self, items: Mapping[str, object]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: str) -> object:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class Names(list[object]):
    """A list with a constructor of its own."""

    def __init__(self, title: str, *items: object) -> None:
        super().__init__(items)
        self.title = title


def tensor(seed: int = 0) -> torch.Tensor:
    return torch.full((2,), float(seed))


def packed() -> nn.utils.rnn.PackedSequence:
    return nn.utils.rnn.pack_padded_sequence(
        torch.arange(6.0).reshape(2, 3),
        torch.tensor([2, 3]),
        batch_first=True,
        enforce_sorted=False,
    )


def config() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )


def filled_cache() -> DynamicCache:
    cache = DynamicCache(config=config())
    for layer in range(2):
        cache.update(torch.full((1, 1, 3, 4), 1.0 + layer), torch.full((1, 1, 3, 4), 5.0), layer)
    return cache


def static_cache() -> StaticCache:
    cache = StaticCache(config=config(), max_cache_len=4)
    position = torch.arange(3)
    for layer in range(2):
        keys = torch.full((1, 1, 3, 4), 1.0 + layer)
        cache.update(keys, keys + 1, layer, {"cache_position": position})
    return cache


# Each container with the paths of its tensors.
CONTAINERS: dict[str, tuple[Callable[[], object], list[str]]] = {
    "tensor": (tensor, ["v"]),
    "tuple": (lambda: (tensor(), None, (tensor(1), 2)), ["v.0", "v.2.0"]),
    "named tuple": (lambda: Pair(tensor(), [tensor(1)]), ["v.left", "v.right.0"]),
    "collections.namedtuple": (lambda: Loose(1, tensor()), ["v.b"]),
    "list": (lambda: [tensor(), [tensor(1)]], ["v.0", "v.1.0"]),
    "list subclass": (lambda: Names("title", tensor()), ["v.0"]),
    "dict": (lambda: {"a": tensor(), "b": {"c": tensor(1)}}, ["v.a", "v.b.c"]),
    "dict with integer keys": (lambda: {0: tensor(), 7: tensor(1)}, ["v.0", "v.7"]),
    "OrderedDict": (lambda: OrderedDict(b=tensor(), a=tensor(1)), ["v.b", "v.a"]),
    "defaultdict": (lambda: defaultdict(list, a=[tensor()]), ["v.a.0"]),
    "UserDict": (lambda: UserDict(a=tensor()), ["v.a"]),
    "BatchEncoding": (lambda: BatchEncoding({"input_ids": tensor()}), ["v.input_ids"]),
    "read-only view": (lambda: types.MappingProxyType({"a": tensor()}), ["v.a"]),
    "own mapping": (lambda: ReadOnly({"a": tensor()}), ["v.a"]),
    "deque": (lambda: deque([tensor(), tensor(1)], maxlen=3), ["v.0", "v.1"]),
    "dataclass": (lambda: Plain(tensor()), ["v.value"]),
    "nested dataclasses": (
        lambda: Plain(Frozen((tensor(),))),
        ["v.value.value.0", "v.value.derived"],
    ),
    "slotted dataclass": (lambda: Slotted({"a": tensor()}), ["v.value.a"]),
    "registered with pytree": (lambda: Registered(tensor(), (tensor(1),)), ["v.0", "v.1.0"]),
    "ModelOutput": (
        lambda: BaseModelOutputWithPast(
            last_hidden_state=tensor(), hidden_states=(tensor(1), tensor(2))
        ),
        ["v.last_hidden_state", "v.hidden_states.0", "v.hidden_states.1"],
    ),
    "ModelOutput with one field": (lambda: CausalLMOutputWithPast(logits=tensor()), ["v.logits"]),
    "torch.return_types": (lambda: torch.max(torch.eye(2), dim=0), ["v.0", "v.1"]),
    "PackedSequence": (
        packed,
        ["v.data", "v.batch_sizes", "v.sorted_indices", "v.unsorted_indices"],
    ),
    "legacy cache": (
        lambda: ((tensor(), tensor(1)), (tensor(2), tensor(3))),
        ["v.0.0", "v.0.1", "v.1.0", "v.1.1"],
    ),
}
KV_PATHS = [f"v.layers.{layer}.{kind}" for layer in range(2) for kind in ("keys", "values")]
OBJECTS: dict[str, tuple[Callable[[], object], list[str]]] = {
    "object": (lambda: Box([tensor()]), ["v.value.0"]),
    "object in a tuple": (lambda: (1, Box(tensor())), ["v.1.value"]),
    "DynamicCache": (filled_cache, KV_PATHS),
    "StaticCache": (static_cache, KV_PATHS),
    "EncoderDecoderCache": (
        lambda: EncoderDecoderCache(filled_cache(), DynamicCache(config=config())),
        [path.replace("v.", "v.self_attention_cache.") for path in KV_PATHS],
    ),
}


def found(value: object) -> dict[str, torch.Tensor]:
    return dict(tensor_leaves(value, "v"))


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
