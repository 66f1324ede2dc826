"""Llama: float against wrapped, calibrated, quantised and exported, for both prefill variants."""

import pytest
import torch
from torch import nn

import wrappers
from tests.builders.agreement import (
    EACH_VARIANT,
    IMPLEMENTATIONS,
    VARIANTS,
    assert_modules_agree,
    padding,
    peir,
)
from tests.builders.llama import (
    ATTENTION_POINTS,
    MODELS,
    calibrated,
    real_model,
    real_text,
    specs,
    tiny,
    tokens,
    wrap,
)


class TestQuantisationOff:
    @VARIANTS
    @pytest.mark.parametrize(
        "changes",
        [
            {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True},
            {"num_key_value_heads": 4}, {"num_key_value_heads": 1}, {"head_dim": 16},
            {"hidden_act": "gelu"},
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            {
                "rope_parameters": {
                    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
                },
            },
        ],
        ids=lambda changes: str(changes.get("rope_parameters", changes)).split(",")[0],
    )  # fmt: skip
    def test_configurations(self, variant, changes):
        model = tiny(**changes)
        if changes.get("attention_bias"):
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    nn.init.normal_(parameter)
        assert_modules_agree(model, wrap(model, variant), 2e-6, input_ids=tokens(2, 40))

    @VARIANTS
    @IMPLEMENTATIONS
    def test_padding_on_the_left_is_finite_in_float64(self, variant, implementation):
        wrapped = wrap(tiny(implementation, dtype=torch.float64), variant)
        with torch.no_grad():
            logits = wrapped(tokens(3, 12), attention_mask=padding(3, 12, "left")).logits
        assert torch.isfinite(logits).all()

    @VARIANTS
    def test_autocast_is_as_accurate_as_the_float_model_under_it(self, variant):
        model, ids = tiny(), tokens(2, 12)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            expected, found = model(ids).logits, wrap(model, variant)(ids).logits
        assert found.dtype == expected.dtype == torch.bfloat16
        with torch.no_grad():
            exact = model(ids).logits
        assert peir(exact, found) < 2 * peir(exact, expected)


class TestAsTheFloatModel:
    """What users do with a LlamaForCausalLM."""

    @EACH_VARIANT
    @IMPLEMENTATIONS
    @pytest.mark.parametrize("how", [
        {"do_sample": False}, {"do_sample": False, "use_cache": False},
        {"do_sample": False, "cache_implementation": "static"},
        {"do_sample": True, "top_k": 10}, {"do_sample": False, "num_beams": 3},
    ], ids=lambda how: "-".join(how))  # fmt: skip
    def test_generates_the_same_tokens(self, variant, implementation, how):
        model = tiny(implementation)
        inputs = {"input_ids": tokens(3, 8), "attention_mask": padding(3, 8, "left")}
        how = {"max_new_tokens": 10, "pad_token_id": 0, "eos_token_id": None, **how}
        generated = []
        for candidate in (model, wrap(model, variant)):
            torch.manual_seed(0)
            generated.append(candidate.generate(**inputs, **how))
        assert torch.equal(*generated)

    @VARIANTS
    @pytest.mark.parametrize(
        "inputs",
        [
            {"position_ids": torch.tensor([[5, 6, 7, 8, 9, 10]])},
            {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 0]]), "use_cache": False},
            {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 0]]), "use_cache": True},
            {"logits_to_keep": 2},
            {"logits_to_keep": torch.tensor([0, 3])},
        ],
        ids=["offset", "packed", "packed-with-cache", "last-two", "chosen"],
    )
    def test_optional_arguments(self, variant, inputs):
        model = tiny()
        ids = tokens(2, 6)
        assert_modules_agree(model, wrap(model, variant), 2e-6, input_ids=ids, **inputs)

    @VARIANTS
    def test_a_loss(self, variant):
        model, ids = tiny(), tokens(2, 6)
        with torch.no_grad():
            expected, found = (m(ids, labels=ids).loss for m in (model, wrap(model, variant)))
        torch.testing.assert_close(found, expected)

    @VARIANTS
    def test_more_bits_give_less_error(self, variant):
        model, ids = tiny(), tokens(2, 24)
        with torch.no_grad():
            expected = model(ids).logits
            errors = []
            for activation, weight in (("int16", "uint8"), ("uint8", "uint8"), ("uint8", "uint4")):
                wrapped = calibrated(model, variant, [ids], **specs(activation, weight))
                errors.append(peir(expected, wrappers.convert(wrapped)(ids).logits))
        assert errors == sorted(errors)
        assert 1e-5 < errors[0] < 0.02
        assert errors[1] < 0.2

    @VARIANTS
    def test_a_quantised_model_generates(self, variant):
        model = tiny()
        quantized = calibrated(model, variant, [tokens(2, 16)], activation=wrappers.affine("int16"))
        wrappers.convert(quantized)
        how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        cached = quantized.generate(tokens(2, 5), **how)
        uncached = quantized.generate(tokens(2, 5), use_cache=False, **how)
        assert cached.shape == (2, 11)
        assert torch.equal(cached, uncached)


