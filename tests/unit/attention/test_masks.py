"""Masks: the visible set of every accepted kind equals transformers', and the rest is refused."""

import copy
import math
import pickle
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Cache, DynamicCache, LlamaConfig, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask

from wrappers.attention.cache import cache_extent
from wrappers.attention.masks import MaskBuilder, packed_sequences
from wrappers.errors import ModelInputError

FILL = -77.0
PADDING_DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
]
FLOAT_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
INTEGER_DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
PROPERTY = settings(deadline=None, max_examples=60)


def config(implementation="eager", *, causal=True):
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, is_causal=causal,
    )  # fmt: skip
    config._attn_implementation = implementation
    return config


def cache_of(past_length, batch_size=1, slots=None):
    cache = DynamicCache() if slots is None else StaticCache(config(), max_cache_len=slots)
    if past_length:
        states = torch.zeros(batch_size, 1, past_length, 4)
        cache.update(states, states, 0)
    return cache


def visible_in_transformers(
    mask,
    batch_size,
    query_length,
    cache=None,
    *,
    implementation="eager",
    causal=True,
    position_ids=None,
):
    """Which keys the float model lets each query look at, as bool [B or 1, 1, query, key]."""
    made = create_causal_mask(
        config(implementation, causal=causal),
        torch.zeros(batch_size, query_length, 8),
        mask,
        cache,
        position_ids=position_ids,
    )
    if made is not None and made.is_floating_point():
        return made == 0
    # A bool mask, or none: all keys that get any weight from a query of zeros.
    key_length = cache_extent(cache, query_length).key_length
    identity = torch.eye(key_length).expand(batch_size, 1, -1, -1)
    query = torch.zeros(batch_size, 1, query_length, key_length)
    module = SimpleNamespace(is_causal=causal, num_key_value_groups=1)
    weights, _ = sdpa_attention_forward(module, query, identity, identity, made)
    return weights.transpose(1, 2) > 0


@dataclass(frozen=True)
class Given:
    """A mask as a caller gives it.

    Attributes:
        mask: what is given to the wrapped model.
        plain: a mask that says the same and that the float model understands.
        batch_size, query_length: of the new positions.
        cache: what came before them.
    """

    mask: torch.Tensor | None
    plain: torch.Tensor | None
    batch_size: int
    query_length: int
    cache: Cache | None


@st.composite
def given_masks(draw):
    """Any rank, dtype, padding, batch, past length and kind of cache."""
    batch_size, query_length = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    kind = draw(st.sampled_from(["none", "dynamic", "static"]))
    past_length = 0 if kind == "none" else draw(st.integers(0, 5))
    in_use = past_length + query_length
    slots = in_use + draw(st.integers(0, 4)) if kind == "static" else None
    cache = None if kind == "none" else cache_of(past_length, batch_size, slots)
    sizes = (batch_size, query_length, cache)
    rank = draw(st.sampled_from([None, 2, 4]))
    if rank is None:
        return Given(None, None, *sizes)
    if rank == 4:
        shape = (draw(st.sampled_from([1, batch_size])), 1, query_length, slots or in_use)
        return Given(*draw(final_masks(shape)), *sizes)
    length = draw(st.sampled_from([query_length, in_use, slots or in_use]))
    padding = draw(paddings((batch_size, length)))
    plain = padding
    if length == query_length:
        plain = torch.cat([torch.ones(batch_size, past_length, dtype=torch.bool), padding], dim=1)
    dtype = draw(st.sampled_from(PADDING_DTYPES))
    return Given(draw(nonzero_where(padding, dtype)), plain, *sizes)


@st.composite
def paddings(draw, shape):
    """Bool [B, length]: zeros on one side, or anywhere."""
    batch_size, length = shape
    side = draw(st.sampled_from(["left", "right", "any"]))
    if side == "any":
        return draw(patterns(shape))
    kept = torch.tensor([draw(st.integers(0, length)) for _ in range(batch_size)])
    padding = torch.arange(length)[None, :] < kept[:, None]
    return padding.flip(1) if side == "left" else padding


@st.composite
def final_masks(draw, shape):
    """A 4-D mask of any dtype, and what the float model understands."""
    visible = draw(patterns(shape))
    dtype = draw(st.sampled_from(PADDING_DTYPES))
    if not dtype.is_floating_point:
        return draw(nonzero_where(visible, dtype)), visible
    hidden = draw(st.sampled_from([-float("inf"), torch.finfo(dtype).min, -1e4]))
    return torch.zeros(shape, dtype=dtype).masked_fill(~visible, hidden), visible


def nonzero_where(visible, dtype):
    """`visible` as numbers: any but zero says the same."""
    return st.sampled_from([1, 3]).map(lambda number: (visible * number).to(dtype))


def patterns(shape):
    """Bool, of any values."""
    count = math.prod(shape)
    bits = st.lists(st.booleans(), min_size=count, max_size=count)
    return bits.map(lambda bits: torch.tensor(bits).view(shape))


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(
    given_masks(), st.sampled_from(["eager", "sdpa"]), st.sampled_from(FLOAT_DTYPES),
    st.sampled_from([int, torch.as_tensor]), st.booleans(),
)  # fmt: skip
def test_what_is_visible_is_what_transformers_shows(given, implementation, dtype, count, causal):
    plain = given.plain
    if plain is not None and plain.ndim == 4 and implementation == "eager":
        plain = torch.where(plain, 0.0, torch.finfo(torch.float32).min)
    expected = visible_in_transformers(
        plain, given.batch_size, given.query_length, given.cache, implementation=implementation,
        causal=causal,
    )  # fmt: skip
    extent = cache_extent(given.cache, given.query_length)
    additive = MaskBuilder(FILL).additive(
        given.mask, batch_size=given.batch_size, query_length=given.query_length,
        past_length=count(extent.past_length), key_length=extent.key_length, dtype=dtype,
        causal=causal,
    )  # fmt: skip
    assert additive.dtype == dtype
    assert additive.shape[0] in (1, given.batch_size)
    assert additive.shape[1:] == (1, given.query_length, extent.key_length)
    assert torch.equal((additive == 0).expand_as(expected), expected)
    assert torch.equal((additive == FILL).expand_as(expected), ~expected)


