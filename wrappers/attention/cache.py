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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard, runtime_checkable

from torch import Tensor

from wrappers.errors import InputError


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


@dataclass(frozen=True)
class CacheExtent:
    """How far attention reaches.

    Attributes:
        past_length: positions cached before the new ones.
        key_length: keys attended over, a static cache's empty slots included.
    """

    past_length: int | Tensor
    key_length: int


class ScaledKeys:
    """A cache for keys that carry a factor, over a cache that holds them without it.

    Args:
        cache: what holds the keys and values.
        factor: the factor on the keys that attention works with.
    """

    def __init__(self, cache: KeyValueCache, factor: float) -> None:
        self._cache = cache
        self._factor = factor

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int
    ) -> tuple[Tensor, Tensor]:
        key, value = self._cache.update(key_states / self._factor, value_states, layer_idx)
        return key * self._factor, value

    def get_seq_length(self, layer_idx: int = 0) -> int | Tensor:
        return self._cache.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._cache.get_mask_sizes(query_length, layer_idx)


def as_cache(past_key_values: object) -> KeyValueCache | None:
    """Returns what a caller gave as `past_key_values` in the form that attention calls.

    Args:
        past_key_values: None, a cache, or the legacy form: for each layer a pair of key and value,
            each [B, kv_heads, past, head_dim]. A legacy tuple is taken over into a `DynamicCache`,
            which is then what the model returns.

    Raises:
        InputError: anything else.
    """
    if past_key_values is None or isinstance(past_key_values, KeyValueCache):
        return past_key_values
    if not _is_legacy(past_key_values):
        raise InputError(
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
        InputError: a cache that has dropped its first positions (a sliding window).
    """
    if cache is None:
        return CacheExtent(past_length=0, key_length=query_length)
    key_length, first_position = cache.get_mask_sizes(query_length, layer_idx)
    if first_position != 0:
        raise InputError(
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
