"""Masks: the visible set of every accepted kind equals transformers', and the rest is refused."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, StaticCache
from transformers.masking_utils import create_causal_mask

from wrappers.attention.masks import MaskBuilder, packed_sequences
from wrappers.errors import InputError

FILL = -77.0
CONFIG = LlamaConfig(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    attn_implementation="eager",
)
MASK_DTYPES = [torch.bool, torch.int64, torch.int32, torch.uint8, torch.float32, torch.float16]
FLOAT_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
PROPERTY = settings(deadline=None, max_examples=60)


def cache_of(past_length, batch_size=1, capacity=None):
    cache = DynamicCache() if capacity is None else StaticCache(CONFIG, max_cache_len=capacity)
    states = torch.zeros(batch_size, 1, past_length, 4)
    cache.update(states, states, 0)
    return cache


def visible_in_transformers(mask, batch_size, query_length, past_length, position_ids=None):
    additive = create_causal_mask(
        CONFIG,
        torch.zeros(batch_size, query_length, 8),
        mask,
        cache_of(past_length, batch_size) if past_length else None,
        position_ids=position_ids,
    )
    return additive == 0


@st.composite
def padded_batches(draw):
    batch_size = draw(st.integers(1, 3))
    query_length = draw(st.integers(1, 6))
    past_length = draw(st.integers(0, 5))
    length = past_length + query_length
    kind = draw(st.sampled_from(["left", "right", "any"]))
    if kind == "any":
        rows = [draw(st.lists(st.booleans(), min_size=length, max_size=length)) for _ in range(3)]
        padding = torch.tensor(rows[:batch_size])
    else:
        kept = torch.tensor([draw(st.integers(0, length)) for _ in range(batch_size)])
        padding = torch.arange(length)[None, :] < kept[:, None]
        padding = padding.flip(1) if kind == "left" else padding
    return padding.to(draw(st.sampled_from(MASK_DTYPES))), query_length, past_length


@PROPERTY
@given(padded_batches(), st.sampled_from(FLOAT_DTYPES))
def test_padding_shows_what_transformers_shows(batch, dtype):
    padding, query_length, past_length = batch
    batch_size, key_length = padding.shape
    additive = MaskBuilder(FILL).additive(
        padding,
        batch_size=batch_size,
        query_length=query_length,
        past_length=past_length,
        dtype=dtype,
    )
    assert additive.shape == (batch_size, 1, query_length, key_length)
    assert additive.dtype == dtype
    expected = visible_in_transformers(padding, batch_size, query_length, past_length)
    assert torch.equal(additive == 0, expected)
    assert torch.equal(additive == FILL, ~expected)


@PROPERTY
@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 9))
def test_none_is_causal_as_in_transformers(batch_size, query_length, past_length):
    additive = MaskBuilder(FILL).additive(
        None, batch_size=batch_size, query_length=query_length, past_length=past_length
    )
    assert additive.shape == (1, 1, query_length, past_length + query_length)
    expected = visible_in_transformers(None, batch_size, query_length, past_length)
    assert torch.equal((additive == 0).expand_as(expected), expected)


@PROPERTY
@given(padded_batches(), st.sampled_from([torch.bool, torch.int64, torch.int8]))
def test_four_dimensional_bool_and_integer_masks_are_final(batch, dtype):
    padding, query_length, past_length = batch
    visible = visible_in_transformers(padding, padding.shape[0], query_length, past_length)
    additive = MaskBuilder(FILL).additive(
        visible.to(dtype),
        batch_size=padding.shape[0],
        query_length=query_length,
        past_length=past_length,
    )
    assert torch.equal(additive == 0, visible)
    assert torch.equal(additive == FILL, ~visible)


@pytest.mark.parametrize("hidden", [-float("inf"), torch.finfo(torch.float32).min, -1e4])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_additive_masks_are_clamped_whatever_their_minus_infinity(hidden, dtype):
    visible = torch.ones(2, 1, 3, 5, dtype=torch.bool).tril(2)
    mask = torch.where(visible, 0.0, hidden)
    additive = MaskBuilder(FILL).additive(
        mask, batch_size=2, query_length=3, past_length=2, dtype=dtype
    )
    assert additive.dtype == dtype
    assert torch.equal(additive == 0, visible)
    assert torch.equal(additive == FILL, ~visible)


@PROPERTY
@given(st.lists(st.floats(allow_nan=False, width=32), min_size=12, max_size=12))
def test_an_additive_mask_stays_within_the_fill_value_and_zero(values):
    mask = torch.tensor(values).view(1, 1, 3, 4)
    additive = MaskBuilder(FILL).additive(mask, batch_size=1, query_length=3, past_length=1)
    assert additive.min() >= FILL
    assert additive.max() <= 0
    within = (mask >= FILL) & (mask <= 0)
    assert torch.equal(additive[within], mask[within])


def test_a_mask_given_before_is_given_back_unchanged():
    masks = MaskBuilder(FILL)
    padding = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])
    once = masks.additive(padding, batch_size=2, query_length=4)
    assert torch.equal(masks.additive(once, batch_size=2, query_length=4), once)


def test_a_short_padding_mask_leaves_the_cached_keys_visible():
    masks = MaskBuilder(FILL)
    short = torch.tensor([[0, 1, 1], [1, 1, 0]])
    full = torch.cat([torch.ones(2, 4, dtype=torch.int64), short], dim=1)
    sizes = {"batch_size": 2, "query_length": 3, "past_length": 4}
    assert torch.equal(masks.additive(short, **sizes), masks.additive(full, **sizes))


@pytest.mark.parametrize("padding", [None, torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])])
def test_empty_slots_of_a_static_cache_are_hidden_as_in_transformers(padding):
    cache = cache_of(2, batch_size=2, capacity=9)
    expected = create_causal_mask(CONFIG, torch.zeros(2, 3, 8), padding, cache, None) == 0
    for past_length in (2, cache.get_seq_length(0)):
        additive = MaskBuilder(FILL).additive(
            padding, batch_size=2, query_length=3, past_length=past_length, key_length=9
        )
        assert torch.equal((additive == 0).expand_as(expected), expected)


def test_without_causality_only_padding_hides():
    masks = MaskBuilder(FILL)
    padding = torch.tensor([[True, True, False]])
    additive = masks.additive(padding, batch_size=1, query_length=3, causal=False)
    assert torch.equal(additive == 0, padding.expand(1, 1, 3, 3))
    assert not masks.additive(None, batch_size=1, query_length=3, causal=False).any()


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (torch.ones(4), "[4]"),
        (torch.ones(2, 4, 6), "[2, 4, 6]"),
        (torch.ones(3, 6), "[3, 6]"),
        (torch.ones(2, 5), "[2, 5]"),
        (torch.ones(2, 7), "[2, 7]"),
        (torch.ones(2, 1, 1, 6), "[2, 1, 1, 6]"),
        (torch.ones(2, 4, 4, 6), "[2, 4, 4, 6]"),
        (torch.ones(2, 1, 4, 4), "[2, 1, 4, 4]"),
        (torch.ones(3, 1, 4, 6), "[3, 1, 4, 6]"),
        (torch.ones(2, 1, 4, 6, 1), "[2, 1, 4, 6, 1]"),
        (torch.ones(0), "[0]"),
        (torch.tensor(1), "[]"),
    ],
)
def test_a_wrong_shape_is_refused_with_what_was_found_and_expected(mask, found):
    with pytest.raises(InputError, match="expected") as error:
        MaskBuilder(FILL).additive(mask, batch_size=2, query_length=4, past_length=2)
    assert f"shape {found}" in str(error.value)
    assert "[2, 6]" in str(error.value) or "[2, 4 or 6]" in str(error.value)


def test_a_complex_mask_is_refused():
    with pytest.raises(InputError, match="complex64"):
        MaskBuilder(FILL).additive(
            torch.ones(1, 3, dtype=torch.complex64), batch_size=1, query_length=3
        )


def test_more_positions_than_keys_are_refused():
    with pytest.raises(InputError, match="do not fit into 4 keys"):
        MaskBuilder(FILL).additive(None, batch_size=1, query_length=3, past_length=2, key_length=4)


def test_hidden_rows_are_those_with_nothing_to_see():
    masks = MaskBuilder(FILL)
    padding = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 1]])
    for dtype in FLOAT_DTYPES:
        additive = masks.additive(padding, batch_size=2, query_length=4, dtype=dtype)
        hidden = masks.hidden_rows(additive)
        assert hidden.shape == (2, 1, 4, 1)
        assert hidden.flatten().tolist() == [True, True] + [False] * 6


def test_hidden_rows_with_a_fill_value_that_the_dtype_rounds():
    masks = MaskBuilder(-100.3)
    additive = masks.additive(
        torch.tensor([[0, 1]]), batch_size=1, query_length=2, dtype=torch.bfloat16
    )
    assert masks.hidden_rows(additive).flatten().tolist() == [True, False]


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("fill", [FILL, -100.3])
def test_the_exact_mask_hides_what_the_additive_one_hides(dtype, fill):
    masks = MaskBuilder(fill)
    given = torch.tensor([[0.0, -3.0, -1e4, -float("inf")]])[None, None]
    additive = masks.additive(given, batch_size=1, query_length=1, key_length=4, dtype=dtype)
    exact = masks.exact(additive)
    assert torch.equal(exact[..., :2], additive[..., :2])
    assert exact[..., 2:].float().max() <= -65504
    assert torch.isfinite(exact.float()).all()


def test_the_template_grows_on_demand_and_is_shared_by_equal_requests():
    masks = MaskBuilder(FILL)
    assert masks._template is None
    masks.additive(None, batch_size=1, query_length=5)
    assert masks._template.shape == (1, 1, 8, 8)
    first = masks.additive(None, batch_size=1, query_length=7)
    second = masks.additive(None, batch_size=4, query_length=8)
    assert first.data_ptr() == second.data_ptr()
    masks.additive(None, batch_size=1, query_length=3, key_length=20)
    assert masks._template.shape == (1, 1, 8, 32)
    masks.additive(None, batch_size=1, query_length=1, past_length=500)
    assert masks._template.shape == (1, 1, 8, 32)
    masks.additive(None, batch_size=1, query_length=2, dtype=torch.float64)
    assert masks._template.dtype == torch.float64


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda masks: pickle.loads(pickle.dumps(masks))])
def test_copies_leave_the_template_behind(copied):
    masks = MaskBuilder(FILL)
    masks.additive(None, batch_size=1, query_length=5)
    other = copied(masks)
    assert other._template is None
    assert other.fill_value == FILL


def test_a_template_made_in_inference_mode_serves_a_forward_with_gradients():
    masks = MaskBuilder(FILL)
    with torch.inference_mode():
        masks.additive(None, batch_size=1, query_length=4)
    logits = torch.randn(1, 1, 4, 4, requires_grad=True)
    (logits * masks.additive(None, batch_size=1, query_length=4)).sum().backward()
    assert logits.grad is not None


@PROPERTY
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 3))
def test_packed_sequences_see_only_themselves_as_in_transformers(lengths, first):
    position_ids = torch.cat([torch.arange(length) + first for length in lengths])[None]
    expected = visible_in_transformers(None, 1, position_ids.shape[1], 0, position_ids=position_ids)
    assert torch.equal(packed_sequences(position_ids), expected)
