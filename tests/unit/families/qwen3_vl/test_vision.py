"""Qwen3-VL, vision: float against wrapped, calibrated, quantised and exported, in both variants."""

import itertools

import pytest
import torch
from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionAttention,
    Qwen3VLVisionModel,
)

import tracer
import wrappers
from tests.builders.agreement import IMPLEMENTATIONS, VARIANTS, peir, with_checkpointing
from tests.builders.in_float64 import fake_quantize_64, linear_64
from tests.builders.llama import ATTENTION_POINTS, specs
from tests.builders.qwen3_vl_vision import (
    GRIDS,
    HIDDEN,
    MIXED,
    ONE,
    SEVERAL,
    VIDEO,
    assert_a_few_steps_apart,
    assert_outputs_agree,
    assert_outputs_equal,
    attention_inputs,
    calibrated,
    exported,
    inputs,
    operators_of,
    patches_of,
    pixels,
    run,
    tensors_of,
    tiny,
    wrap,
)
from tracer.models.loading import load
from wrappers.errors import ConfigError, ModelInputError, WrapError
from wrappers.families.qwen3_vl.vision import LinearPatchProjection, QuantQwen3VLVisionModel
from wrappers.families.qwen3_vl.vision_attention import QuantQwen3VLVisionAttentionPrefill
from wrappers.layers.convolutions import QuantConv3d


class TestQuantisationOff:
    @VARIANTS
    @pytest.mark.parametrize(("implementation", "grids"), [
        ("eager", ONE), ("sdpa", SEVERAL), ("eager", VIDEO), ("sdpa", MIXED),
    ], ids=["one", "several", "video", "mixed"])  # fmt: skip
    def test_every_module_is_paired_and_equals_the_float_model(
        self, variant, implementation, grids
    ):
        model = tiny(implementation)
        wrapped = wrap(model, variant)
        assert_outputs_agree(run(model, **inputs(grids)), run(wrapped, **inputs(grids)), 2e-6)
        comparison = tracer.compare(model, wrapped, inputs(grids), tolerance=3e-6)
        assert comparison.verdict.agrees
        assert all(row.agrees for row in comparison.rows)
        assert not comparison.form_differences
        coverage = comparison.coverage
        assert list(coverage.paired_modules) == [name for name, _ in model.named_modules()]
        assert not coverage.candidate_only and not coverage.unmatched_calls

    @VARIANTS
    @GRIDS
    def test_fixed_grids_need_no_argument(self, variant, grids):
        model = tiny()
        wrapped = wrap(model, variant, fixed=grids)
        expected = run(wrap(model, variant), **inputs(grids))
        assert_outputs_equal(expected, run(wrapped, pixels(grids)))
        assert_outputs_equal(expected, run(wrapped, **inputs(grids)))

    @VARIANTS
    @pytest.mark.parametrize(
        ("implementation", "dtype"),
        [("eager", torch.float64), ("sdpa", torch.bfloat16), ("eager", torch.float16)],
    )
    def test_dtypes(self, variant, implementation, dtype):
        model = tiny(implementation, dtype=dtype)
        given = inputs(MIXED, dtype=dtype)
        # float32 in rope and softmax limits float64; the others have their own step.
        limit = max(2e-6, 8 * torch.finfo(dtype).eps)
        assert_outputs_agree(run(model, **given), run(wrap(model, variant), **given), limit)

    @VARIANTS
    def test_pixels_of_another_type_are_taken_in_the_weights_type(self, variant):
        model = tiny(dtype=torch.bfloat16)
        expected, found = (run(m, **inputs(ONE)) for m in (model, wrap(model, variant)))
        assert_outputs_agree(expected, found, 8 * torch.finfo(torch.bfloat16).eps)

    @VARIANTS
    def test_moved_after_wrapping(self, variant):
        wrapped = wrap(tiny(), variant, fixed=MIXED).double()
        expected = run(tiny(dtype=torch.float64), **inputs(MIXED, dtype=torch.float64))
        assert_outputs_agree(expected, run(wrapped, pixels(MIXED).double()), 1e-6)

    @VARIANTS
    def test_images_of_a_call_do_not_see_each_other(self, variant):
        wrapped = wrap(tiny(), variant)
        together = run(wrapped, **inputs(SEVERAL)).last_hidden_state
        start = 0
        for grid in SEVERAL:
            part = slice(start, start + patches_of([grid]))
            alone = run(wrapped, pixels(SEVERAL)[part], torch.tensor([grid])).last_hidden_state
            assert peir(alone, together[part]) < 1e-6
            start = part.stop

    @VARIANTS
    def test_frames_of_a_video_do_not_see_each_other(self, variant):
        wrapped = wrap(tiny(), variant)
        changed = pixels(VIDEO)
        changed[16:] = 0.0
        expected = run(wrapped, **inputs(VIDEO)).last_hidden_state
        found = run(wrapped, changed, torch.tensor(VIDEO)).last_hidden_state
        assert peir(expected[:16], found[:16]) < 1e-6
        assert peir(expected[16:], found[16:]) > 1e-2

    @VARIANTS
    @pytest.mark.parametrize("indexes", [[], [1], [0, 2]])
    def test_deepstack_after_the_configured_blocks(self, variant, indexes):
        config = tiny().config
        config.depth, config.deepstack_visual_indexes = 3, indexes
        torch.manual_seed(0)
        model = Qwen3VLVisionModel(config).eval()
        # With weights of the usual spread, blocks would hardly change what they are given.
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "pos_embed" not in name:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        expected, found = (run(m, **inputs(ONE)) for m in (model, wrap(model, variant)))
        assert len(found.deepstack_features) == len(indexes)
        assert_outputs_agree(expected, found, 2e-6)
        for one, other in itertools.pairwise(found.deepstack_features):
            assert peir(one, other) > 1e-2

    @VARIANTS
    @pytest.mark.parametrize("prepared", [lambda model: model, with_checkpointing])
    def test_gradients_equal_those_of_the_float_model(self, variant, prepared):
        model, found = prepared(tiny()), []
        for candidate in (model, wrap(model, variant)):
            model.zero_grad()
            output = candidate(**inputs(MIXED))
            sum(tensor.square().mean() for tensor in tensors_of(output)).backward()
            found.append({name: p.grad.clone() for name, p in model.named_parameters()})
        for name, gradient in found[0].items():
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


