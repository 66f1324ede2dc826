"""Cache: transformers' layouts, the legacy form and strangers behind one interface."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from wrappers.attention.cache import CacheExtent, ScaledKeys, as_cache, cache_extent
from wrappers.errors import InputError

CONFIG = LlamaConfig(hidden_size=8, num_attention_heads=2, num_key_value_heads=2)


def states(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 2, length, 4, generator=generator)


def test_nothing_stays_nothing_and_a_cache_stays_itself():
    assert as_cache(None) is None
    for cache in (DynamicCache(), StaticCache(CONFIG, max_cache_len=4)):
        assert as_cache(cache) is cache


@pytest.mark.parametrize("outer", [tuple, list])
@pytest.mark.parametrize("inner", [tuple, list])
def test_the_legacy_form_becomes_a_cache_with_the_same_states(outer, inner):
    legacy = outer(inner((states(3, seed=2 * i), states(3, seed=2 * i + 1))) for i in range(2))
    cache = as_cache(legacy)
    assert cache_extent(cache, 2) == CacheExtent(past_length=3, key_length=5)
    new_key, new_value = states(2, seed=8), states(2, seed=9)
    for layer_idx in range(2):
        key, value = cache.update(new_key, new_value, layer_idx)
        assert torch.equal(key, torch.cat((legacy[layer_idx][0], new_key), dim=2))
        assert torch.equal(value, torch.cat((legacy[layer_idx][1], new_value), dim=2))
        assert legacy[layer_idx][0].shape[2] == 3


def test_an_empty_legacy_form_is_an_empty_cache():
    cache = as_cache(())
    assert cache_extent(cache, 4) == CacheExtent(past_length=0, key_length=4)


@pytest.mark.parametrize(
    "wrong", [3, "cache", {"key": 1}, (1, 2), ((states(1),),), (states(1), states(1))]
)
def test_anything_else_is_refused_by_its_type(wrong):
    with pytest.raises(InputError, match=f"is a {type(wrong).__name__}; expected"):
        as_cache(wrong)


def test_extent_without_a_cache_is_the_query_itself():
    assert cache_extent(None, 5) == CacheExtent(past_length=0, key_length=5)


def test_extent_of_a_dynamic_cache():
    cache = DynamicCache()
    assert cache_extent(cache, 5) == CacheExtent(past_length=0, key_length=5)
    cache.update(states(3), states(3), 0)
    assert cache_extent(cache, 2) == CacheExtent(past_length=3, key_length=5)


def test_extent_of_a_static_cache_counts_its_empty_slots():
    cache = StaticCache(CONFIG, max_cache_len=9)
    cache.update(states(3), states(3), 0)
    extent = cache_extent(cache, 2)
    assert int(extent.past_length) == 3
    assert extent.key_length == 9


def test_a_cache_that_dropped_its_first_positions_is_refused():
    cache = DynamicCache()
    cache.layer_class_to_replicate = lambda: DynamicSlidingWindowLayer(sliding_window=4)
    cache.update(states(6), states(6), 0)
    with pytest.raises(InputError, match="begins at position 3"):
        cache_extent(cache, 1)


def test_scaled_keys_are_held_without_their_factor():
    cache = DynamicCache()
    scaled = ScaledKeys(cache, 0.25)
    assert as_cache(scaled) is scaled
    key, value = states(3), states(3, seed=1)
    scaled.update(key * 0.25, value, 0)
    all_keys, all_values = scaled.update(key * 0.25, value, 0)
    assert torch.equal(cache.layers[0].keys, torch.cat((key, key), dim=2))
    assert torch.equal(all_keys, torch.cat((key, key), dim=2) * 0.25)
    assert torch.equal(all_values, torch.cat((value, value), dim=2))
    assert cache_extent(scaled, 2) == cache_extent(cache, 2) == CacheExtent(6, 8)
