"""Cache: transformers' layouts, the legacy form and strangers behind one interface."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from wrappers.attention.cache import (
    CacheExtent,
    KeyValueCache,
    PartKind,
    ScaledKeys,
    StepCache,
    as_cache,
    cache_extent,
    update_in_parts,
)
from wrappers.errors import ModelInputError

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
    assert cache_extent(as_cache(()), 4) == CacheExtent(past_length=0, key_length=4)


@pytest.mark.parametrize(
    "wrong", [3, "cache", {"key": 1}, (1, 2), ((states(1),),), (states(1), states(1))]
)
def test_anything_else_is_refused_by_its_type(wrong):
    with pytest.raises(ModelInputError, match=f"is a {type(wrong).__name__}; expected"):
        as_cache(wrong)


def test_extents_of_caches():
    assert cache_extent(None, 5) == CacheExtent(past_length=0, key_length=5)
    cache = DynamicCache()
    assert cache_extent(cache, 5) == CacheExtent(past_length=0, key_length=5)
    cache.update(states(3), states(3), 0)
    assert cache_extent(cache, 2) == CacheExtent(past_length=3, key_length=5)
    cache = StaticCache(CONFIG, max_cache_len=9)
    cache.update(states(3), states(3), 0)
    extent = cache_extent(cache, 2)
    assert (int(extent.past_length), extent.key_length) == (3, 9)


def test_a_cache_that_dropped_its_first_positions_is_refused():
    cache = DynamicCache()
    cache.layer_class_to_replicate = lambda: DynamicSlidingWindowLayer(sliding_window=4)
    cache.update(states(6), states(6), 0)
    with pytest.raises(ModelInputError, match="begins at position 3"):
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


def joined(parts):
    """Keys and values of all parts, in order."""
    keys, values = ([getattr(part, name) for part in parts] for name in ("key", "value"))
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)


def static_cache():
    return StaticCache(CONFIG, max_cache_len=12)


@pytest.mark.parametrize("make", [DynamicCache, static_cache])
@pytest.mark.parametrize("lengths", [(1,), (5, 1, 1), (3, 4, 2), (6, 6)])
def test_parts_are_past_and_new_and_empty_slots_in_this_order(make, lengths):
    whole, in_parts = make(), make()
    before = 0
    for seed, length in enumerate(lengths):
        key, value = states(length, seed), states(length, seed + 10)
        expected = whole.update(key, value, 0)
        parts = update_in_parts(in_parts, key, value, 0)
        for found, wanted in zip(joined(parts), expected, strict=True):
            assert torch.equal(found, wanted)
        sizes = {part.kind: part.key.shape[2] for part in parts}
        slots = 12 if make is static_cache else before + length
        wanted = {
            PartKind.PAST: before, PartKind.NEW: length, PartKind.EMPTY: slots - before - length,
        }  # fmt: skip
        assert sizes == {kind: size for kind, size in wanted.items() if size}
        assert len(parts) == len(sizes)
        new = next(part for part in parts if part.kind is PartKind.NEW)
        assert torch.equal(new.key, key) and torch.equal(new.value, value)
        before += length


PAST = (states(4, seed=2), states(4, seed=3))


def filled(cache):
    cache.update(*PAST, 0)
    return cache


@pytest.mark.parametrize("make", [
    lambda: filled(DynamicCache()), lambda: filled(static_cache()), lambda: StepCache({0: PAST}),
], ids=["dynamic", "static", "step"])  # fmt: skip
def test_parts_of_scaled_keys_are_those_of_the_cache_times_the_factor(make):
    factor, key, value = 0.3, states(3, seed=4), states(3, seed=5)
    plain = update_in_parts(make(), key / factor, value, 0)
    parts = update_in_parts(ScaledKeys(make(), factor), key, value, 0)
    assert [part.kind for part in parts[:2]] == [PartKind.PAST, PartKind.NEW]
    for found, held in zip(parts, plain, strict=True):
        assert found.kind is held.kind
        assert torch.equal(found.key, held.key * factor)
        assert torch.equal(found.value, held.value)
    torch.testing.assert_close(parts[1].key, key)


def test_new_keys_are_what_a_cache_of_low_precision_made_of_them():
    class Rounding(DynamicCache):
        def update(self, key_states, value_states, layer_idx):
            return super().update(key_states.round(), value_states.round(), layer_idx)

    key, value = states(3), states(3, seed=1)
    (new,) = update_in_parts(ScaledKeys(Rounding(), 0.5), key, value, 0)
    assert torch.equal(new.key, (key * 2).round() / 2)
    assert torch.equal(new.value, value.round())


def test_a_step_sees_the_past_then_what_is_new_and_keeps_the_new_apart():
    past = {1: PAST, 2: (states(4, seed=6), states(4, seed=7))}
    cache = StepCache(past)
    key, value = states(2, seed=8), states(2, seed=9)
    for layer in (1, 2):
        keys, values = cache.update(key, value, layer)
        assert torch.equal(keys, torch.cat((past[layer][0], key), dim=2))
        assert torch.equal(values, torch.cat((past[layer][1], value), dim=2))
    assert list(cache.new) == [1, 2]
    assert cache.new[2][0] is key and cache.new[2][1] is value
    assert torch.equal(past[1][0], states(4, seed=2))  # not written to


def test_the_parts_of_a_step_are_the_tensors_themselves():
    cache = StepCache({0: PAST})
    key, value = states(1), states(1)
    past, new = update_in_parts(cache, key, value, 0)
    assert (past.kind, new.kind) == (PartKind.PAST, PartKind.NEW)
    assert past.key is PAST[0] and past.value is PAST[1]
    assert new.key is key and new.value is value


@pytest.mark.parametrize(("past", "length"), [(None, 0), ({}, 0), ({3: PAST}, 4)])
def test_the_extent_of_a_step(past, length):
    cache = StepCache(past)
    assert isinstance(cache, KeyValueCache) and as_cache(cache) is cache
    assert cache_extent(cache, 2, layer_idx=3) == CacheExtent(length, length + 2)
    assert cache.get_seq_length() == length  # also where layer 0 is not among them


def test_steps_over_a_cache():
    cache = StepCache()
    key, value = states(5), states(5, seed=1)
    (part,) = update_in_parts(cache, key, value, 7)
    assert part.kind is PartKind.NEW
    assert cache.new[7] == (key, value)
    cache = StepCache({0: PAST})
    cache.update(states(1), states(1), 0)
    with pytest.raises(ModelInputError, match="layer 0 wrote to the cache of a step twice"):
        cache.update(states(1), states(1), 0)