class TestAsTheFloatModel:
    @VARIANTS
    def test_what_the_caller_computed_beforehand(self, variant):
        model = tiny()
        wrapped = wrap(model, variant)
        plain = run(model, **inputs(MIXED))
        patches = patches_of(MIXED)
        for argument, value in (
            ("cu_seqlens", torch.tensor([0, patches], dtype=torch.int32)),
            ("position_ids", torch.arange(2 * patches).view(patches, 2) % 7),
        ):
            given = {**inputs(MIXED), argument: value}
            expected = run(model, **given)
            assert peir(plain.pooler_output, expected.pooler_output) > 1e-2
            assert_outputs_agree(expected, run(wrapped, **given), 2e-6)

    @VARIANTS
    @IMPLEMENTATIONS
    @pytest.mark.parametrize("what", ["output_hidden_states", "output_attentions"])
    def test_records_what_the_float_model_records(self, variant, implementation, what):
        model = tiny(implementation)
        wrapped = wrap(model, variant)
        key = what.removeprefix("output_")
        # The float model first and last: neither installs its hooks on the other.
        before, found, after = (
            run(m, **inputs(ONE), **{what: True})[key] for m in (model, wrapped, model)
        )
        assert len(found) == len(before) == len(after) > 0
        for r, c in zip(before, found, strict=True):
            assert peir(r, c) < 2e-6

    @VARIANTS
    def test_tuples_instead_of_outputs(self, variant):
        model = tiny()
        expected, found = (
            run(m, **inputs(ONE), return_dict=False) for m in (model, wrap(model, variant))
        )
        assert type(found) is tuple and len(found) == len(expected)
        assert peir(expected[0], found[0]) < 2e-6
        assert peir(expected[-1][1], found[-1][1]) < 2e-6

    @VARIANTS
    def test_inside_the_whole_model(self, variant):
        loaded = load("tiny-qwen3-vl")
        wrapped = wrap(loaded.model, variant)
        assert isinstance(wrapped.model.visual, QuantQwen3VLVisionModel)
        given = loaded.inputs["pixel_values"], loaded.inputs["image_grid_thw"]
        expected, found = (run(m.model.visual, *given) for m in (loaded.model, wrapped))
        assert_outputs_agree(expected, found, 2e-6)


