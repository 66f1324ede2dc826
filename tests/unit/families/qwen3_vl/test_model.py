"""Qwen3-VL, whole: images, videos and text through the float, wrapped and quantised model."""

import copy
import inspect
import itertools

import pytest
import torch
from torch import nn

import tracer
import wrappers
from tests.builders.agreement import (
    EACH_VARIANT,
    IMPLEMENTATIONS,
    VARIANTS,
    assert_modules_agree,
    peir,
)
from tests.builders.qwen3_vl import FACTOR
from tests.builders.qwen3_vl_whole import EXAMPLES, IMAGE, VIDEO, published, tiny, wrap
from wrappers.core.point import Mode
from wrappers.errors import ModelInputError, UnseenObserverError

ALL_EXAMPLES = pytest.mark.parametrize("example", EXAMPLES)


def quantized(model, variant, batches, **config):
    wrapped = wrap(model, variant, **config)
    wrappers.calibrate(wrapped, batches)
    return wrappers.convert(wrapped)


def logits_of(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


class TestQuantisationOff:
    @EACH_VARIANT
    @IMPLEMENTATIONS
    @ALL_EXAMPLES
    def test_every_module_equals_the_float_model(self, variant, implementation, example):
        model = tiny(implementation)
        assert_modules_agree(model, wrap(model, variant), 3e-6, **EXAMPLES[example]())

    @EACH_VARIANT
    @pytest.mark.parametrize("example", ["batch", "both", "text"])
    def test_padding_on_the_right(self, variant, example):
        model = tiny("sdpa")
        inputs = EXAMPLES[example](side="right")
        assert_modules_agree(model, wrap(model, variant), 3e-6, **inputs)

    @VARIANTS
    @IMPLEMENTATIONS
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, variant, implementation, dtype):
        model, inputs = tiny(implementation, dtype=dtype), EXAMPLES["both"]()
        limit = 8 * torch.finfo(dtype).eps
        found = assert_modules_agree(model, wrap(model, variant), limit, **inputs)
        assert found.logits.dtype == dtype

    @VARIANTS
    def test_more_deepstack_features_than_text_layers(self, variant):
        model = tiny(text={"num_hidden_layers": 1})
        assert_modules_agree(model, wrap(model, variant), 3e-6, **EXAMPLES["one image"]())

    @VARIANTS
    def test_tied_embeddings(self, variant):
        model = tiny(tie_word_embeddings=True)
        wrapped = wrap(model, variant)
        assert wrapped.lm_head.weight is wrapped.get_input_embeddings().weight
        assert_modules_agree(model, wrapped, 3e-6, **EXAMPLES["one image"]())

    @VARIANTS
    def test_without_the_head(self, variant):
        model = tiny().model
        assert_modules_agree(model, wrap(model, variant), 3e-6, **EXAMPLES["both"]())

    @VARIANTS
    def test_gradients_equal_those_of_the_float_model(self, variant):
        model, inputs = tiny("sdpa"), EXAMPLES["both"](side="right")
        inputs["labels"] = inputs["input_ids"]
        pixels = {name: inputs[name].requires_grad_() for name in inputs if "pixel" in name}

        def gradients(candidate):
            leaves = dict(candidate.named_parameters()) | pixels
            for leaf in leaves.values():
                leaf.grad = None
            candidate(**inputs).loss.backward()
            return {name: leaf.grad.clone() for name, leaf in leaves.items()}

        expected, found = gradients(model), gradients(wrap(model, variant))
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            if variant == "prefill" and "k_norm" in name:
                gradient = gradient * FACTOR  # d loss / d W of what was multiplied into W
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)
        assert all(leaf.grad.abs().max() > 0 for leaf in pixels.values())


