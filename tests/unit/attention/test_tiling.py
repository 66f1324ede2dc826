"""Attention in parts: blocks of any size change no bit; keys that weigh nothing are passed over."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.attention import (
    FORMS,
    batched,
    by_head,
    by_head_unfolded,
    example,
    round_to_eighths,
    unchanged,
)
from wrappers.attention import tiling


@FORMS
def test_without_a_mask_points_see_whole_tensors_only_if_asked(attend, monkeypatch):
    monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", 7)
    q, k, v, _ = example()
    rows = {True: set(), False: set()}
    for whole, seen in rows.items():

        def record(x, point, *, may_overwrite=False, seen=seen):
            if point == "softmax":
                seen.add(x.shape[-2])
            return x

        attend(q, k, v, None, 0.3, quantize=record, whole_tensors=whole)
    assert rows == {True: {5}, False: {1}}


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([batched, by_head, by_head_unfolded]), st.integers(1, 3),
    st.sampled_from([(1, 1), (4, 2), (3, 3), (6, 2)]), st.integers(1, 9), st.integers(1, 9),
    st.integers(1, 200), st.sampled_from(["each", "one", "none"]),
    st.sampled_from([unchanged, round_to_eighths]),
)  # fmt: skip
def test_blocks_of_any_size_change_no_bit(attend, batch, heads, query, key, block, masks, quantize):
    q, k, v, mask = example(batch, *heads, query, key)
    mask = {"each": mask, "one": mask[:1], "none": None}[masks]
    whole = attend(q, k, v, mask, 0.3, quantize=quantize, whole_tensors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "BLOCK_ELEMENTS", block)
        blocks = attend(q, k, v, mask, 0.3, quantize=quantize)
    assert torch.equal(blocks.output, whole.output)
    assert torch.equal(blocks.weights, whole.weights)


@pytest.mark.parametrize("rows", [1, 5])
def test_batched_by_parts_of_the_queries_is_the_same(monkeypatch, rows):
    q, k, v, mask = example()
    mask = mask[:, :, :rows]
    whole = batched(q, k, v, mask, 0.3, keep_weights=False)
    monkeypatch.setattr(tiling, "QUERY_ELEMENTS", 1)
    monkeypatch.setattr(tiling, "LEAST_QUERIES", 2)
    parts = batched(q, k, v, mask, 0.3, keep_weights=False)
    torch.testing.assert_close(parts.output, whole.output, rtol=1e-6, atol=1e-6)
    assert parts.weights is None


def causal(mask_value, query=9, key=11, batch=2, padded=0, blind=False):
    positions = torch.arange(key - query, key)[:, None]
    hidden = (torch.arange(key) > positions).expand(batch, 1, query, key).clone()
    hidden[0, ..., :padded] = True
    if not blind:
        hidden[..., padded] = False
    return torch.where(hidden, mask_value, 0.0)


def in_spans(monkeypatch):
    monkeypatch.setattr(tiling, "MASKED_QUERIES", 2)
    monkeypatch.setattr(tiling, "PART_QUERIES", 4)


def sizes_of_softmax(quantize=unchanged):
    sizes = []

    def record(x, point, *, may_overwrite=False):
        if point == "softmax":
            sizes.append(x.shape[-1])
        return quantize(x, point)

    return sizes, record


@pytest.mark.parametrize("quantize", [unchanged, round_to_eighths])
@pytest.mark.parametrize("padded", [0, 2])
def test_hidden_keys_are_passed_over_without_a_change(monkeypatch, quantize, padded):
    q, k, v, _ = example(query=9, key=11)
    mask = causal(-120.0, padded=padded)
    whole = batched(q, k, v, mask, 0.3, keep_weights=False, quantize=quantize)
    in_spans(monkeypatch)
    sizes, record = sizes_of_softmax(quantize)
    parts = batched(q, k, v, mask, 0.3, keep_weights=False, quantize=record)
    assert sizes == [6, 6, 10, 10, 11, 11]  # of each part the keys up to its last query
    torch.testing.assert_close(parts.output, whole.output, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("case", "mask"), [
    ("a fill value that leaks", causal(-12.0)),
    ("a query that sees nothing", causal(-120.0, padded=11, blind=True)),
    ("no mask to speak of", torch.zeros(1, 1, 9, 11)),
])  # fmt: skip
def test_hidden_keys_that_count_are_looked_at(monkeypatch, case, mask):
    q, k, v, _ = example(query=9, key=11)
    whole = batched(q, k, v, mask, 0.3, keep_weights=False)
    in_spans(monkeypatch)
    sizes, record = sizes_of_softmax()
    result = batched(q, k, v, mask, 0.3, keep_weights=False, quantize=record)
    assert set(sizes) == {11}, case
    torch.testing.assert_close(result.output, whole.output, rtol=1e-6, atol=1e-6)


def test_keys_are_looked_at_where_a_quantised_mask_leaks(monkeypatch):
    q, k, v, _ = example(query=9, key=11)
    in_spans(monkeypatch)

    def clipped(x, point, *, may_overwrite=False):
        return x.clamp(min=-20.0) if point == "mask_add" else x

    sizes, record = sizes_of_softmax(clipped)
    batched(q, k, v, causal(-120.0), 0.3, keep_weights=False, quantize=record)
    assert set(sizes) == {11}
    sizes, record = sizes_of_softmax()
    batched(q, k, v, causal(-120.0), 0.3, keep_weights=False, quantize=record, monotone=False)
    assert set(sizes) == {11}


def test_not_a_number_is_passed_on(monkeypatch):
    q, k, v, _ = example(query=9, key=11)
    q[0, 0, 0, 0] = torch.nan
    in_spans(monkeypatch)
    output = batched(q, k, v, causal(-120.0), 0.3, keep_weights=False).output
    assert output[0, 0, :6].isnan().all()
    assert output[1].isfinite().all()
