"""Nested values of every kind, with the paths of their tensors."""

import dataclasses
import types
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers import BatchEncoding, DynamicCache, EncoderDecoderCache, LlamaConfig, StaticCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from tracer.tensors.leaves import tensor_leaves


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