class TestStructure:
    @VARIANTS
    def test_points_are_those_of_the_facts(self, variant):
        wrapped = wrap(tiny(), variant)
        negated = {"q_neg", "k_neg"} if variant == "prefill_reference" else set()
        negated |= {"logits_raw", "scale"}
        of_a_mask = {"attn_mask", "mask_add", "attn_weights"}
        of_a_mask |= {"new_k", "new_v", "present_key", "present_value"}
        assert set(wrapped.points) == {"pos_embed", "pos_add", "rope_cos", "rope_sin"}
        assert set(wrapped.pos_embed.points) == {"weight", "act_out"}
        assert set(wrapped.patch_embed.points) == set()
        assert set(wrapped.patch_embed.proj.points) == {"weight", "act_in", "act_out"}
        for block in wrapped.blocks:
            assert set(block.points) == {"act_in", "post_attn", "act_out"}
            assert set(block.attn.points) == (ATTENTION_POINTS - of_a_mask) | negated
            assert set(block.mlp.points) == {"act_in", "act_out"}
        for merger in (wrapped.merger, *wrapped.deepstack_merger_list):
            assert set(merger.points) == {"act_in", "act_out"}

    def test_the_variants_register_their_own_classes(self):
        prefill, reference = (wrap(tiny(), v) for v in ("prefill", "prefill_reference"))
        assert isinstance(prefill.patch_embed.proj, LinearPatchProjection)
        assert isinstance(reference.patch_embed.proj, QuantConv3d)
        attentions = [type(m.blocks[0].attn) for m in (prefill, reference)]
        assert attentions[0] is QuantQwen3VLVisionAttentionPrefill is not attentions[1]
        assert all(issubclass(a, Qwen3VLVisionAttention) for a in attentions)
        assert type(prefill.blocks[0].mlp) is type(reference.blocks[0].mlp)


class TestLinearPatchProjection:
    def test_it_is_the_convolution_read_back(self):
        model = tiny()
        convolution = model.patch_embed.proj
        projection = wrap(model, "prefill").patch_embed.proj
        assert isinstance(projection, nn.Conv3d)
        assert projection.weight is convolution.weight and projection.bias is convolution.bias
        patches = pixels(ONE)
        as_convolved = projection.to_reference_input("input", patches)
        assert as_convolved.shape == (24, 3, 2, 16, 16)
        expected = run(convolution, as_convolved)
        for given in (patches, as_convolved):
            found = projection.to_reference_output(run(projection, given))
            assert found.shape == expected.shape == (24, HIDDEN, 1, 1, 1)
            assert peir(expected, found) < 1e-6

    def test_its_weight_is_quantised_by_channel_as_the_convolutions(self):
        model = tiny()
        linear, convolution = (
            wrappers.convert(calibrated(model, variant)).patch_embed.proj
            for variant in ("prefill", "prefill_reference")
        )
        for point in ("weight", "act_in"):
            found, expected = linear.points[point].qparams, convolution.points[point].qparams
            assert found.axis == expected.axis == (0 if point == "weight" else None)
            assert torch.equal(found.scale, expected.scale)
            assert torch.equal(found.zero_point, expected.zero_point)

    def test_another_kind_of_projection_is_refused(self):
        class Adapter(nn.Conv3d):
            pass

        model = tiny()
        model.patch_embed.proj = Adapter(3, HIDDEN, (2, 16, 16), stride=(2, 16, 16))
        with pytest.raises(WrapError, match=r"patch_embed\.proj is a Adapter"):
            wrap(model, "prefill")
        expected, found = (run(m, **inputs(ONE)) for m in (model, wrap(model, "prefill_reference")))
        assert_outputs_agree(expected, found, 2e-6)