class TestStructure:
    @VARIANTS
    def test_points_are_those_of_the_facts(self, variant):
        wrapped = wrap(tiny(), variant)
        layer = wrapped.model.layers[1]
        extra = {"logits_raw", "scale"} if variant == "prefill_reference" else set()
        assert set(layer.self_attn.points) == ATTENTION_POINTS | extra
        assert set(layer.mlp.points) == {"act_in", "mul"}
        assert set(layer.points) == {
            "attn_mask", "cos", "sin", "attn_residual_out", "mlp_residual_out",
        }  # fmt: skip
        assert set(wrapped.model.points) == {"causal_mask", "cos", "sin"}
        assert not wrapped.points

    @VARIANTS
    def test_masks_leave_nothing_in_the_state(self, variant):
        model = tiny()
        wrapped = wrap(model, variant)
        with torch.no_grad():
            wrapped(tokens(1, 20))
        tensors = {name for name in wrapped.state_dict() if not name.endswith("_extra_state")}
        assert tensors == set(model.state_dict())
        templates = [m.masks._template for m in wrapped.modules() if hasattr(m, "masks")]
        assert [t is not None for t in templates] == [True] + [False] * (len(templates) - 1)


@pytest.mark.slow
class TestRealModels:
    @MODELS
    @VARIANTS
    @IMPLEMENTATIONS
    def test_quantisation_off_agrees(self, shared_data, name, variant, implementation):
        model = real_model(shared_data, name, implementation)
        wrapped = wrap(model, variant)
        longest = model.config.max_position_embeddings
        text = real_text(shared_data, name, longest)
        for length in (1, 33, longest):
            assert_modules_agree(model, wrapped, 1e-5, input_ids=text[:, :length])
        for side in ("left", "right"):
            inputs = {"input_ids": text[:, :96].view(3, 32), "attention_mask": padding(3, 32, side)}
            assert_modules_agree(model, wrapped, 1e-5, **inputs)

    @MODELS
    @VARIANTS
    def test_generates_the_same_text(self, shared_data, name, variant):
        model = real_model(shared_data, name, "sdpa")
        text = real_text(shared_data, name, 24)
        how = {"max_length": 120, "do_sample": False, "pad_token_id": 0}
        expected = model.generate(text, **how)
        assert torch.equal(wrap(model, variant).generate(text, **how), expected)

    @MODELS
    @VARIANTS
    def test_quantised(self, shared_data, name, variant):
        model = real_model(shared_data, name, "sdpa")
        text = real_text(shared_data, name, 256)
        with torch.no_grad():
            reference = model(text, labels=text)
            errors, losses = [], []
            for activation, weight in (("int16", "uint8"), ("uint8", "uint8")):
                wrapped = calibrated(model, variant, [text], **specs(activation, weight))
                output = wrappers.convert(wrapped)(text, labels=text)
                errors.append(peir(reference.logits, output.logits))
                losses.append(float(output.loss - reference.loss))
        assert errors[0] < errors[1] < 0.5
        assert abs(losses[0]) < 0.02