@pytest.mark.parametrize("given_dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("fill", [-1e5, -1e39, -1e300])
def test_a_fill_value_beyond_the_type_is_its_least_number(fill, dtype, given_dtype):
    least = max(fill, torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    hidden = torch.tensor([[[[0.0, -math.inf], [-math.inf, -math.inf]]]], dtype=given_dtype)
    masks = MaskBuilder(fill)
    for mask in (None, torch.tensor([[0, 1]]), hidden.isfinite(), hidden):
        additive = masks.additive(mask, batch_size=1, query_length=2, dtype=dtype)
        assert additive.dtype == dtype
        assert additive.min() == torch.tensor(least, dtype=dtype)
        assert torch.equal(masks.hidden_rows(additive), (additive != 0).all(-1, keepdim=True))
        assert torch.equal(masks.exact(additive) == 0, additive == 0)
        assert masks.exact(additive).isfinite().all()


@PROPERTY
@given(st.lists(st.floats(allow_nan=False, width=32), min_size=12, max_size=12))
def test_an_additive_mask_stays_within_the_fill_value_and_zero(values):
    mask = torch.tensor(values).view(1, 1, 3, 4)
    additive = MaskBuilder(FILL).additive(mask, batch_size=1, query_length=3, past_length=1)
    assert additive.min() >= FILL
    assert additive.max() <= 0
    within = (mask >= FILL) & (mask <= 0)
    assert torch.equal(additive[within], mask[within])


def test_masks_given_before_and_short_ones():
    masks = MaskBuilder(FILL)
    padding = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])
    once = masks.additive(padding, batch_size=2, query_length=4)
    assert torch.equal(masks.additive(once, batch_size=2, query_length=4), once)
    masks = MaskBuilder(FILL)
    short = torch.tensor([[0, 1, 1], [1, 1, 0]])
    full = torch.cat([torch.ones(2, 4, dtype=torch.int64), short], dim=1)
    sizes = {"batch_size": 2, "query_length": 3, "past_length": 4}
    assert torch.equal(masks.additive(short, **sizes), masks.additive(full, **sizes))


@pytest.mark.parametrize(("mask", "found"), [
    (torch.ones(4), "[4]"), (torch.ones(2, 4, 6), "[2, 4, 6]"), (torch.ones(3, 6), "[3, 6]"),
    (torch.ones(2, 5), "[2, 5]"), (torch.ones(2, 7), "[2, 7]"),
    (torch.ones(2, 1, 1, 6), "[2, 1, 1, 6]"), (torch.ones(2, 4, 4, 6), "[2, 4, 4, 6]"),
    (torch.ones(2, 1, 4, 4), "[2, 1, 4, 4]"), (torch.ones(3, 1, 4, 6), "[3, 1, 4, 6]"),
    (torch.ones(2, 1, 4, 6, 1), "[2, 1, 4, 6, 1]"), (torch.ones(0), "[0]"), (torch.tensor(1), "[]"),
])  # fmt: skip
def test_a_wrong_shape_is_refused_with_what_was_found_and_expected(mask, found):
    with pytest.raises(ModelInputError, match="expected") as error:
        MaskBuilder(FILL).additive(mask, batch_size=2, query_length=4, past_length=2)
    assert f"shape {found}" in str(error.value)
    assert "[2, 6]" in str(error.value) or "[2, 4 or 6]" in str(error.value)


def test_what_is_no_mask_is_refused():
    with pytest.raises(ModelInputError, match="complex64"):
        MaskBuilder(FILL).additive(
            torch.ones(1, 3, dtype=torch.complex64), batch_size=1, query_length=3
        )
    with pytest.raises(ModelInputError, match="do not fit into 4 keys"):
        MaskBuilder(FILL).additive(None, batch_size=1, query_length=3, past_length=2, key_length=4)


def test_hidden_rows_are_those_with_nothing_to_see():
    masks = MaskBuilder(FILL)
    padding = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 1]])
    for dtype in FLOAT_DTYPES:
        additive = masks.additive(padding, batch_size=2, query_length=4, dtype=dtype)
        hidden = masks.hidden_rows(additive)
        assert hidden.shape == (2, 1, 4, 1)
        assert hidden.flatten().tolist() == [True, True] + [False] * 6


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_hidden_rows_of_a_quantised_mask(bits):
    masks = MaskBuilder(FILL)
    additive = masks.additive(torch.tensor([[0, 0, 1, 1]]), batch_size=1, query_length=4)
    scale = -FILL / (2**bits - 1)
    quantised = torch.fake_quantize_per_tensor_affine(additive, scale, 2**bits - 1, 0, 2**bits - 1)
    assert torch.equal(masks.hidden_rows(quantised), masks.hidden_rows(additive))


@pytest.mark.parametrize("value", [FILL / 2, 0.9 * FILL])
def test_a_row_that_is_low_throughout_is_not_hidden(value):
    masks = MaskBuilder(FILL)
    given = torch.tensor([[value, -math.inf], [value, value]])[None, None]
    assert not masks.hidden_rows(masks.additive(given, batch_size=1, query_length=2)).any()


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
    expected = visible_in_transformers(None, 1, position_ids.shape[1], position_ids=position_ids)
    assert torch.equal(packed_sequences(position_ids), expected)