class TestErrors:
    @VARIANTS
    def test_a_grid_is_needed_somewhere(self, variant):
        wrapped = wrap(tiny(), variant)
        with pytest.raises(ModelInputError, match="no grid_thw"):
            run(wrapped, pixels(ONE))
        given = attention_inputs(ONE)
        del given["cu_seqlens"]
        with pytest.raises(ModelInputError, match="without cu_seqlens"):
            run(wrapped.blocks[0].attn, **given)

    @VARIANTS
    def test_another_grid_than_the_fixed_one_is_refused(self, variant):
        wrapped = wrap(tiny(), variant, fixed=ONE)
        with pytest.raises(ModelInputError, match=r"\[\[1, 6, 4\]\], and model_args fixes"):
            run(wrapped, pixels(ONE), torch.tensor([[1, 6, 4]]))
        with pytest.raises(ModelInputError, match=r"of \[8, 16\] patches, and the grids"):
            run(
                wrapped.blocks[0],
                **{**attention_inputs(ONE), "cu_seqlens": torch.tensor([0, 8, 24])},
            )

    @VARIANTS
    @pytest.mark.parametrize("fixed", [None, ONE])
    def test_pixels_of_another_number_of_patches_are_refused(self, variant, fixed):
        wrapped = wrap(tiny(), variant, fixed=fixed)
        with pytest.raises(ModelInputError, match="pixels of 48 patches, and grids of 24"):
            run(wrapped, pixels([[2, 4, 6]]), torch.tensor(ONE))
        given = attention_inputs([[2, 4, 6]]) | {"cu_seqlens": torch.tensor([0, 24])}
        with pytest.raises(ModelInputError, match="24 in all, and hidden states of 48"):
            run(wrapped.blocks[0].attn, **given)

    @VARIANTS
    @pytest.mark.parametrize("part", ["attn", None])
    def test_missing_position_embeddings_are_named(self, variant, part):
        block = wrap(tiny(), variant).blocks[0]
        given = attention_inputs(ONE)
        del given["position_embeddings"]
        with pytest.raises(ModelInputError, match="position_embeddings"):
            run(block if part is None else block.attn, **given)

    @VARIANTS
    @pytest.mark.parametrize("fixed", [[1, 4, 6], [[1, 4, 5]], [], [[1, 4, "6"]]])
    def test_bad_model_args(self, variant, fixed):
        with pytest.raises(ConfigError, match="grid_thw"):
            wrap(tiny(), variant, fixed=fixed)
        with pytest.raises(ConfigError, match="grid_thw"):
            wrap(tiny().blocks[0].attn, variant, fixed=fixed)


def quantised_gelu_64(module, x, approximate):
    x = fake_quantize_64(x, module.points["act_in"])
    x = nn.functional.gelu(x, approximate=approximate)
    return fake_quantize_64(x, module.points["act_out"])


class TestQuantisationOn:
    @VARIANTS
    def test_mlp_equals_an_independent_computation(self, variant):
        mlp = wrappers.convert(calibrated(tiny(), variant)).blocks[0].mlp
        x = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(4))
        inner = fake_quantize_64(x.double(), mlp.points["act_in"])
        inner = linear_64(mlp.linear_fc1, inner)
        inner = quantised_gelu_64(mlp.act_fn, inner, "tanh")
        inner = linear_64(mlp.linear_fc2, inner)
        expected = fake_quantize_64(inner, mlp.points["act_out"])
        assert_a_few_steps_apart(run(mlp, x), expected, mlp)

    @VARIANTS
    @pytest.mark.parametrize("deepstack", [False, True])
    def test_merger_equals_an_independent_computation(self, variant, deepstack):
        wrapped = wrappers.convert(calibrated(tiny(), variant))
        merger = wrapped.deepstack_merger_list[1] if deepstack else wrapped.merger
        norm = merger.norm
        x = torch.randn(12, HIDDEN, generator=torch.Generator().manual_seed(4))

        def q(x, name):
            return fake_quantize_64(x, norm.points[name])

        inner = fake_quantize_64(x.double(), merger.points["act_in"])
        inner = q(inner.view(-1, 4 * HIDDEN) if deepstack else inner, "act_in")
        centred = q(inner - q(inner.mean(-1, keepdim=True), "mean"), "centred")
        variance = q(q(centred.square(), "square").mean(-1, keepdim=True), "variance")
        eps = q(torch.tensor(norm.eps, dtype=torch.float64), "eps")
        inner = q(centred * q((variance + eps).rsqrt(), "rsqrt"), "normalised")
        inner = q(inner * q(norm.weight.double(), "weight"), "scaled")
        inner = q(inner + q(norm.bias.double(), "bias"), "act_out").view(-1, 4 * HIDDEN)
        inner = linear_64(merger.linear_fc1, inner)
        inner = quantised_gelu_64(merger.act_fn, inner, "none")
        inner = linear_64(merger.linear_fc2, inner)
        expected = fake_quantize_64(inner, merger.points["act_out"])
        assert_a_few_steps_apart(run(merger, x), expected, merger)

    @VARIANTS
    def test_patch_embedding_equals_an_independent_computation(self, variant):
        wrapped = wrappers.convert(calibrated(tiny(), variant))
        projection = wrapped.patch_embed.proj
        expected = linear_64(projection, pixels(ONE).double())
        assert_a_few_steps_apart(run(wrapped.patch_embed, pixels(ONE)), expected, projection)

    @VARIANTS
    @IMPLEMENTATIONS
    def test_more_bits_give_less_error(self, variant, implementation):
        model = tiny(implementation)
        expected = run(model, **inputs(MIXED))
        errors = []
        for activation, weight in (("int16", "int16"), ("int16", "uint8"), ("uint8", "uint8")):
            quantised = wrappers.convert(calibrated(model, variant, **specs(activation, weight)))
            output = run(quantised, **inputs(MIXED))
            errors.append(peir(expected.pooler_output, output.pooler_output))
        assert errors == sorted(errors)
        assert 1e-5 < errors[0] < 2e-3
        assert errors[1] < 0.02
        assert 5e-3 < errors[2] < 0.1

    @VARIANTS
    def test_both_grids_and_fixed_grids_quantise_alike(self, variant):
        model = tiny()
        free, fixed = (
            wrappers.convert(calibrated(model, variant, fixed=grids)) for grids in (None, MIXED)
        )
        assert_outputs_equal(run(free, **inputs(MIXED)), run(fixed, pixels(MIXED)))


