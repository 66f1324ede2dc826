"""The key/value cache as attention sees it: `update` takes the new keys and values and returns all.

    cache = as_cache(past_key_values)
    extent = cache_extent(cache, query_length)          # before the layers: sizes of the mask
    key, value = cache.update(key, value, layer_idx)    # in each layer

A cache holds rotated keys as the float model has them, so that one filled by a float model serves
its wrapped copy and the other way round; `ScaledKeys` stands before it where attention works with
keys that carry a factor.

What lies behind it is transformers' `Cache` of any layout (dynamic, static, quantised), the legacy
form (a tuple with a pair of key and value for each layer), or anything else with these methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from wrappers.core.point import Quantize
from wrappers.errors import ModelInputError


@runtime_checkable
class KeyValueCache(Protocol):
    """Keeps the keys and values of earlier positions, for each layer."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Stores new keys and values and returns those of all positions.

        Args:
            key_states: rotated keys of the new positions, [B, kv_heads, query, head_dim].
            value_states: the values, [B, kv_heads, query, head_dim].
            layer_idx: the layer that they belong to.

        Returns:
            Keys and values, each [B, kv_heads, key, head_dim].
        """
        ...

    def get_seq_length(self, layer_idx: int = 0) -> int | Tensor:
        """Returns how many positions are cached; a 0-d tensor where a static cache counts so."""
        ...

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Returns how many keys the next `update` gives, and the position of the first of them."""
        ...


class PartKind(Enum):
    """What a part of a cache holds."""

    PAST = "past"
    """Keys and values of earlier positions."""

    NEW = "new"
    """Those that came last."""

    EMPTY = "empty"
    """Nothing yet: zeros of a static cache, which a mask hides."""


@dataclass(frozen=True)
class CachePart:
    """Some of the keys and values that attention works with, each [B, kv_heads, part, head_dim]."""

    key: Tensor
    value: Tensor
    kind: PartKind


@dataclass(frozen=True)
class CacheExtent:
    """How far attention reaches.

    Attributes:
        past_length: positions cached before the new ones.
        key_length: keys attended over, a static cache's empty slots included.
    """

    past_length: int | Tensor
    key_length: int


class _Before:
    """What stands before a cache and says of its length what that says."""

    def __init__(self, cache: KeyValueCache) -> None:
        self._cache = cache

    def get_seq_length(self, layer_idx: int = 0) -> int | Tensor:
        return self._cache.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._cache.get_mask_sizes(query_length, layer_idx)


class ScaledKeys(_Before):
    """A cache for keys that carry a factor, over a cache that holds them without it.

    Args:
        cache: what holds the keys and values.
        factor: the factor on the keys that attention works with.
    """

    def __init__(self, cache: KeyValueCache, factor: float) -> None:
        super().__init__(cache)
        self._factor = factor

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int
    ) -> tuple[Tensor, Tensor]:
        key, value = self._cache.update(key_states / self._factor, value_states, layer_idx)
        return key * self._factor, value

    def update_in_parts(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int
    ) -> list[CachePart]:
        """See the function of that name."""
        parts = update_in_parts(self._cache, key_states / self._factor, value_states, layer_idx)
        # The new keys too: what a cache of low precision gives back is not what it was given.
        return [replace(part, key=part.key * self._factor) for part in parts]


class RoundedPast(_Before):
    """A cache that holds floats, read as if it held codes: the past goes through points.

    A runtime keeps codes itself (`wrappers.attention.packed`); the numbers are the same.

    Args:
        cache: what holds the keys and values, and stays as it is.
        quantize: with the points `kv_key` and `kv_value`.
    """

    def __init__(self, cache: KeyValueCache, quantize: Quantize) -> None:
        super().__init__(cache)
        self._quantize = quantize

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int
    ) -> tuple[Tensor, Tensor]:
        return _joined(self.update_in_parts(key_states, value_states, layer_idx))

    def update_in_parts(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int
    ) -> list[CachePart]:
        """See the function of that name."""
        parts = update_in_parts(self._cache, key_states, value_states, layer_idx)
        return [
            replace(
                part,
                key=self._quantize(part.key, "kv_key"),
                value=self._quantize(part.value, "kv_value"),
            )
            if part.kind is PartKind.PAST
            else part
            for part in parts
        ]