class TestAsTheFloatModel:
    """What users do with a Qwen3VLForConditionalGeneration."""

    @EACH_VARIANT
    @pytest.mark.parametrize(
        ("implementation", "how"),
        [
            ("eager", {}), ("sdpa", {}), ("eager", {"use_cache": False}),
            ("sdpa", {"cache_implementation": "static"}),
            ("eager", {"do_sample": True, "top_k": 10}), ("sdpa", {"num_beams": 3}),
        ],
        ids=lambda how: how if isinstance(how, str) else "-".join(how) or "greedy",
    )  # fmt: skip
    def test_generates_the_same_tokens(self, variant, implementation, how):
        model, inputs = tiny(implementation), EXAMPLES["batch"]()
        how = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, **how}
        generated = []
        for candidate in (model, wrap(model, variant)):
            torch.manual_seed(0)
            generated.append(candidate.generate(**inputs, **how))
        assert torch.equal(*generated)
        assert generated[0].shape == (3, inputs["input_ids"].shape[1] + 20)

    @EACH_VARIANT
    @pytest.mark.parametrize("example", ["both", "video", "text"])
    def test_generates_the_same_tokens_after_other_inputs(self, variant, example):
        model, inputs = tiny(), EXAMPLES[example]()
        how = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
        generated = [c.generate(**inputs, **how) for c in (model, wrap(model, variant))]
        assert torch.equal(*generated)

    @EACH_VARIANT
    def test_generation_goes_on_from_a_cache(self, variant):
        model, inputs = tiny(), EXAMPLES["batch"]()
        how = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
        more = torch.randint(1, IMAGE, (3, 3), generator=torch.Generator().manual_seed(5))
        answers = []
        for candidate in (model, wrap(model, variant)):
            first = candidate.generate(**inputs, max_new_tokens=4, **how)
            ids = torch.cat((first.sequences, more), dim=1)
            new = ids.shape[1] - inputs["input_ids"].shape[1]
            mask = nn.functional.pad(inputs["attention_mask"], (0, new), value=1)
            second = candidate.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=first.past_key_values,
                max_new_tokens=6,
                **how,
            )
            answers.append(second.sequences)
        assert torch.equal(*answers)

    @VARIANTS
    def test_a_quantised_model_generates_the_same_with_and_without_a_cache(self, variant):
        inputs = EXAMPLES["one image"]()
        candidate = quantized(tiny(), variant, [inputs], activation=wrappers.affine("int16"))
        how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        cached = candidate.generate(**inputs, **how)
        assert torch.equal(cached, candidate.generate(**inputs, use_cache=False, **how))

    @EACH_VARIANT
    @pytest.mark.parametrize("steps", [(1,) * 6, (4, 2)])
    def test_steps_after_an_image_equal_one_forward(self, variant, steps):
        model, inputs = tiny(), EXAMPLES["batch"]()
        wrapped = wrap(model, variant)
        more = torch.randint(1, IMAGE, (3, 6), generator=torch.Generator().manual_seed(5))
        length = inputs["input_ids"].shape[1]
        mask = nn.functional.pad(inputs["attention_mask"], (0, 6), value=1)
        extended = inputs | {
            "input_ids": torch.cat((inputs["input_ids"], more), dim=1),
            "attention_mask": mask,
            "mm_token_type_ids": nn.functional.pad(inputs["mm_token_type_ids"], (0, 6)),
        }
        expected = logits_of(model, extended)[:, length:]
        with torch.no_grad():
            cache, found = wrapped(**inputs).past_key_values, []
            for end in itertools.accumulate(steps):
                start = cache.get_seq_length()
                ids = extended["input_ids"][:, start : length + end]
                positions = model.model.get_rope_index(
                    **{k: v for k, v in extended.items() if "pixel" not in k}
                )[0][:, :, start : length + end]
                output = wrapped(
                    ids,
                    attention_mask=mask[:, : length + end],
                    position_ids=positions,
                    past_key_values=cache,
                )
                cache = output.past_key_values
                found.append(output.logits)
        assert peir(expected, torch.cat(found, dim=1)) < 3e-6

    @EACH_VARIANT
    def test_a_cache_and_its_offset_pass_from_the_float_model(self, variant):
        model, inputs = tiny(), EXAMPLES["one image"]()
        with torch.no_grad():
            cache = model(**inputs).past_key_values
            wrapped = wrap(model, variant)
            assert wrapped.model.rope_deltas is model.model.rope_deltas
            assert wrapped.model.rope_deltas.abs().min() > 0
            step = {"input_ids": torch.tensor([[7, 8]]), "past_key_values": cache}
            expected = model(**copy.deepcopy(step)).logits
            found = wrapped(**step).logits
        assert peir(expected, found) < 3e-6

    @VARIANTS
    def test_offsets_stay_with_the_model_that_found_them(self, variant):
        model = tiny()
        wrapped = wrap(model, variant)
        logits_of(wrapped, EXAMPLES["one image"]())
        assert model.model.rope_deltas is None
        assert wrapped.model.rope_deltas is not None

    @VARIANTS
    @pytest.mark.parametrize("options", [
        {"logits_to_keep": 2}, {"logits_to_keep": torch.tensor([0, 3])}, {"use_cache": False},
        {"return_dict": False, "use_cache": False},
        {"output_hidden_states": True, "output_attentions": True},
    ], ids="-".join)  # fmt: skip
    def test_options(self, variant, options):
        model = tiny()
        inputs = EXAMPLES["both"]() | options
        assert_modules_agree(model, wrap(model, variant), 5e-6, **inputs)

    @VARIANTS
    @pytest.mark.parametrize("example", ["batch", "both"])
    def test_loss(self, variant, example):
        model, inputs = tiny(), EXAMPLES[example]()
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        with torch.no_grad():
            expected = model(**inputs, labels=labels).loss
            found = wrap(model, variant)(**inputs, labels=labels).loss
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)

    @VARIANTS
    @pytest.mark.parametrize("example", ["batch", "video", "text"])
    def test_embeddings_in_place_of_ids(self, variant, example):
        model, inputs = tiny(), EXAMPLES[example]()
        inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
        assert_modules_agree(model, wrap(model, variant), 3e-6, **inputs)

    @VARIANTS
    @pytest.mark.parametrize("rows", [3, 4])
    def test_positions_given(self, variant, rows):
        model, inputs = tiny(), EXAMPLES["batch"]()
        known = {name: value for name, value in inputs.items() if "pixel" not in name}
        positions, _ = model.model.get_rope_index(**known)
        if rows == 4:
            positions = torch.cat((positions[:1], positions))
        inputs["position_ids"] = positions + 2
        assert_modules_agree(model, wrap(model, variant), 3e-6, **inputs)

    @VARIANTS
    @pytest.mark.parametrize("example", ["batch", "both"])
    def test_features_in_place_of_pixels(self, variant, example):
        model, inputs = tiny(), EXAMPLES[example]()
        wrapped = wrap(model, variant)
        expected = logits_of(model, inputs)
        features = {"image": features_of(model, inputs, "image")}
        if example == "both":
            features["video"] = features_of(model, inputs, "video")
        without = {name: value for name, value in inputs.items() if "pixel" not in name}
        given = without | {"mm_encoder_outputs": features}
        assert peir(expected, logits_of(wrapped, given)) < 3e-6
        assert set(features) == {"image", "video"} if example == "both" else {"image"}
        if "mm_encoder_outputs" in inspect.signature(model.forward).parameters:
            assert_modules_agree(model, wrapped, 3e-6, **given)

    def test_features_of_one_kind_and_pixels_of_the_other(self):
        model, inputs = tiny(), EXAMPLES["both"]()
        expected = logits_of(model, inputs)
        features = {"image": features_of(model, inputs, "image"), "video": None}
        del inputs["pixel_values"]
        found = logits_of(wrap(model, "prefill"), inputs | {"mm_encoder_outputs": features})
        assert peir(expected, found) < 3e-6


