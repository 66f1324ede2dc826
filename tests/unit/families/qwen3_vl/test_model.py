"""Qwen3-VL, whole: images, videos and text through the float, wrapped and quantised model."""

import copy
import inspect
import io
import itertools
import pickle

import pytest
import torch
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLModel,
    Qwen3VLTextRotaryEmbedding,
    Qwen3VLVisionRotaryEmbedding,
)

import tracer
import wrappers
from tests.builders.agreement import (
    IMPLEMENTATIONS,
    VARIANTS,
    assert_modules_agree,
    peir,
    record,
    redrawn,
)
from tests.unit.families.qwen3_vl.test_text import FACTOR, SIZES
from wrappers.core.module import QuantModule
from wrappers.core.point import Mode
from wrappers.core.registry import lookup
from wrappers.errors import ModelInputError, UnseenObserverError
from wrappers.families.qwen3_vl import model as whole

IMAGE, VIDEO, START, END = 92, 93, 94, 95  # tokens; others are text, 0 pads
PIXELS = 3 * 2 * 4 * 4  # of a patch


def tiny(implementation="eager", *, dtype=torch.float32, text=None, **changes):
    vision_sizes = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_heads": 4,
        "out_hidden_size": 32,
        "patch_size": 4,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 2],
    }
    config = Qwen3VLConfig(
        text_config={**SIZES, "pad_token_id": 0, **(text or {})},
        vision_config=vision_sizes,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        **changes,
    )
    model = redrawn(Qwen3VLForConditionalGeneration(config))
    model.set_attn_implementation(implementation)
    return model.to(dtype).eval()