class StepCache:
    """The cache of one step with static shapes: the past is given, and what is new kept apart.

    Attention sees the past and, after it, the new positions. Keys are held as attention works with
    them, carrying a factor if that attention's keys do: an accelerator's step has no use for keys
    in another form, and a cache of that form is written from what a step returns.

    Args:
        past: by layer keys and values, each [B, kv_heads, past, head_dim]; empty where nothing is
            past.

    Attributes:
        new: by layer the keys and values of the new positions, each [B, kv_heads, query,
            head_dim]; filled by `update`.
    """

    def __init__(self, past: Mapping[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self._past = {} if past is None else past
        self.new: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int
    ) -> tuple[Tensor, Tensor]:
        return _joined(self.update_in_parts(key_states, value_states, layer_idx))

    def update_in_parts(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int
    ) -> list[CachePart]:
        """See the function of that name."""
        if layer_idx in self.new:
            raise ModelInputError(
                f"layer {layer_idx} wrote to the cache of a step twice; make a StepCache for each "
                "forward pass"
            )
        self.new[layer_idx] = key_states, value_states
        new = CachePart(key_states, value_states, PartKind.NEW)
        if not self._past:
            return [new]
        return [CachePart(*self._past[layer_idx], PartKind.PAST), new]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        # All layers are as long, and layer 0 need not be among them.
        return next((keys.shape[2] for keys, _ in self._past.values()), 0)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.get_seq_length(layer_idx) + query_length, 0


def update_in_parts(
    cache: KeyValueCache, key_states: Tensor, value_states: Tensor, layer_idx: int
) -> list[CachePart]:
    """Updates a cache and returns what attention works with, in order, in parts of one kind each.

    Args:
        cache: of any layout.
        key_states: of the new positions, [B, kv_heads, query, head_dim].
        value_states: likewise.
        layer_idx: the layer that they belong to.
    """
    if isinstance(cache, StepCache | ScaledKeys | RoundedPast):
        return cache.update_in_parts(key_states, value_states, layer_idx)
    # A copy: a static cache counts on, in place.
    start = int(cache.get_seq_length(layer_idx))
    end = start + key_states.shape[2]
    keys, values = cache.update(key_states, value_states, layer_idx)
    parts = [
        CachePart(keys[:, :, :start], values[:, :, :start], PartKind.PAST),
        CachePart(keys[:, :, start:end], values[:, :, start:end], PartKind.NEW),
        CachePart(keys[:, :, end:], values[:, :, end:], PartKind.EMPTY),
    ]
    return [part for part in parts if part.key.shape[2]]


def _joined(parts: Sequence[CachePart]) -> tuple[Tensor, Tensor]:
    keys, values = ([getattr(part, name) for part in parts] for name in ("key", "value"))
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)


def as_cache(past_key_values: object) -> KeyValueCache | None:
    """Returns what a caller gave as `past_key_values` in the form that attention calls.

    Args:
        past_key_values: None, a cache, or the legacy form: for each layer a pair of key and value,
            each [B, kv_heads, past, head_dim]. A legacy tuple is taken over into a `DynamicCache`,
            which is then what the model returns.

    Raises:
        ModelInputError: anything else.
    """
    if past_key_values is None or isinstance(past_key_values, KeyValueCache):
        return past_key_values
    if not _is_legacy(past_key_values):
        raise ModelInputError(
            f"past_key_values is a {type(past_key_values).__name__}; expected a transformers "
            "Cache, an object with its update, get_seq_length and get_mask_sizes, or for each "
            "layer a pair of key and value tensors."
        )
    from transformers import DynamicCache

    cache: KeyValueCache = DynamicCache()
    for layer_idx, (key, value) in enumerate(past_key_values):
        cache.update(key, value, layer_idx)
    return cache


def cache_extent(cache: KeyValueCache | None, query_length: int, layer_idx: int = 0) -> CacheExtent:
    """Returns how far the attention of `query_length` new positions reaches.

    Raises:
        ModelInputError: a cache that has dropped its first positions (a sliding window).
    """
    if cache is None:
        return CacheExtent(past_length=0, key_length=query_length)
    key_length, first_position = cache.get_mask_sizes(query_length, layer_idx)
    if first_position != 0:
        raise ModelInputError(
            f"The cache of layer {layer_idx} begins at position {first_position}: sliding-window "
            "caches are not supported. Use a DynamicCache or StaticCache over full attention."
        )
    return CacheExtent(past_length=cache.get_seq_length(layer_idx), key_length=key_length)


def _is_legacy(past_key_values: object) -> TypeGuard[Sequence[tuple[Tensor, Tensor]]]:
    return isinstance(past_key_values, tuple | list) and all(
        isinstance(layer, tuple | list)
        and len(layer) == 2
        and all(isinstance(states, Tensor) for states in layer)
        for layer in past_key_values
    )