# torch 2.11's own, once, on loading a program.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
@pytest.mark.no_cover  # measuring coverage takes a capture several times as long
class TestExport:
    # Quantised, `prefill` is exported by test_export.py.
    @pytest.mark.parametrize(
        ("variant", "quantised", "with_grid"),
        [("prefill", False, True), ("prefill_reference", True, False)],
    )
    def test_the_vision_model(self, variant, quantised, with_grid):
        wrapped = wrap(tiny(), variant, fixed=MIXED)
        if quantised:
            wrappers.calibrate(wrapped, [(pixels(MIXED),)])
            wrappers.convert(wrapped)
        args = (pixels(MIXED), torch.tensor(MIXED)) if with_grid else (pixels(MIXED),)
        found, program = exported(wrapped, args, {})
        assert_outputs_agree(run(wrapped, *args), found, 1e-6)
        other = pixels(MIXED, seed=9)
        assert_outputs_agree(run(wrapped, other), run(program.module(), other, *args[1:]), 1e-6)
        operators = operators_of(program)
        assert any("fake_quantize_per_tensor" in name for name in operators) == quantised
        unwanted = ("aten.item", "_local_scalar_dense", "chunk", "split", "sym_size", "nonzero")
        assert not any(part in name for name in operators for part in unwanted)
        assert not program.range_constraints
        assert variant == "prefill_reference" or not any("conv" in name for name in operators)

    @VARIANTS
    def test_compiled_equals_eager(self, variant):
        wrapped = wrap(tiny(), variant, fixed=MIXED)
        compiled = torch.compile(wrapped.blocks[0], backend="eager", fullgraph=True)
        given = attention_inputs(MIXED)
        assert torch.equal(run(compiled, **given), run(wrapped.blocks[0], **given))
        torch.compiler.reset()


@pytest.mark.slow
class TestPhotos:
    @pytest.fixture
    def photos(self, shared_data):
        pil = pytest.importorskip("PIL.Image", reason="photos are read with Pillow")
        module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
        processor = module.Qwen2VLImageProcessorPil.from_pretrained(
            shared_data / "qwen_processor" / "qwen3vl"
        )
        images = [pil.open(shared_data / "images" / name) for name in ("chelsea.png", "camera.png")]
        made = processor(images=images, return_tensors="pt")
        return made["pixel_values"], made["image_grid_thw"]

    @VARIANTS
    @IMPLEMENTATIONS
    def test_float_and_quantised(self, photos, variant, implementation):
        model = tiny(implementation)
        values, grid_thw = photos
        assert grid_thw.tolist() == [[1, 18, 28], [1, 32, 32]]
        wrapped = wrap(model, variant)
        expected = run(model, values, grid_thw)
        assert_outputs_agree(expected, run(wrapped, values, grid_thw), 3e-6)
        wrappers.calibrate(wrapped, [(values, grid_thw)])
        found = run(wrappers.convert(wrapped), values, grid_thw)
        assert 5e-3 < peir(expected.pooler_output, found.pooler_output) < 0.1
