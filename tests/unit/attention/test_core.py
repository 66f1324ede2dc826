"""Attention core: both forms against float64 softmax attention; blocks change no bit."""

import pytest
import torch

from tests.builders.attention import (
    FORMS,
    batched,
    by_head,
    by_head_unfolded,
    example,
    round_to_eighths,
)

BATCHED_POINTS = [
    "scale", "logits_raw", "logits", "mask_add", "softmax", "attn_out", "attn_out_h",
    "attn_weights",
]  # fmt: skip


def reference(q, k, v, mask, scaling):
    q, k, v, mask = (t.double() for t in (q, k, v, mask))
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    weights = (torch.einsum("bhqd,bhkd->bhqk", q, k) * scaling + mask).softmax(dim=-1)
    output = torch.einsum("bhqk,bhkd->bqhd", weights, v)
    return output.reshape(*output.shape[:2], -1), weights


@FORMS
@pytest.mark.parametrize("sizes", [
    {}, {"heads": 3, "kv_heads": 3}, {"heads": 6, "kv_heads": 1},
    {"batch": 1, "query": 1, "key": 1}, {"batch": 3, "query": 1, "key": 9},
])  # fmt: skip
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


def test_batched_reaches_every_point_once_with_whole_tensors():
    q, k, v, mask = example()
    shapes = {}

    def record(x, point, *, may_overwrite=False):
        assert point not in shapes
        shapes[point] = tuple(x.shape)
        return x

    batched(q, k, v, mask, 0.3, quantize=record, observed_masks=[mask])
    assert (list(shapes), shapes["scale"]) == (BATCHED_POINTS, ())
    assert {shapes[p] for p in ("logits_raw", "logits", "mask_add", "softmax")} == {(2, 4, 5, 7)}
    assert (shapes["attn_out"], shapes["attn_out_h"]) == ((2, 4, 5, 6), (2, 5, 24))


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

    assert attend(*example(), 0.3, quantize=record, keep_weights=False).weights is None
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