def features_of(model, inputs, kind):
    """What the vision model makes of the images or videos."""
    pixels = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
    encode = getattr(model.model, f"get_{kind}_features")
    with torch.no_grad():
        return encode(inputs[pixels], inputs[f"{kind}_grid_thw"], return_dict=True)


class TestStructure:
    @VARIANTS
    def test_points(self, variant):
        wrapped = wrap(tiny(), variant)
        assert not wrapped.points
        assert list(wrapped.model.points) == ["mm_fusion"]
        text = wrapped.model.language_model
        assert sum(name.startswith("deepstack_visual_embeds_") for name in text.points) == 2
        names = [f"{module}.{point}" for module, point, _ in wrappers.iter_points(wrapped)]
        assert len(names) == len(set(names))

    def test_the_number_of_deepstack_layers_can_be_told(self):
        wrapped = wrap(tiny(), "prefill", model_args={"deepstack_layers": 3})
        assert wrapped.model.language_model.deepstack_layers == 3
        wrapped = wrap(tiny(), "prefill", model_args={"deepstack_layers": 1})
        with pytest.raises(
            ModelInputError, match="for 2 layers, and the text model is wrapped for 1"
        ):
            wrapped(**EXAMPLES["one image"]())

    @VARIANTS
    def test_overrides_reach_every_part(self, variant):
        overrides = {
            "model.mm_fusion": wrappers.affine("int16"),
            "model.language_model.deepstack_sum_0": {"dtype": "uint4"},
            "model.visual.blocks.1.mlp.linear_fc1.weight": wrappers.affine("int8"),
            "lm_head.act_out": wrappers.no_quantization(),
        }
        wrapped = quantized(tiny(), variant, [EXAMPLES["one image"]()], overrides=overrides)
        dtypes = {
            f"{module}.{name}": None if point.qparams is None else str(point.qparams.dtype)
            for module, name, point in wrappers.iter_points(wrapped)
        }
        assert {name: dtype for name, dtype in dtypes.items() if dtype != "uint8"} == {
            "model.mm_fusion": "int16", "model.language_model.deepstack_sum_0": "uint4",
            "model.visual.blocks.1.mlp.linear_fc1.weight": "int8", "lm_head.act_out": None,
        }  # fmt: skip


