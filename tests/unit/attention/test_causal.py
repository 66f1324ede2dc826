"""Causal attention in a model: what masks hide, and what calibration sees."""

import torch

import wrappers
from tests.builders.agreement import IMPLEMENTATIONS, VARIANTS, peir
from tests.builders.llama import attention_inputs, calibrated, tiny, tokens, wrap
from wrappers.core.point import Mode


@VARIANTS
def test_logits_further_apart_than_the_fill_value_show_nothing_hidden(variant):
    model = tiny()
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 40
        layer.self_attn.k_proj.weight.data *= 40
    wrapped = wrap(model, variant)
    ids = tokens(1, 24)
    with torch.no_grad():
        attention = model(ids, output_attentions=True).attentions[0]
        found = wrapped(ids, output_attentions=True).attentions[0]
    hidden = ~torch.ones(24, 24, dtype=torch.bool).tril()
    assert attention[..., hidden].abs().max() == 0
    assert found[..., hidden].abs().max() == 0
    assert peir(attention, found) < 1e-4


@VARIANTS
def test_a_query_with_nothing_to_see_gets_what_the_implementation_gives(variant):
    hidden_states = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    for implementation in ("eager", "sdpa"):
        model = tiny(implementation)
        attention = wrap(model, variant).model.layers[0].self_attn
        inputs = attention_inputs(model, hidden_states)
        with torch.no_grad():
            output, weights = attention(**inputs, attention_mask=mask)
            values = attention.v_proj(hidden_states)
            mean = values.view(1, 5, 2, 8).mean(1).repeat_interleave(2, dim=1).view(1, 32)
        if implementation == "eager":
            torch.testing.assert_close(weights[:, :, :2], torch.full((1, 4, 2, 5), 0.2))
            expected = attention.o_proj(mean).expand(2, 32)
            torch.testing.assert_close(output[0, :2], expected, rtol=1e-5, atol=1e-6)
        else:
            assert weights is None
            assert not output[0, :2].any()


def test_batched_observers_see_whole_tensors():
    wrapped = wrap(tiny(), "prefill_reference")
    attention = wrapped.model.layers[0].self_attn
    attention.mode = Mode.CALIBRATE
    shapes = {}
    for name, point in attention.points.items():
        observe = point.observer.observe
        point.observer.observe = lambda x, n=name, f=observe: (
            shapes.setdefault(n, []).append(tuple(x.shape)),
            f(x),
        )[1]
    with torch.no_grad():
        wrapped(tokens(2, 6))
    assert {len(calls) for calls in shapes.values()} == {1}
    assert set(shapes) == set(attention.points)
    for name in ("logits_raw", "logits", "mask_add", "softmax", "attn_weights"):
        assert shapes[name] == [(2, 4, 6, 6)]


@VARIANTS
@IMPLEMENTATIONS
def test_padding_does_not_change_what_visible_positions_get(variant, implementation):
    quantized = wrappers.convert(calibrated(tiny(implementation), variant, [tokens(2, 24)]))
    ids = tokens(1, 10)
    mask = torch.cat((torch.zeros(1, 4), torch.ones(1, 10)), dim=1)
    with torch.no_grad():
        alone = quantized(ids).logits
        padded = quantized(
            torch.cat((torch.zeros(1, 4, dtype=torch.int64), ids), dim=1),
            attention_mask=mask,
            position_ids=torch.cat((torch.zeros(4), torch.arange(10)))[None].long(),
        ).logits
    assert peir(alone, padded[:, 4:]) < 1e-6
