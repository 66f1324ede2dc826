"""Attention of the vision model: who sees whom, what is observed, and its numbers."""

import collections
import itertools

import pytest
import torch

import wrappers
from tests.builders.agreement import IMPLEMENTATIONS, VARIANTS, peir
from tests.builders.in_float64 import fake_quantize_64, linear_64
from tests.builders.qwen3_vl_vision import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    MIXED,
    ONE,
    assert_a_few_steps_apart,
    attention_inputs,
    calibrated,
    exported,
    operators_of,
    run,
    tiny,
    wrap,
)
from wrappers.core.point import Mode
from wrappers.errors import ModelInputError


def quantised_attention_64(attention, hidden_states, cu_seqlens, position_embeddings):
    """The quantised attention written out once more, in float64, for either variant."""
    half = HEAD_DIM // 2
    reference = "q_neg" in attention.points

    def q(x, name):
        return fake_quantize_64(x, attention.points[name])

    def rotate(x, name):
        x1, x2 = q(x[:, :half], f"{name}_x1"), q(x[:, half:], f"{name}_x2")
        halves = torch.cat((q(-x2, f"{name}_neg") if reference else x2, x1), dim=-1)
        turned = q(halves, f"{name}_cat") * sin
        return q(q(x * cos, f"{name}_cos") + q(turned, f"{name}_sin"), f"{name}_rot")

    cos, sin = (table.double() for table in position_embeddings)
    sin = sin if reference else torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)
    cos, sin = q(cos, "cos"), q(sin, "sin")
    hidden = q(hidden_states.double(), "hidden")
    heads = linear_64(attention.qkv, hidden).split(HEAD_DIM, dim=1)
    queries = [rotate(head, "q") for head in heads[:HEADS]]
    keys = [rotate(head, "k") for head in heads[HEADS : 2 * HEADS]]
    scale = q(torch.tensor(HEAD_DIM**-0.5, dtype=torch.float64), "scale")
    outputs = torch.empty_like(hidden)
    for start, end in itertools.pairwise(cu_seqlens.tolist()):
        for i, (query, key, value) in enumerate(zip(queries, keys, heads[-HEADS:], strict=True)):
            logits = q(query[start:end] @ key[start:end].T, "logits_raw") * scale
            weights = q(q(logits, "logits").softmax(dim=-1), "softmax")
            columns = slice(i * HEAD_DIM, (i + 1) * HEAD_DIM)
            outputs[start:end, columns] = q(weights @ value[start:end], "attn_out")
    return linear_64(attention.proj, q(outputs, "attn_out_h"))


@VARIANTS
@IMPLEMENTATIONS
def test_segments_decide_who_sees_whom(variant, implementation):
    model = tiny(implementation)
    attention, wrapped = model.blocks[0].attn, wrap(model, variant).blocks[0].attn
    given = attention_inputs(MIXED)
    right = run(wrapped, **given)
    assert peir(run(attention, **given), right) < 2e-6
    off_by_one = given["cu_seqlens"].clone()
    off_by_one[1] += 1
    for wrong in (off_by_one, given["cu_seqlens"][[0, -1]]):
        found = run(wrapped, **{**given, "cu_seqlens": wrong})
        assert peir(right, found) > 1e-2
        assert peir(run(attention, **{**given, "cu_seqlens": wrong}), found) < 2e-6


@VARIANTS
@pytest.mark.parametrize("ends", [[0, 30, 24], [0], [0, 8, 12]])
def test_segments_that_do_not_rise_to_the_last_patch_are_refused(variant, ends):
    attention = wrap(tiny(), variant).blocks[0].attn
    with pytest.raises(ModelInputError, match="expected cu_seqlens that rise"):
        run(attention, **{**attention_inputs(ONE), "cu_seqlens": torch.tensor(ends)})


@VARIANTS
def test_each_segment_goes_through_the_same_points(variant):
    attention = wrap(tiny(), variant).blocks[0].attn
    attention.mode = Mode.CALIBRATE
    shapes = collections.defaultdict(list)
    for name, point in attention.points.items():

        def observe(x, name=name, observe=point.observer.observe):
            shapes[name].append(tuple(x.shape))
            observe(x)

        point.observer.observe = observe
    run(attention, **attention_inputs(MIXED))
    assert set(shapes) == set(attention.points)
    heads = HEADS if variant == "prefill" else 1
    lead = (1,) if variant == "prefill" else (1, HEADS)
    for name in ("logits_raw", "logits", "softmax"):
        assert shapes[name] == [
            (*lead, length, length) for length in (24, 8, 8) for _ in range(heads)
        ]
    assert shapes["q_rot"] == [(*lead, 40, HEAD_DIM)] * heads
    assert shapes["attn_out_h"] == [(1, length, HIDDEN) for length in (24, 8, 8)]
    assert shapes["hidden"] == [(40, HIDDEN)]


def test_the_scale_is_on_the_logits_in_both_variants():
    for variant in ("prefill", "prefill_reference"):
        attention = wrappers.convert(calibrated(tiny(), variant)).blocks[0].attn
        raw, scaled = (attention.points[p].qparams.scale for p in ("logits_raw", "logits"))
        assert float(scaled / raw) == pytest.approx(HEAD_DIM**-0.5, rel=1e-2)


@VARIANTS
def test_segments_of_nothing_are_nothing(variant):
    attention = wrap(tiny(), variant).blocks[0].attn
    given = attention_inputs(ONE)
    expected = run(attention, **given)
    attention.mode = Mode.CALIBRATE
    given["cu_seqlens"] = torch.tensor([0, 24, 24])
    assert torch.equal(run(attention, **given), expected)


@VARIANTS
@pytest.mark.parametrize(
    ("activation", "weight"), [("uint8", "uint8"), ("int16", "uint8"), ("uint8", "uint4")]
)
def test_attention_equals_an_independent_computation(variant, activation, weight):
    model = tiny()
    config = {"activation": wrappers.affine(activation), "weight": wrappers.affine(weight)}
    attention = wrap(model.blocks[0].attn, variant, **config)
    wrappers.calibrate(attention, [attention_inputs(MIXED, seed) for seed in (4, 5)])
    wrappers.convert(attention)
    given = attention_inputs(MIXED, seed=4)
    with torch.no_grad():
        exact = model.blocks[0].attn(**given)
        expected = quantised_attention_64(attention, **given)
    found = run(attention, **given)
    assert_a_few_steps_apart(found, expected, attention.proj)
    assert peir(exact, found) == pytest.approx(peir(exact, expected), rel=0.2)


@pytest.mark.slow
def test_prefill_transposes_no_heads():
    attention = wrap(tiny(), "prefill", fixed=ONE).blocks[0].attn
    given = attention_inputs(ONE)
    args = (given.pop("hidden_states"),)
    _, program = exported(attention, args, given)
    counts = collections.Counter(name.split(".")[1] for name in operators_of(program))
    # One transpose for each head's keys in the product with the queries; slices for heads
    # and halves, and none for the single segment; one negation, of the sine table.
    assert counts["transpose"] == HEADS
    assert (counts["slice"], counts["neg"]) == (3 * HEADS + 2 * 2 * HEADS + 2, 1)
    assert not counts.keys() & {"permute", "view", "reshape", "unbind"}