class TestErrors:
    @pytest.mark.parametrize("kind", ["image", "video"])
    def test_pixels_and_features_of_one_kind(self, kind):
        model, inputs = tiny(), EXAMPLES["both"]()
        inputs["mm_encoder_outputs"] = {kind: features_of(model, inputs, kind)}
        with pytest.raises(ModelInputError, match=f"both pixels and mm_encoder_outputs of {kind}"):
            wrap(model, "prefill")(**inputs)

    @pytest.mark.parametrize(("kind", "token"), [("Image", IMAGE), ("Video", VIDEO)])
    def test_another_number_of_tokens_than_features(self, kind, token):
        inputs = EXAMPLES["both"]()
        where = (inputs["input_ids"] == token).nonzero()[0]
        inputs["input_ids"][tuple(where)] = 1
        inputs["mm_token_type_ids"][tuple(where)] = 0
        # transformers' own error, as in the float model.
        for candidate in (tiny(), wrap(tiny(), "prefill")):
            with pytest.raises(ValueError, match=f"{kind} features and {kind.lower()} tokens"):
                candidate(**inputs)


class TestCalibration:
    @VARIANTS
    @pytest.mark.parametrize("example", ["one image", "video"])
    def test_one_batch_reaches_every_point(self, variant, example):
        wrapped = quantized(tiny(), variant, [EXAMPLES[example]()])
        assert all(point.qparams is not None for _, _, point in wrappers.iter_points(wrapped))

    def test_fused_embeddings_are_observed_where_there_are_images(self):
        wrapped = wrap(tiny(), "prefill")
        fusion = wrapped.model.points["mm_fusion"].observer
        wrappers.calibrate(wrapped, [EXAMPLES["text"]()])
        assert fusion.seen == 0
        inputs = EXAMPLES["both"]()
        wrappers.calibrate(wrapped, [EXAMPLES["text"](), inputs])
        assert fusion.seen == inputs["input_ids"].numel() * 32

    @VARIANTS
    def test_text_alone_does_not_calibrate_the_whole_model(self, variant):
        wrapped = wrap(tiny(), variant)
        wrappers.calibrate(wrapped, [EXAMPLES["text"]()])
        unseen = {
            f"{name}.{point}"
            for name, module in wrappers.iter_wrappers(wrapped)
            for point in module.unfreezable_points()
        }
        elsewhere = {name for name in unseen if not name.startswith("model.visual.")}
        text = "model.language_model"
        assert elsewhere == {
            "model.mm_fusion",
            *(f"{text}.deepstack_{name}_{i}" for name in ("visual_embeds", "sum") for i in (0, 1)),
        }
        message = rf"{len(unseen)} quantization points saw no data.*model\.mm_fusion, model\.visual"
        with pytest.raises(UnseenObserverError, match=message):
            wrappers.convert(wrapped)
        assert all(m.mode is Mode.CALIBRATE for _, m in wrappers.iter_wrappers(wrapped))


