"""The variant decode of Llama, called as transformers calls it: caches, calibration, numbers."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Cache, DynamicCache, QuantizedCache, Qwen3VLTextConfig, StaticCache
from transformers.cache_utils import QuantizedLayer
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

import wrappers
from tests.builders.agreement import (
    EACH_VARIANT,
    IMPLEMENTATIONS,
    assert_calls_agree,
    assert_modules_agree,
    padding,
    peir,
    record,
)
from tests.builders.in_float64 import assert_on_the_same_steps, attention_64
from tests.builders.llama import ATTENTION_POINTS, specs, tiny, tokens, wrap
from wrappers.attention.cache import StepCache
from wrappers.attention.rope import negate_first_half
from wrappers.deploy.steps import Step
from wrappers.errors import MissingWrapperError, PointError, UnseenObserverError
from wrappers.families.llama import QuantLlamaAttentionDecode

LIMIT = 2e-6


@pytest.fixture(scope="module")
def pair():
    """A float model, and its decode variant quantised to uint8; tests leave both as they are."""
    model = tiny()
    wrapped = wrap(model, "decode")
    prompts = [tokens(2, 24, seed) for seed in (5, 6)]
    wrappers.calibrate_decode(model, wrapped, prompts, steps=8, source="float")
    return model, wrappers.convert(wrapped)


def cached(model, input_ids):
    """A cache with what the model makes of the tokens."""
    with torch.no_grad():
        return model(input_ids, past_key_values=DynamicCache()).past_key_values


class TestVariant:
    def test_only_the_attention_is_another_with_points_for_the_past(self):
        decode, prefill = (dict(wrap(tiny(), v).named_modules()) for v in ("decode", "prefill"))
        others = {
            name for name, module in decode.items() if type(module) is not type(prefill[name])
        }
        assert others == {"model.layers.0.self_attn", "model.layers.1.self_attn"}
        assert {type(decode[name]) for name in others} == {QuantLlamaAttentionDecode}
        attention = wrap(tiny(), "decode").model.layers[0].self_attn
        assert set(attention.points) == ATTENTION_POINTS | {"past_key", "past_value"}

    @pytest.mark.parametrize(("model", "name"), [
        (
            lambda: Qwen3VLTextModel(Qwen3VLTextConfig(
                vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=1, head_dim=8,
            )),
            "Qwen3VLTextAttention",
        ),
        (tiny, "LlamaAttention"),
    ])  # fmt: skip
    def test_one_that_there_is_not_lists_those_of_the_class(self, model, name):
        said = f"{name} .* 'decoding'; it has decode, prefill, prefill_reference$"
        with pytest.raises(MissingWrapperError, match=said):
            wrap(model(), "decoding")


class TestQuantisationOff:
    @IMPLEMENTATIONS
    @pytest.mark.parametrize(
        ("batch", "length", "side"), [(1, 1, None), (3, 16, "left"), (3, 16, "right")]
    )
    def test_a_prefill_equals_the_float_model_in_every_module(
        self, implementation, batch, length, side
    ):
        model = tiny(implementation)
        inputs = {"input_ids": tokens(batch, length), "use_cache": True}
        if side:
            inputs["attention_mask"] = padding(batch, length, side)
        assert_modules_agree(model, wrap(model, "decode"), LIMIT, **inputs)

    @IMPLEMENTATIONS
    @pytest.mark.parametrize("query_length", [1, 3])
    @pytest.mark.parametrize("side", ["left", "right", None])
    def test_a_step_equals_the_float_model_in_every_module(
        self, implementation, query_length, side
    ):
        model = tiny(implementation)
        wrapped = wrap(model, "decode")
        ids = tokens(3, 8 + query_length)
        mask = torch.cat((padding(3, 8, side), torch.ones(3, query_length)), dim=1).long()
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        calls = []
        for candidate in (model, wrapped):
            cache = DynamicCache()
            with torch.no_grad():
                model(
                    ids[:, :8],
                    attention_mask=mask[:, :8],
                    position_ids=positions[:, :8],
                    past_key_values=cache,
                )
            output, recorded = record(
                candidate,
                input_ids=ids[:, 8:],
                attention_mask=mask,
                position_ids=positions[:, 8:],
                past_key_values=cache,
            )
            assert output.past_key_values is cache
            assert cache.get_seq_length() == 8 + query_length
            calls.append(recorded)
        assert_calls_agree(*calls, LIMIT)

    @pytest.mark.parametrize("changes", [
        {"attention_bias": True, "mlp_bias": True}, {"num_key_value_heads": 4},
        {"num_key_value_heads": 1}, {"head_dim": 16},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
    ], ids=lambda changes: next(iter(changes)))  # fmt: skip
    def test_configurations(self, changes):
        model = tiny(**changes)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)
        wrapped, ids = wrap(model, "decode"), tokens(2, 20)
        with torch.no_grad():
            expected = model(ids).logits[:, 19:]
            cache = cached(wrapped, ids[:, :19])
            assert peir(expected, wrapped(ids[:, 19:], past_key_values=cache).logits) <= LIMIT


class RoundedLayer(QuantizedLayer):
    """A cache layer of 8-bit integers, one scale for each head and position."""

    def __init__(self):
        super().__init__(residual_length=3)

    def _quantize(self, tensor, axis):
        scale = tensor.abs().amax(dim=-1, keepdim=True) / 127
        return (tensor / scale).round().to(torch.int8), scale

    def _dequantize(self, qtensor):
        codes, scale = qtensor
        return codes * scale


def fp8_cache(model):
    try:
        return QuantizedCache("fp8", model.config)
    except ValueError as error:
        pytest.skip(f"the installed transformers has no cache of float8: {error}")


def steps_over(model, cache, ids):
    """Logits of a prefill, an append and single steps over one cache."""
    found = []
    with torch.no_grad():
        for start, end in ((0, 5), (5, 8), (8, 9), (9, 10), (10, 11), (11, 12)):
            output = model(ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            found.append(output.logits)
    return torch.cat(found, dim=1)


class TestCachesOfTransformers:
    @EACH_VARIANT
    @pytest.mark.parametrize(
        "make",
        [
            lambda model: None, lambda model: (), lambda model: DynamicCache(),
            lambda model: DynamicCache(config=model.config),
            lambda model: StaticCache(model.config, max_cache_len=12),
            lambda model: StaticCache(model.config, max_cache_len=20),
        ],
        ids=["none", "legacy", "dynamic", "dynamic-by-config", "static-full", "static"],
    )  # fmt: skip
    def test_prefill_then_steps_equal_one_forward(self, variant, make):
        model, ids = tiny(), tokens(2, 12)
        with torch.no_grad():
            expected = model(ids).logits
        assert peir(expected, steps_over(wrap(model, variant), make(model), ids)) <= LIMIT

    @EACH_VARIANT
    @pytest.mark.parametrize(
        "make",
        [lambda model: Cache(layers=[RoundedLayer(), RoundedLayer()]), fp8_cache],
        ids=["int8", "fp8"],
    )
    def test_a_cache_that_quantises_does_to_the_wrapped_model_what_it_does_to_the_float_one(
        self, variant, make
    ):
        model, ids = tiny(), tokens(2, 12)
        with torch.no_grad():
            exact = model(ids).logits
        expected = steps_over(model, make(model), ids)
        found = steps_over(wrap(model, variant), make(model), ids)
        # A state that lies on the border of two codes may fall to the other side.
        assert peir(exact, expected) > 1e-3
        assert peir(expected, found) < 0.1 * peir(exact, expected)

    def test_a_cache_of_one_variant_serves_the_others(self):
        model, ids = tiny(), tokens(2, 12)
        models = [model, *(wrap(model, v) for v in ("prefill", "prefill_reference", "decode"))]
        with torch.no_grad():
            expected = model(ids).logits[:, 8:]
            for first in models:
                for second in models:
                    cache = cached(first, ids[:, :8])
                    found = second(ids[:, 8:], past_key_values=cache).logits
                    assert peir(expected, found) <= LIMIT
                    assert peir(cached(model, ids).layers[1].keys, cache.layers[1].keys) <= LIMIT


class TestCalibration:
    @IMPLEMENTATIONS
    def test_changes_no_bit(self, implementation):
        model = tiny(implementation)
        wrapped, ids = wrap(model, "decode"), tokens(3, 12)
        expected = steps_over(wrapped, DynamicCache(), ids)
        wrapped_too = wrap(model, "decode")
        for _, module in wrappers.iter_wrappers(wrapped_too):
            module.mode = wrappers.Mode.CALIBRATE
        assert torch.equal(steps_over(wrapped_too, DynamicCache(), ids), expected)
        wrappers.convert(wrapped_too)

    def test_the_past_is_observed_as_attention_works_with_it(self):
        model, ids = tiny(), tokens(2, 12)
        wrapped, cache = wrap(model, "decode"), cached(model, ids[:, :11])
        states = [(layer.keys, layer.values) for layer in cache.layers]
        wrappers.calibrate(wrapped, [{"input_ids": ids[:, 11:], "past_key_values": cache}])
        for layer, (keys, values) in zip(wrapped.model.layers, states, strict=True):
            points = layer.self_attn.points
            for name, expected in (("past_key", keys * 8**-0.5), ("past_value", values)):
                observer = points[name].observer
                assert observer.seen == 2 * 2 * 11 * 8
                assert float(observer.minimum) == pytest.approx(float(expected.min()), rel=1e-6)
                assert float(observer.maximum) == pytest.approx(float(expected.max()), rel=1e-6)

    @pytest.mark.parametrize(
        "make",
        [lambda model: DynamicCache(), lambda model: StaticCache(model.config, max_cache_len=24)],
        ids=["dynamic", "static"],
    )
    def test_a_prefill_alone_is_not_enough(self, make):
        # The zeros of a static cache would give the past a range that holds nothing else.
        model = tiny(num_hidden_layers=3)
        wrapped = wrap(model, "decode")
        inputs = {"input_ids": tokens(2, 16), "past_key_values": make(model)}
        wrappers.calibrate(wrapped, [inputs])
        with pytest.raises(UnseenObserverError) as caught:
            wrappers.convert(wrapped)
        message = str(caught.value)
        assert message.startswith("6 quantization points saw no data")
        for layer in range(3):
            for point in ("past_key", "past_value"):
                assert f"model.layers.{layer}.self_attn.{point}" in message
        assert {module.mode for _, module in wrappers.iter_wrappers(wrapped)} == {
            wrappers.Mode.CALIBRATE
        }

    def test_empty_slots_are_no_past(self):
        model, ids = tiny(), tokens(2, 9)
        wrapped, cache = wrap(model, "decode"), StaticCache(model.config, max_cache_len=64)
        inputs = [
            {"input_ids": ids[:, :8], "past_key_values": cache},
            {"input_ids": ids[:, 8:], "past_key_values": cache},
        ]
        wrappers.calibrate(wrapped, inputs)
        assert wrapped.model.layers[0].self_attn.points["past_key"].observer.seen == 2 * 2 * 8 * 8


class TestQuantisationOn:
    @pytest.mark.parametrize(
        ("activation", "weight"), [("uint8", "uint8"), ("int16", "uint8"), ("uint8", "uint4")]
    )
    @pytest.mark.parametrize("query_length", [1, 3])
    def test_attention_equals_an_independent_computation(self, activation, weight, query_length):
        model, ids = tiny(), tokens(1, 16 + query_length, seed=9)
        wrapped = wrap(model, "decode", **specs(activation, weight))
        wrappers.calibrate_decode(model, wrapped, [tokens(2, 24)], steps=8, source="float")
        wrappers.convert(wrapped)
        attention = wrapped.model.layers[0].self_attn
        past = cached(model, ids[:, :16]).layers[0]
        past = past.keys * attention.key_factor, past.values
        with torch.no_grad():
            layer = model.model.layers[0]
            hidden = layer.input_layernorm(model.model.embed_tokens(ids[:, 16:]))
            cos, sin = model.model.rotary_emb(hidden, torch.arange(16, 16 + query_length)[None])
            mask = torch.full((1, query_length, 16 + query_length), -120.0).triu(17)
            mask[..., :3] = -120.0  # slots not in use
            inputs = (hidden, cos, negate_first_half(sin), mask)
            found = Step(attention)(*inputs, *past)
            expected = attention_64(attention, *(x[0] for x in inputs), [x[0] for x in past])
        points = (
            attention.o_proj.points["act_out"],
            *(attention.points[n] for n in ("new_k", "new_v")),
        )
        for ours, theirs, point in zip(found, expected, points, strict=True):
            assert_on_the_same_steps(ours[0], theirs, point)

    def test_over_a_dynamic_cache_equals_a_step(self):
        # With this head_dim the factor is a power of two: no rounding on the way to the cache.
        model = tiny(head_dim=16)
        wrapped, ids = wrap(model, "decode"), tokens(2, 13)
        wrappers.calibrate_decode(model, wrapped, [tokens(2, 24)], steps=8, source="float")
        wrappers.convert(wrapped)
        cache = cached(model, ids[:, :12])
        past = {
            i: (layer.keys * 0.25, layer.values.clone()) for i, layer in enumerate(cache.layers)
        }
        with torch.no_grad():
            found = wrapped(ids[:, 12:], past_key_values=cache).logits
            expected = wrapped(ids[:, 12:], past_key_values=StepCache(past)).logits
        assert torch.equal(found, expected)

    def test_generates_with_a_cache(self, pair):
        _, quantized = pair
        how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        dynamic = quantized.generate(tokens(2, 5), **how)
        static = quantized.generate(tokens(2, 5), cache_implementation="static", **how)
        assert dynamic.shape == (2, 11)
        assert torch.equal(dynamic, static)

    @pytest.mark.parametrize("how", ["copied", "pickled", "saved"])
    def test_copies_compute_the_same_and_are_apart(self, pair, how, tmp_path):
        model, quantized = pair
        if how == "copied":
            twin = copy.deepcopy(quantized)
        elif how == "pickled":
            twin = pickle.loads(pickle.dumps(quantized))
        else:
            quantized.save_pretrained(tmp_path)
            twin = wrap(copy.deepcopy(model), "decode")
            twin.load_state_dict(load_file(tmp_path / "model.safetensors"))
            wrappers.convert(twin)
        ids = tokens(2, 9)
        with torch.no_grad():
            expected, found = (
                candidate(ids[:, 8:], past_key_values=cached(model, ids[:, :8])).logits
                for candidate in (quantized, twin)
            )
        assert torch.equal(expected, found)
        points = [each.model.layers[0].self_attn.points["past_key"] for each in (quantized, twin)]
        assert points[0] is not points[1]
        assert torch.equal(points[0].qparams.scale, points[1].qparams.scale)
        said = r"has points past_key, past_value, which model\.layers\.0"
        with pytest.raises(PointError, match=said):
            wrap(model, "prefill").load_state_dict(twin.state_dict())
