"""A cache in few bits: the runtime against eager caches, and the debugger that looks at it."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, StaticCache

import tracer
import wrappers
from tests.builders.agreement import padding
from tests.builders.llama import tiny, tokens, wrap
from wrappers import KVCacheSpec, PTQConfig, Runtime, affine, no_quantization
from wrappers.deploy.runtime import Prompts, run_prefill
from wrappers.errors import ConfigError
from wrappers.layers.decoder_blocks import cache_quantizers
from wrappers.numerics.windowed import WindowedQuantizer

FLOAT = {"activation": no_quantization(), "weight": no_quantization()}
SMALL = KVCacheSpec("int4", "int4", group=4, residual=3)
VARIANTS = pytest.mark.parametrize("variant", ["prefill", "prefill_reference", "decode"])


def rounded(model, variant, spec=SMALL, **config):
    """A wrapped model that quantises nothing but its cache."""
    return wrappers.convert(wrap(model, variant, kv_cache=spec, **{**FLOAT, **config}))


def model():
    return tiny(head_dim=16)  # the factor on its keys is a power of two


def stepped(prefill, decode, ids, count, cache):
    """Tokens of generation over an eager cache."""
    logits = prefill(ids, past_key_values=cache, use_cache=True).logits[:, -1]
    found = []
    for _ in range(count):
        found.append(logits.argmax(-1))
        logits = decode(found[-1][:, None], past_key_values=cache, use_cache=True).logits[:, -1]
    return torch.stack(found, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_runtime_does_for_each_row_what_an_eager_cache_does(side):
    own = model()
    prefill, decode = rounded(own, "prefill"), rounded(own, "decode")
    ids, mask = tokens(3, 11), padding(3, 11, side)
    found = Runtime(prefill, decode, capacity=48).generate(ids, mask, max_new_tokens=25)
    for row, visible, answer in zip(ids, mask, found, strict=True):
        prompt = row[visible.bool()][None]
        for cache in (DynamicCache(), StaticCache(own.config, max_cache_len=48)):
            assert torch.equal(stepped(prefill, decode, prompt, 25, cache)[0], answer)
    exact = Runtime(own, capacity=48).generate(ids, mask, max_new_tokens=25)
    assert not torch.equal(found, exact)


@torch.no_grad()
@VARIANTS
def test_the_past_is_rounded_and_new_tokens_are_not(variant):
    own = model()
    wrapped = rounded(own, variant)
    ids, cache, exact = tokens(2, 20), DynamicCache(), DynamicCache()
    for given, past in ((own, exact), (wrapped, cache)):
        given(ids[:, :13], past_key_values=past)
    hand = DynamicCache()  # append-prefill of the float model over a past that is rounded here
    for i, layer in enumerate(exact.layers):
        keys = WindowedQuantizer(4, "tokens", 4, 3).fake_quantize(layer.keys)
        values = WindowedQuantizer(4, "channels", 4, 3).fake_quantize(layer.values)
        hand.update(keys, values, i)
    expected = own(ids[:, 13:], past_key_values=hand).logits
    found = wrapped(ids[:, 13:], past_key_values=cache).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    plain = own(ids[:, 13:], past_key_values=exact).logits
    assert (found - plain).abs().max() > 1e-2


@torch.no_grad()
@VARIANTS
def test_switched_off_nothing_changes(variant):
    ids, own = tokens(2, 20), model()
    for mode in (wrappers.Mode.NO_QUANT, wrappers.Mode.CALIBRATE):
        logits = []
        for spec in (None, SMALL):
            wrapped, cache = wrap(own, variant, kv_cache=spec, **FLOAT), DynamicCache()
            for _, part in wrappers.iter_wrappers(wrapped):
                part.mode = mode
            wrapped(ids[:, :13], past_key_values=cache)
            logits.append(wrapped(ids[:, 13:], past_key_values=cache).logits)
            assert cache_quantizers(wrapped) == {}
        assert torch.equal(*logits)
    decode = rounded(own, "decode", overrides={"*:cache": no_quantization()})
    found = Runtime(own, decode, capacity=40).generate(ids, max_new_tokens=15)
    same = Runtime(own, rounded(own, "decode", None), capacity=40)
    assert torch.equal(found, same.generate(ids, max_new_tokens=15))


def test_the_memory_that_a_runtime_keeps():
    own = model()
    bits = {name: KVCacheSpec(name, name, group=8, residual=0) for name in ("int8", "int4")}
    sizes = {}
    for name, spec in bits.items():
        decode = rounded(own, "decode", spec)
        prompts = Prompts.packed(tokens(2, 64))
        with torch.no_grad():
            _, slots = run_prefill(own, decode, prompts, 64, logits_to_keep=1)
        sizes[name], sizes["float"] = slots.packed(decode).nbytes, slots.nbytes
    states = 2 * 2 * 2 * 64  # layers, rows, heads, tokens
    assert sizes["float"] == 2 * states * 16 * 4
    # Of keys a scale and a minimum for 8 tokens of each channel, of values for 16 channels.
    assert sizes["int8"] == 2 * states * 16 + states * 16 // 8 * 4 + states * 4
    assert sizes["int8"] - sizes["int4"] == states * 16


def test_a_config_with_a_cache():
    config = PTQConfig(kv_cache=KVCacheSpec("int4", "int8", 16, 64))
    assert PTQConfig.from_json(config.to_json()) == config
    assert PTQConfig.from_json(PTQConfig().to_json()).kv_cache is None
    for wrong in ({"keys": "uint8"}, {"values": "int3"}, {"group": 0}, {"residual": -1}):
        with pytest.raises(ConfigError):
            KVCacheSpec(**wrong)
    with pytest.raises(ConfigError, match="kv_cache must be a KVCacheSpec"):
        PTQConfig(kv_cache="int8")
    wide = replace(config, overrides={"*.layers.0.*": {"dtype": "int16"}})
    points = wrappers.prepare(model(), wide).model.layers[0].self_attn.points
    assert (points["kv_key"].kind, points["kv_value"].kind) == ("int4", "int8")
    assert (points["softmax"].kind, points["kv_key"].role) == ("int16", "cache")
    rules = wrappers.overrides_for(model(), config, {"*.self_attn": "int16"})
    assert not any("kv_" in path for path in rules)


def compared(reference, candidate, **how):
    inputs = {"input_ids": tokens(1, 24)}
    sides = (tracer.Stepping(*pair, steps=2) for pair in (reference, candidate))
    return tracer.compare(*sides, inputs, **how)


@pytest.mark.slow
def test_isolation_ranks_the_points_of_the_cache():
    own = model()
    candidate = rounded(own, "prefill"), rounded(own, "decode")
    found = compared((own,), candidate, isolate="leaves").isolation
    assert found.modules[0].module.endswith("self_attn")
    assert {(point.pattern.rpartition(".")[2], point.kind) for point in found.points} == {
        ("kv_key", "int4 cache"), ("kv_value", "int4 cache"),
    }  # fmt: skip
    assert all("earlier tokens" in point.meaning for point in found.points)


class FirstScale(WindowedQuantizer):
    """Rounds all tokens with the scale of the first group."""

    def encode(self, x):
        codes, first = super().encode(x), super().encode(x[..., : self.group, :])
        return replace(codes, scale=first.scale.expand_as(codes.scale))


@pytest.mark.covers
@pytest.mark.parametrize("mistake", [
    lambda own: replace(own, along="channels"),
    lambda own: FirstScale(own.bits, own.along, own.group, own.residual),
    lambda own: replace(own, residual=own.residual + own.group),
], ids=["scale along the other axis", "stale scale", "one group too late"])  # fmt: skip
def test_a_mistake_in_the_cache_is_found_where_it_is(mistake):
    own = model()
    right = rounded(own, "prefill"), rounded(own, "decode")
    wrong = rounded(own, "prefill"), rounded(own, "decode")
    place = wrong[1].model.layers[1].self_attn
    place.points["kv_key"].quantizer = mistake(place.points["kv_key"].quantizer)
    verdict = compared(right, wrong).verdict
    assert not verdict.agrees
    assert verdict.origin.module == "decode.model.layers.1.self_attn"


def test_a_cache_beside_quantised_layers():
    own, ids = model(), tokens(4, 24)
    config = {"activation": affine("int16"), "weight": affine("uint8"), "kv_cache": SMALL}
    prefill, decode = wrap(own, "prefill", **config), wrap(own, "decode", **config)
    wrappers.calibrate_both(prefill, decode, [ids], steps=8, source="float")
    wrappers.convert(prefill), wrappers.convert(decode)
    state = decode.state_dict()
    again = wrap(own, "decode", **config)
    again.load_state_dict(state)
    wrappers.convert(again)
    runs = [Runtime(prefill, each, capacity=40) for each in (decode, again)]
    first, second = (run.generate(ids, max_new_tokens=12) for run in runs)
    assert torch.equal(first, second)


@torch.no_grad()
def test_the_graph_of_a_step_takes_the_past_as_the_runtime_keeps_it():
    own = model()
    plain, small = (wrappers.Step(rounded(own, "decode", spec)) for spec in (None, SMALL))
    given = small.example_inputs()
    assert all(map(torch.equal, small(*given), plain(*given)))