class TestQuantisationOn:
    @VARIANTS
    @pytest.mark.parametrize(
        ("dtype", "expected"), [("int16", 2.7e-4), ("uint8", 0.0425), ("int4", 0.496)]
    )
    def test_the_error_is_that_of_published_figures(self, variant, dtype, expected):
        model, inputs = published()
        spec = wrappers.affine(dtype)
        candidate = quantized(model, variant, [inputs], activation=spec, weight=spec)
        found = peir(logits_of(model, inputs), logits_of(candidate, inputs))
        assert expected / 1.5 < found < expected * 1.5

    def test_the_vision_points_are_switched_off_in_one_line(self):
        wrapped = wrap(tiny(), "prefill", overrides={"model.visual.*": wrappers.no_quantization()})
        wrappers.calibrate(wrapped, [EXAMPLES["one image"]()])
        quantised = {
            name
            for name, _, point in wrappers.iter_points(wrappers.convert(wrapped))
            if point.qparams is not None
        }
        assert quantised and not any(name.startswith("model.visual") for name in quantised)

    @VARIANTS
    def test_its_own_embeddings_in_place_of_ids(self, variant):
        inputs = EXAMPLES["batch"]()
        candidate = quantized(tiny(), variant, [inputs])
        known = {name: value for name, value in inputs.items() if "pixel" not in name}
        inputs["position_ids"], _ = candidate.model.get_rope_index(**known)
        expected = logits_of(candidate, inputs)
        with torch.no_grad():
            embeds = candidate.get_input_embeddings()(inputs.pop("input_ids"))
        assert torch.equal(logits_of(candidate, inputs | {"inputs_embeds": embeds}), expected)


class TestTracer:
    @VARIANTS
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("how", [
        {}, {"batch": 3, "padding": "left"}, {"batch": 3, "padding": "right"},
    ], ids=["one image", "left", "right"])  # fmt: skip
    def test_the_wrapped_built_in_model_agrees(self, variant, dtype, how):
        loaded = tracer.models.load("tiny-qwen3-vl", dtype=dtype, **how)
        candidate = tracer.models.candidate(loaded, "wrapped", variant=variant)
        comparison = tracer.compare(loaded.model, candidate, loaded.inputs)
        assert comparison.verdict.agrees
        assert all(row.agrees for row in comparison.rows)
        if dtype == "float32":
            assert max(row.peir or 0.0 for row in comparison.rows) <= 1e-5
        coverage = comparison.coverage
        assert list(coverage.paired_modules) == [n for n, _ in loaded.model.named_modules()]
        assert not coverage.candidate_only and not coverage.unmatched_calls
        assert not comparison.form_differences
