"""Attention core: both forms against float64 softmax attention; blocks change no bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wrappers.attention import tiling
from wrappers.attention.core import AttentionOptions, attend_batched, attend_by_head

BATCHED_POINTS = [
    "scale",
    "logits_raw",
    "logits",
    "mask_add",
    "softmax",
    "attn_out",
    "attn_out_h",
    "attn_weights",
]


def unchanged(x, point, *, may_overwrite=False):
    return x


def round_to_eighths(x, point, *, may_overwrite=False):
    return torch.round(x * 8) / 8


def example(batch=2, heads=4, kv_heads=2, query=5, key=7, head_dim=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(batch * 100 + heads * 10 + query)
    q = torch.randn(batch, heads, query, head_dim, generator=generator).to(dtype)
    k = torch.randn(batch, kv_heads, key, head_dim, generator=generator).to(dtype)
    v = torch.randn(batch, kv_heads, key, head_dim, generator=generator).to(dtype)
    hidden = torch.rand(batch, 1, query, key, generator=generator) < 0.3
    hidden[..., 0] = False
    return q, k, v, torch.where(hidden, -99.0, 0.0).to(dtype)


def reference(q, k, v, mask, scaling):
    q, k, v, mask = (t.double() for t in (q, k, v, mask))
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    weights = (torch.einsum("bhqd,bhkd->bhqk", q, k) * scaling + mask).softmax(dim=-1)
    output = torch.einsum("bhqk,bhkd->bqhd", weights, v)
    return output.reshape(*output.shape[:2], -1), weights


def options(mask, **changes):
    return AttentionOptions(
        **{"quantize": unchanged, "mask": mask, "keep_weights": True, **changes}
    )


def batched(q, k, v, mask, scaling, **changes):
    return attend_batched(q, k, v, options(mask, scaling=scaling, **changes))


def by_head(q, k, v, mask, scaling, **changes):
    return attend_by_head(
        q.unbind(1), (k * scaling).unbind(1), v.unbind(1), options(mask, **changes)
    )


def by_head_unfolded(q, k, v, mask, scaling, **changes):
    return attend_by_head(
        q.unbind(1), k.unbind(1), v.unbind(1), options(mask, scaling=scaling, **changes)
    )


FORMS = pytest.mark.parametrize("attend", [batched, by_head, by_head_unfolded])


@FORMS
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"heads": 3, "kv_heads": 3},
        {"heads": 6, "kv_heads": 1},
        {"batch": 1, "query": 1, "key": 1},
        {"batch": 3, "query": 1, "key": 9},
    ],
)
def test_equals_softmax_attention_in_float64(attend, sizes):
    q, k, v, mask = example(**sizes)
    output, weights = reference(q, k, v, mask, 0.3)
    result = attend(q, k, v, mask, 0.3)
    torch.testing.assert_close(result.output.double(), output, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.weights.double(), weights, rtol=1e-5, atol=1e-6)


@FORMS
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_keeps_the_dtype_and_its_accuracy(attend, dtype):
    q, k, v, mask = example(dtype=dtype)
    output, _ = reference(q, k, v, mask, 0.3)
    result = attend(q, k, v, mask, 0.3)
    assert result.output.dtype == result.weights.dtype == dtype
    # The softmax is in float32 whatever the model; otherwise a few units in the last place.
    tolerance = max(1e-6, 8 * torch.finfo(dtype).eps)
    torch.testing.assert_close(result.output.double(), output, rtol=tolerance, atol=tolerance)


@FORMS
def test_a_mask_of_one_serves_the_whole_batch(attend):
    q, k, v, mask = example()
    one = mask[:1]
    expected = attend(q, k, v, one.expand_as(mask).contiguous(), 0.3)
    assert torch.equal(attend(q, k, v, one, 0.3).output, expected.output)


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_mask_equals_a_mask_that_hides_nothing_without_its_point(attend, dtype):
    q, k, v, mask = example(dtype=dtype)
    points = []

    def record(x, point, *, may_overwrite=False):
        points.append(point)
        return round_to_eighths(x, point)

    everything = attend(q, k, v, torch.zeros_like(mask), 0.3, quantize=round_to_eighths)
    nothing = attend(q, k, v, None, 0.3, quantize=record)
    assert torch.equal(nothing.output, everything.output)
    assert torch.equal(nothing.weights, everything.weights)
    assert "logits" in points
    assert "mask_add" not in points


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
    st.sampled_from([batched, by_head, by_head_unfolded]),
    st.integers(1, 3),
    st.sampled_from([(1, 1), (4, 2), (3, 3), (6, 2)]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 200),
    st.sampled_from(["each", "one", "none"]),
    st.sampled_from([unchanged, round_to_eighths]),
)
def test_blocks_of_any_size_change_no_bit(attend, batch, heads, query, key, block, masks, quantize):
    q, k, v, mask = example(batch, *heads, query, key)
    mask = {"each": mask, "one": mask[:1], "none": None}[masks]
    whole = attend(q, k, v, mask, 0.3, quantize=quantize, whole_tensors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "BLOCK_ELEMENTS", block)
        blocks = attend(q, k, v, mask, 0.3, quantize=quantize)
    assert torch.equal(blocks.output, whole.output)
    assert torch.equal(blocks.weights, whole.weights)


def test_batched_reaches_every_point_once_with_whole_tensors():
    q, k, v, mask = example()
    shapes = {}

    def record(x, point, *, may_overwrite=False):
        assert point not in shapes
        shapes[point] = tuple(x.shape)
        return x

    batched(q, k, v, mask, 0.3, quantize=record, observed_masks=[mask])
    assert list(shapes) == BATCHED_POINTS
    assert shapes["scale"] == ()
    assert {shapes[p] for p in ("logits_raw", "logits", "mask_add", "softmax")} == {(2, 4, 5, 7)}
    assert shapes["attn_out"] == (2, 4, 5, 6)
    assert shapes["attn_out_h"] == (2, 5, 24)


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


@pytest.mark.parametrize(
    ("case", "mask"),
    [
        ("a fill value that leaks", causal(-12.0)),
        ("a query that sees nothing", causal(-120.0, padded=11, blind=True)),
        ("no mask to speak of", torch.zeros(1, 1, 9, 11)),
    ],
)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_factor_on_the_queries_gives_the_same(dtype):
    q, k, v, mask = example(dtype=dtype)
    seen = {}

    def record(x, point, *, may_overwrite=False):
        seen.setdefault(point, x.clone())
        return x

    plain = batched(q, k, v, mask, 0.3, quantize=record, observed_masks=[mask])
    before = dict(seen)
    seen.clear()
    folded = batched(q, k, v, mask, 0.3, quantize=record, observed_masks=[mask], fold=True)
    assert seen.keys() == before.keys()
    tolerance = 4 * torch.finfo(dtype).eps
    for point in ("logits_raw", "logits"):
        scale = before[point].abs().max().item()
        torch.testing.assert_close(seen[point], before[point], rtol=0.0, atol=tolerance * scale)
    if dtype == torch.bfloat16:  # the factor stays on the logits
        assert torch.equal(folded.output, plain.output)
    torch.testing.assert_close(folded.output, plain.output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("folded", [True, False])
def test_by_head_reaches_the_points_of_each_head(folded):
    q, k, v, mask = example()
    points = []

    def record(x, point, *, may_overwrite=False):
        points.append((point, tuple(x.shape)))
        return x

    attend = by_head if folded else by_head_unfolded
    attend(q, k, v, mask, 0.3, quantize=record, observed_masks=[mask])
    first = [] if folded else [("scale", ())]
    per_head = [] if folded else [("logits_raw", (2, 5, 7))]
    per_head += [("logits", (2, 5, 7)), ("mask_add", (2, 5, 7)), ("softmax", (2, 5, 7))]
    per_head.append(("attn_out", (2, 5, 6)))
    whole = [("attn_out_h", (2, 5, 24)), ("attn_weights", (2, 4, 5, 7))]
    assert points == first + per_head * 4 + whole


@FORMS
def test_unwanted_weights_are_neither_kept_nor_quantised(attend):
    points = []

    def record(x, point, *, may_overwrite=False):
        points.append(point)
        return x

    result = attend(*example(), 0.3, quantize=record, keep_weights=False)
    assert result.weights is None
    assert "attn_weights" not in points


@FORMS
def test_a_point_replaces_what_goes_on(attend):
    q, k, v, mask = example()

    def flat(x, point, *, may_overwrite=False):
        return torch.full_like(x, 1 / 7) if point == "softmax" else x

    result = attend(q, k, v, mask, 0.3, quantize=flat)
    mean = v.mean(dim=2).repeat_interleave(2, dim=1).flatten(1)
    torch.testing.assert_close(result.output, mean[:, None].expand_as(result.output))


@FORMS
def test_inputs_are_left_alone(attend):
    tensors = example()
    before = [t.clone() for t in tensors]
    attend(*tensors, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@FORMS
def test_gradients_flow_and_equal_those_of_float64(attend):
    *qkv, mask = example()
    qkv = [t.requires_grad_() for t in qkv]
    attend(*qkv, mask, 0.3).output.square().sum().backward()
    exact = [t.detach().double().requires_grad_() for t in qkv]
    reference(*exact, mask, 0.3)[0].square().sum().backward()
    for got, expected in zip(qkv, exact, strict=True):
        torch.testing.assert_close(got.grad.double(), expected.grad, rtol=1e-4, atol=1e-5)


@FORMS
def test_dropout_drops_weights_and_scales_the_rest(attend):
    q, k, v, mask = example()
    plain = attend(q, k, v, mask, 0.3)
    torch.manual_seed(0)
    dropped = attend(q, k, v, mask, 0.3, dropout=0.5)
    zero = dropped.weights == 0
    assert 0.2 < zero.float().mean() < 0.8
    torch.testing.assert_close(dropped.weights[~zero], 2 * plain.weights[~zero])