def batch_of(*rows, side="left", seed=1):
    """Inputs for sequences made of numbers of text tokens and ("image" or "video", its grid)."""
    generator = torch.Generator().manual_seed(seed)
    grids = {"image": [], "video": []}
    sequences = []
    for row in rows:
        ids = []
        for part in row:
            if isinstance(part, int):
                ids += torch.randint(1, IMAGE, (part,), generator=generator).tolist()
                continue
            kind, (frames, height, width) = part
            grids[kind].append([frames, height, width])
            token = IMAGE if kind == "image" else VIDEO
            # A video is as many pictures, one after the other.
            ids += [START, *[token] * (height * width // 4), END] * frames
        sequences.append(ids)
    longest = max(map(len, sequences))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        start = longest - len(sequence) if side == "left" else 0
        ids[i, start : start + len(sequence)] = torch.tensor(sequence)
        mask[i, start : start + len(sequence)] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    for kind, names in {
        "image": ("pixel_values", "image_grid_thw"),
        "video": ("pixel_values_videos", "video_grid_thw"),
    }.items():
        if grids[kind]:
            grid = torch.tensor(grids[kind])
            patches = int(grid.prod(dim=-1).sum())
            pixels = torch.rand(patches, PIXELS, generator=generator) * 2 - 1
            inputs |= dict(zip(names, (pixels, grid), strict=True))
    if grids["image"] or grids["video"]:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return inputs


EXAMPLES = {
    "one image": lambda **how: batch_of([4, ("image", (1, 4, 6)), 3], **how),
    "images of two sizes": lambda **how: batch_of(
        [("image", (1, 4, 6)), 2, ("image", (1, 2, 2)), 2], **how
    ),
    "batch": lambda **how: batch_of(
        [3, ("image", (1, 4, 6)), 4],
        [2, ("image", (1, 2, 2)), ("image", (1, 6, 2)), 2],
        [9],
        **how,
    ),
    "video": lambda **how: batch_of([3, ("video", (2, 4, 4)), 4], **how),
    "both": lambda **how: batch_of(
        [3, ("image", (1, 4, 4)), 2, ("video", (2, 2, 4)), 3],
        [2, ("video", (1, 4, 2)), 5, ("image", (1, 2, 2))],
        **how,
    ),
    "text": lambda **how: batch_of([9], [6], **how),
}
ALL_EXAMPLES = pytest.mark.parametrize("example", EXAMPLES)


def wrap(model, variant, **config):
    return wrappers.prepare(model, wrappers.PTQConfig(variant=variant, **config))


def quantized(model, variant, batches, **config):
    wrapped = wrap(model, variant, **config)
    wrappers.calibrate(wrapped, batches)
    return wrappers.convert(wrapped)


def logits_of(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


class TestQuantisationOff:
    @VARIANTS
    @IMPLEMENTATIONS
    @ALL_EXAMPLES
    def test_every_module_equals_the_float_model(self, variant, implementation, example):
        model = tiny(implementation)
        assert_modules_agree(model, wrap(model, variant), 3e-6, **EXAMPLES[example]())

    @VARIANTS
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
    def test_a_change_in_the_image_is_seen_only_after_it(self, variant):
        inputs = EXAMPLES["one image"]()
        wrapped = wrap(tiny(), variant)
        before = logits_of(wrapped, inputs)
        inputs["pixel_values"] = inputs["pixel_values"].flip(0)
        after = logits_of(wrapped, inputs)
        first = int((inputs["input_ids"][0] == IMAGE).nonzero()[0])
        assert torch.equal(before[:, :first], after[:, :first])
        assert (before[:, first:] - after[:, first:]).abs().amax(-1).min() > 1e-2

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

    @VARIANTS
    @pytest.mark.parametrize(
        ("implementation", "how"),
        [
            ("eager", {}),
            ("sdpa", {}),
            ("eager", {"use_cache": False}),
            ("sdpa", {"cache_implementation": "static"}),
            ("eager", {"do_sample": True, "top_k": 10}),
            ("sdpa", {"num_beams": 3}),
        ],
        ids=lambda how: how if isinstance(how, str) else "-".join(how) or "greedy",
    )
    def test_generates_the_same_tokens(self, variant, implementation, how):
        model, inputs = tiny(implementation), EXAMPLES["batch"]()
        how = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, **how}
        generated = []
        for candidate in (model, wrap(model, variant)):
            torch.manual_seed(0)
            generated.append(candidate.generate(**inputs, **how))
        assert torch.equal(*generated)
        assert generated[0].shape == (3, inputs["input_ids"].shape[1] + 20)

    @VARIANTS
    @pytest.mark.parametrize("example", ["both", "video", "text"])
    def test_generates_the_same_tokens_after_other_inputs(self, variant, example):
        model, inputs = tiny(), EXAMPLES[example]()
        how = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
        generated = [c.generate(**inputs, **how) for c in (model, wrap(model, variant))]
        assert torch.equal(*generated)

    @VARIANTS
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

    @VARIANTS
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

    @VARIANTS
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
    @pytest.mark.parametrize(
        "options",
        [
            {"logits_to_keep": 2},
            {"logits_to_keep": torch.tensor([0, 3])},
            {"use_cache": False},
            {"return_dict": False, "use_cache": False},
            {"output_hidden_states": True, "output_attentions": True},
        ],
        ids="-".join,
    )
    def test_options(self, variant, options):
        model = tiny()
        inputs = EXAMPLES["both"]() | options
        assert_modules_agree(model, wrap(model, variant), 5e-6, **inputs)

    @VARIANTS
    def test_recorded_outputs_are_all_there(self, variant):
        options = {"output_hidden_states": True, "output_attentions": True}
        with torch.no_grad():
            output = wrap(tiny(), variant)(**EXAMPLES["one image"](), **options)
        assert len(output.hidden_states) == 4
        assert len(output.attentions) == 3
        length = output.logits.shape[1]
        assert all(weights.shape == (1, 4, length, length) for weights in output.attentions)

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

    @VARIANTS
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies_compute_the_same(self, variant, copied):
        inputs = EXAMPLES["one image"]()
        wrapped = wrap(tiny(), variant)
        unquantised = copied(wrapped)
        assert torch.equal(logits_of(unquantised, inputs), logits_of(wrapped, inputs))
        wrappers.calibrate(wrapped, [inputs])
        wrappers.convert(wrapped)
        expected = logits_of(wrapped, inputs)
        assert torch.equal(logits_of(copied(wrapped), inputs), expected)
        assert not torch.equal(logits_of(unquantised, inputs), expected)

    @VARIANTS
    def test_a_state_saved_and_loaded(self, variant):
        inputs = EXAMPLES["both"]()
        saved = quantized(tiny(), variant, [inputs])
        file = io.BytesIO()
        torch.save(saved.state_dict(), file)
        file.seek(0)
        other = redrawn(tiny(), seed=9)
        loaded = wrap(other, variant)
        assert peir(logits_of(tiny(), inputs), logits_of(loaded, inputs)) > 0.1
        loaded.load_state_dict(torch.load(file))
        wrappers.convert(loaded)
        assert torch.equal(logits_of(loaded, inputs), logits_of(saved, inputs))


def features_of(model, inputs, kind):
    """What the vision model makes of the images or videos."""
    pixels = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
    encode = getattr(model.model, f"get_{kind}_features")
    with torch.no_grad():
        return encode(inputs[pixels], inputs[f"{kind}_grid_thw"], return_dict=True)


class TestStructure:
    @VARIANTS
    def test_names_are_kept_and_parameters_shared_but_for_the_folded_norms(self, variant):
        model, inputs = tiny(), EXAMPLES["both"]()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        before = logits_of(model, inputs)
        wrapped = quantized(model, variant, [inputs])
        logits_of(wrapped, inputs)
        assert [n for n, _ in wrapped.named_modules()] == [n for n, _ in model.named_modules()]
        may_overwrite = [
            name
            for (name, p), (_, q) in zip(
                model.named_parameters(), wrapped.named_parameters(), strict=True
            )
            if p is not q
        ]
        norms = [f"model.language_model.layers.{i}.self_attn.k_norm.weight" for i in range(3)]
        assert may_overwrite == (norms if variant == "prefill" else [])
        assert all(torch.equal(p, state[name]) for name, p in model.state_dict().items())
        assert torch.equal(logits_of(model, inputs), before)

    @VARIANTS
    def test_only_rotary_embeddings_and_containers_stay_float(self, variant):
        wrapped = wrap(tiny(), variant)
        unwrapped = {type(m) for m in wrapped.modules() if not isinstance(m, QuantModule)}
        rotary = {Qwen3VLTextRotaryEmbedding, Qwen3VLVisionRotaryEmbedding}
        assert unwrapped == {nn.ModuleList, *rotary}

    @VARIANTS
    def test_wrappers_are_registered_and_are_instances_of_the_float_classes(self, variant):
        wrapped = wrap(tiny(), variant)
        head = whole.QuantQwen3VLForConditionalGeneration
        assert type(wrapped) is head is lookup(Qwen3VLForConditionalGeneration, variant)
        assert isinstance(wrapped, Qwen3VLForConditionalGeneration)
        assert type(wrapped.model) is whole.QuantQwen3VLModel is lookup(Qwen3VLModel, variant)
        assert isinstance(wrapped.model, Qwen3VLModel)

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
            "model.mm_fusion": "int16",
            "model.language_model.deepstack_sum_0": "uint4",
            "model.visual.blocks.1.mlp.linear_fc1.weight": "int8",
            "lm_head.act_out": None,
        }


class TestErrors:
    @pytest.mark.parametrize("given", [{}, {"input_ids", "inputs_embeds"}])
    def test_ids_or_embeddings_exactly_one(self, given):
        values = {"input_ids": torch.tensor([[1, 2]]), "inputs_embeds": torch.zeros(1, 2, 32)}
        with pytest.raises(ModelInputError, match="exactly one"):
            wrap(tiny(), "prefill")(**{name: values[name] for name in given})

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
    @IMPLEMENTATIONS
    def test_calibrating_changes_no_bit(self, variant, implementation):
        wrapped, inputs = wrap(tiny(implementation), variant), EXAMPLES["both"]()
        _, expected = record(wrapped, **inputs)
        wrappers.calibrate(wrapped, [inputs])
        _, found = record(wrapped, **inputs)
        for (name, _, before), (_, _, after) in zip(expected, found, strict=True):
            for a, b in zip(before, after, strict=True):
                assert not isinstance(a, torch.Tensor) or torch.equal(a, b), name

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
        ("dtype", "expected"), [("int16", 2.7e-4), ("uint8", 0.0425), ("int4", 0.514)]
    )
    def test_the_error_is_of_the_order_of_published_figures(self, variant, dtype, expected):
        loaded = tracer.models.load("tiny-qwen3-vl")
        spec = wrappers.affine(dtype)
        candidate = quantized(loaded.model, variant, [loaded.inputs], activation=spec, weight=spec)
        found = peir(logits_of(loaded.model, loaded.inputs), logits_of(candidate, loaded.inputs))
        assert expected / 4 < found < expected * 4

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

    @VARIANTS
    def test_half_precision(self, variant):
        model, inputs = tiny(dtype=torch.bfloat16), EXAMPLES["both"]()
        logits = logits_of(quantized(model, variant, [inputs]), inputs)
        assert logits.dtype == torch.bfloat16
        exact = logits_of(tiny(), inputs)
        full = logits_of(quantized(tiny(), variant, [inputs]), inputs)
        assert peir(exact, logits) < 2 * peir(exact, full)


class TestTracer:
    @VARIANTS
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize(
        "how",
        [{}, {"batch": 3, "padding": "left"}, {"batch": 3, "padding": "right"}],
        ids=["one image", "left", "right"],
    )
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
