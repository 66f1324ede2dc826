"""Qwen3-VL, text: float against wrapped, calibrated, quantised and exported, in both variants."""

import io

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from transformers import DynamicCache, StaticCache
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

import wrappers
from tests.builders.agreement import IMPLEMENTATIONS, VARIANTS, assert_modules_agree, peir
from tests.builders.in_float64 import (
    assert_on_the_same_steps,
    attention_64,
    fake_quantize_64,
    mlp_64,
    norm_64,
)
from tests.builders.llama import ATTENTION_POINTS, specs
from tests.builders.qwen3_vl import (
    DEEPSTACK,
    at_all_positions,
    attention_inputs,
    calibrated,
    causal,
    grids,
    last,
    quantized,
    randn,
    rope,
    tiny,
    tokens,
    with_features,
    wrap,
)
from wrappers.core.point import Mode
from wrappers.errors import ConfigError, ModelInputError, UnknownOverrideError


class TestQuantisationOff:
    @VARIANTS
    @pytest.mark.parametrize("positions", [
        torch.arange(5, 13)[None],
        torch.stack((torch.arange(8), torch.arange(4, 12))),
        torch.arange(5, 13)[None, None], grids(1, 8), grids(2, 8),
        torch.cat((torch.arange(8).expand(1, 2, 8), grids(2, 8))),
    ], ids=lambda positions: "x".join(map(str, positions.shape)))  # fmt: skip
    def test_positions_of_every_form(self, variant, positions):
        model = tiny()
        inputs = {"input_ids": tokens(2, 8), "position_ids": positions}
        assert_modules_agree(model, wrap(model, variant), 2e-6, **inputs)

    @VARIANTS
    @IMPLEMENTATIONS
    @pytest.mark.parametrize("use_cache", [False, True])
    @pytest.mark.parametrize("rows", [None, 3, 4])
    def test_positions_that_start_again(self, variant, implementation, use_cache, rows):
        model = tiny(implementation)
        positions = torch.tensor([[0, 1, 2, 0, 1, 0]])
        positions = positions if rows is None else positions.expand(rows, 1, 6)
        inputs = {"input_ids": tokens(1, 6), "position_ids": positions, "use_cache": use_cache}
        assert_modules_agree(model, wrap(model, variant), 2e-6, **inputs)

    @VARIANTS
    def test_packed_sequences_equal_sequences_alone(self, variant):
        wrapped, ids = wrap(tiny(), variant), tokens(1, 7)
        positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
        packed = last(wrapped, input_ids=ids, position_ids=positions, use_cache=False)
        alone = [last(wrapped, input_ids=part) for part in (ids[:, :3], ids[:, 3:])]
        assert peir(torch.cat(alone, dim=1), packed) < 2e-6

    @VARIANTS
    @pytest.mark.parametrize(
        "changes",
        [
            {"attention_bias": True}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1},
            {"head_dim": 16}, {"hidden_act": "gelu"}, {"rms_norm_eps": 0.3}, {"is_causal": False},
            {"rope_parameters": rope("default", mrope_section=[1, 2, 1])},
            {"rope_parameters": rope("linear", factor=2.0)},
            {"rope_parameters": rope("yarn", factor=4.0)},
        ],
        ids=lambda changes: str(changes.get("rope_parameters", changes)).split(", 'mrope_i")[0],
    )  # fmt: skip
    def test_configurations(self, variant, changes):
        model = tiny(**changes)
        inputs = {"input_ids": tokens(2, 8), "position_ids": grids(2, 8)}
        assert_modules_agree(model, wrap(model, variant), 2e-6, **inputs)


class TestCache:
    @VARIANTS
    @IMPLEMENTATIONS
    @pytest.mark.parametrize("kind", ["dynamic", "none at first", "static"])
    @pytest.mark.parametrize("cuts", [(4, 5, 6, 7, 8, 9, 10, 11, 12), (5, 8, 9, 12)])
    def test_steps_and_chunks_equal_one_forward(self, variant, implementation, kind, cuts):
        model = tiny(implementation)
        wrapped, inputs = wrap(model, variant), with_features(3, 12, "left")
        cache = {
            "dynamic": DynamicCache,
            "none at first": lambda: None,
            "static": lambda: StaticCache(model.config, max_cache_len=16),
        }[kind]()
        positions = grids(3, 12)
        expected = last(model, **inputs, position_ids=positions)
        visual, seen, found = inputs["visual_pos_masks"], 0, []
        for end in cuts:
            # Features of the visual positions of this chunk, which lie at its rows of them all.
            within = torch.zeros_like(visual)
            within[:, seen:end] = True
            chosen = within[visual]
            with torch.no_grad():
                output = wrapped(
                    inputs["input_ids"][:, seen:end],
                    attention_mask=inputs["attention_mask"][:, :end],
                    position_ids=positions[:, :, seen:end],
                    past_key_values=cache,
                    use_cache=True,
                    visual_pos_masks=visual[:, seen:end],
                    deepstack_visual_embeds=[f[chosen] for f in inputs["deepstack_visual_embeds"]],
                )
            cache, seen = output.past_key_values, end
            found.append(output.last_hidden_state)
        # What hidden queries see depends on how many keys there are so far: compare the others.
        visible = inputs["attention_mask"].bool()
        assert peir(expected[visible], torch.cat(found, dim=1)[visible]) < 2e-6


def layer_flow(model, **inputs):
    """What goes into each decoder layer and comes out, and what goes into the final norm."""
    went_in, came_out = [], []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: went_in.append(args[0].clone()))
        for layer in (*model.layers, model.norm)
    ]
    hooks += [
        layer.register_forward_hook(lambda *call: came_out.append(call[-1].clone()))
        for layer in model.layers
    ]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return went_in, came_out


class TestDeepstack:
    @VARIANTS
    def test_features_are_added_after_the_first_layers_at_their_positions_only(self, variant):
        inputs = with_features(3, 8)
        positions = inputs["visual_pos_masks"]
        went_in, came_out = layer_flow(wrap(tiny(), variant), **inputs)
        for i, features in enumerate(inputs["deepstack_visual_embeds"]):
            assert torch.equal(went_in[i + 1][positions], came_out[i][positions] + features)
            assert torch.equal(went_in[i + 1][~positions], came_out[i][~positions])
        assert torch.equal(went_in[3], came_out[2])

    @VARIANTS
    @pytest.mark.parametrize("mode", Mode)
    def test_features_in_full_size_are_the_same(self, variant, mode):
        model, inputs = tiny(), with_features(3, 8)
        full = at_all_positions(inputs, elsewhere=1e4)
        wrapped = wrap(model, variant)
        if mode is Mode.QUANT:
            wrappers.calibrate(wrapped, [inputs])
            wrappers.convert(wrapped)
        elif mode is Mode.CALIBRATE:
            wrappers.calibrate(wrapped, [inputs])
        assert torch.equal(last(wrapped, **inputs), last(wrapped, **full))
        stacked = inputs | {"deepstack_visual_embeds": torch.stack(full["deepstack_visual_embeds"])}
        assert torch.equal(last(wrapped, **inputs), last(wrapped, **stacked))

    @VARIANTS
    def test_observers_see_visual_positions_only(self, variant):
        inputs = with_features(3, 8)
        found = []
        for given in (inputs, at_all_positions(inputs, elsewhere=1e4)):
            wrapped = calibrated(tiny(), variant, [given])
            _, came_out = layer_flow(wrapped, **given)
            wrappers.convert(wrapped)
            qparams = [wrapped.points[name].qparams for name in deepstack_points()]
            found.append([(float(q.scale), int(q.zero_point)) for q in qparams])
        assert found[0] == found[1]
        positions = inputs["visual_pos_masks"]
        for i, features in enumerate(inputs["deepstack_visual_embeds"]):
            total = came_out[i][positions] + features
            for seen, (scale, _) in zip(
                (features, total), found[0][2 * i : 2 * i + 2], strict=True
            ):
                interval = max(seen.max(), 0) - min(seen.min(), 0)
                assert scale == pytest.approx(float(interval) / 255, rel=1e-4)

    @VARIANTS
    def test_quantised_sums_are_on_their_grid_and_text_stays_as_it_was(self, variant):
        inputs = with_features(3, 8)
        positions = inputs["visual_pos_masks"]
        wrapped = quantized(tiny(), variant, [inputs])
        went_in, came_out = layer_flow(wrapped, **inputs)
        for i, features in enumerate(inputs["deepstack_visual_embeds"]):
            assert torch.equal(went_in[i + 1][~positions], came_out[i][~positions])
            added, total = (wrapped.points[f"deepstack_{n}_{i}"] for n in ("visual_embeds", "sum"))
            expected = came_out[i][positions] + fake_quantize_64(features.double(), added)
            expected = fake_quantize_64(expected, total)
            error = (went_in[i + 1][positions] - expected).abs()
            assert error.max() <= 1.01 * float(total.qparams.scale)
            assert (error > 1e-4).double().mean() < 0.01

    @VARIANTS
    def test_text_alone_needs_no_features(self, variant):
        model, inputs = tiny(), {"input_ids": tokens(1, 6)}
        wrapped = wrap(model, variant)
        expected = last(model, **inputs)
        nowhere = torch.zeros(1, 6, dtype=torch.bool)
        assert peir(expected, last(wrapped, **inputs)) < 2e-6
        assert peir(expected, last(wrapped, **inputs, visual_pos_masks=nowhere)) < 2e-6
        none = {"deepstack_visual_embeds": [torch.zeros(0, 32)] * 2, "visual_pos_masks": nowhere}
        assert peir(expected, last(wrapped, **inputs, **none)) < 2e-6

    @VARIANTS
    def test_features_beyond_the_last_layer_are_left_out_as_in_the_float_model(self, variant):
        model, inputs = tiny(num_hidden_layers=1), with_features(2, 8)
        assert_modules_agree(model, wrap(model, variant, deepstack=1), 2e-6, **inputs)

    def test_features_for_fewer_layers_than_configured(self):
        model, inputs = tiny(), with_features(2, 8)
        inputs["deepstack_visual_embeds"].pop()
        assert_modules_agree(model, wrap(model, "prefill"), 2e-6, **inputs)

    @pytest.mark.parametrize("deepstack", [0, 1])
    def test_features_for_more_layers_than_configured_are_refused(self, deepstack):
        wrapped = wrap(tiny(), "prefill", deepstack=deepstack)
        with pytest.raises(ModelInputError, match=rf"for 2 layers.*wrapped for {deepstack}.*: 2"):
            wrapped(**with_features(2, 8))

    @pytest.mark.parametrize("size", ["positions", "full"])
    def test_features_without_positions_are_refused(self, size):
        inputs = with_features(2, 8)
        inputs = inputs if size == "positions" else at_all_positions(inputs, 0.0)
        inputs["visual_pos_masks"] = None
        with pytest.raises(ModelInputError, match="for 2 layers without visual_pos_masks"):
            wrap(tiny(), "prefill")(**inputs)

    @pytest.mark.parametrize("change", [-1, 1])
    def test_another_number_of_features_than_positions_is_refused(self, change):
        inputs = with_features(2, 8)
        inputs["deepstack_visual_embeds"][1] = torch.zeros(3 + change, 32)
        with pytest.raises(
            ModelInputError, match=f"of {3 + change} positions for layer 1.* with 3;"
        ):
            wrap(tiny(), "prefill")(**inputs)

    @pytest.mark.parametrize("count", [-1, 4, True, "2", 1.0])
    def test_a_number_of_layers_that_cannot_be_is_refused(self, count):
        with pytest.raises(ConfigError, match=r"deepstack_layers.*3 layers"):
            wrap(tiny(), "prefill", deepstack=count)

    def test_none_without_a_vision_model(self):
        wrapped = wrappers.prepare(tiny(), wrappers.PTQConfig())
        assert wrapped.deepstack_layers == 0
        assert not any(name.startswith("deepstack") for name in wrapped.points)


def deepstack_points(count=DEEPSTACK):
    names = ("deepstack_visual_embeds", "deepstack_sum")
    return [f"{name}_{i}" for i in range(count) for name in names]


class TestStructure:
    @VARIANTS
    def test_points_are_those_of_the_facts(self, variant):
        wrapped = wrap(tiny(), variant)
        layer = wrapped.layers[1]
        reference = {"logits_raw", "scale", "q_neg", "k_neg"}
        extra = reference if variant == "prefill_reference" else set()
        assert set(layer.self_attn.points) == ATTENTION_POINTS | extra
        assert list(layer.mlp.points) == ["act_in", "gated_out", "act_out"]
        assert list(layer.points) == ["act_in", "post_attn", "act_out"]
        own = ["inputs_embeds", "attention_mask", "cos", "sin"]
        assert list(wrapped.points) == own + deepstack_points()
        norms = [m for m in wrapped.modules() if isinstance(m, Qwen3VLTextRMSNorm)]
        assert len(norms) == 3 * 4 + 1
        assert all(list(norm.points) == ["weight", "act_in", "act_out"] for norm in norms)
        per_layer = len(layer.self_attn.points) + 3 + 3 + 4 * 3 + 7 * 3 + 4
        others = len(wrapped.points) + 3 + 2  # the final norm, the embedding
        count = sum(1 for _ in wrappers.iter_points(wrapped))
        assert (
            count == 3 * per_layer + others == {"prefill": 220, "prefill_reference": 232}[variant]
        )

    @VARIANTS
    def test_norms_see_each_head_by_itself(self, variant):
        model = tiny()
        shapes = {}
        wrapped = wrap(model, variant)
        for name in ("q_norm", "k_norm"):
            norm = getattr(wrapped.layers[0].self_attn, name)
            norm.register_forward_hook(
                lambda _, args, output, name=name: shapes.update({name: tuple(output.shape)})
            )
        last(wrapped, input_ids=tokens(2, 5))
        assert shapes == {"q_norm": (2, 5, 4, 8), "k_norm": (2, 5, 2, 8)}

    @VARIANTS
    def test_a_norm_that_layers_share_is_folded_into_once(self, variant):
        model = tiny()
        model.layers[2].self_attn.k_norm = model.layers[0].self_attn.k_norm
        assert_modules_agree(model, wrap(model, variant), 2e-6, input_ids=tokens(2, 8))

    def test_an_override_of_a_point_of_another_variant_is_refused(self):
        overrides = {"layers.0.self_attn.q_neg": wrappers.affine("int8")}
        wrap(tiny(), "prefill_reference", overrides=overrides)
        with pytest.raises(UnknownOverrideError, match="q_neg"):
            wrap(tiny(), "prefill", overrides=overrides)

    @pytest.mark.parametrize("shape", [(6,), (2, 1, 6), (5, 1, 6), (3, 1, 1, 6)])
    def test_positions_of_another_form_are_refused(self, shape):
        positions = torch.zeros(shape, dtype=torch.int64)
        with pytest.raises(ModelInputError, match=r"position_ids of shape \[.*\[batch, sequence\]"):
            wrap(tiny(), "prefill")(tokens(1, 6), position_ids=positions)


def layer_64(layer, hidden, cos, sin, mask):
    """The quantised decoder layer for one sequence, written out once more, in float64."""

    def q(x, name):
        return fake_quantize_64(x, layer.points[name])

    hidden = q(hidden, "act_in")
    normalised = norm_64(layer.input_layernorm, hidden)
    sin = layer.self_attn.sine_table(sin)
    attended, _, _ = attention_64(layer.self_attn, normalised, cos, sin, mask)
    hidden = q(hidden + attended, "post_attn")
    return q(hidden + mlp_64(layer.mlp, norm_64(layer.post_attention_layernorm, hidden)), "act_out")


def model_64(model, inputs, fill):
    """The quantised text model with visual features and positions of text, likewise."""

    def q(module, x, name):
        return fake_quantize_64(x, module.points[name])

    table = q(model.embed_tokens, model.embed_tokens.weight.double(), "weight")
    hidden = q(model.embed_tokens, table[inputs["input_ids"][0]], "act_out")
    hidden = q(model, hidden, "inputs_embeds")
    positions = torch.arange(len(hidden)).expand(3, 1, -1)
    cos, sin = (table[0].double() for table in model.rotary_emb(torch.zeros(1), positions))
    cos, sin = q(model, cos, "cos"), q(model, sin, "sin")
    mask = causal(len(hidden), fill)[0, 0]
    visual = inputs["visual_pos_masks"][0]
    for i, layer in enumerate(model.layers):
        hidden = layer_64(layer, hidden, cos, sin, mask)
        if i < DEEPSTACK:
            features = inputs["deepstack_visual_embeds"][i].double()
            features = q(model, features, f"deepstack_visual_embeds_{i}")
            hidden = hidden.clone()
            hidden[visual] = q(model, hidden[visual] + features, f"deepstack_sum_{i}")
    return norm_64(model.norm, hidden)


class TestQuantisationOn:
    @VARIANTS
    @pytest.mark.parametrize(("activation", "weight"), [("uint8", "uint4"), ("int8", "int8")])
    def test_a_layer_equals_an_independent_computation(self, variant, activation, weight):
        model = tiny()
        inputs = {"input_ids": tokens(2, 24)}
        wrapped = quantized(model, variant, [inputs], deepstack=0, **specs(activation, weight))
        layer = wrapped.layers[0]
        hidden = model.embed_tokens(inputs["input_ids"][:1]).detach()
        arguments = attention_inputs(model, hidden)
        cos, sin = (table[0] for table in arguments["position_embeddings"])
        with torch.no_grad():
            found = layer(**arguments)
            expected = layer_64(layer, hidden[0].double(), cos, sin, causal(24, -120.0)[0, 0])
        assert_on_the_same_steps(found[0], expected, layer.points["act_out"])

    @pytest.mark.parametrize("name", ["input_layernorm", "q_norm", "k_norm"])
    def test_norms_equal_an_independent_computation(self, name):
        wrapped = quantized(tiny(), "prefill", [{"input_ids": tokens(2, 24)}], deepstack=0)
        layer = wrapped.layers[0]
        module = getattr(layer.self_attn if name in ("q_norm", "k_norm") else layer, name)
        x = randn(1, 7, 2, 8) if name in ("q_norm", "k_norm") else randn(1, 7, 32)
        with torch.no_grad():
            found, expected = module(x), norm_64(module, x.double())
        assert_on_the_same_steps(found, expected, module.points["act_out"])

    @VARIANTS
    def test_the_error_is_that_of_an_independent_computation_and_falls_with_bits(self, variant):
        model, inputs = tiny(), with_features(1, 24)
        exact = last(model, **inputs)
        errors = []
        for types in (("int16", "int16"), ("int16", "uint8"), ("uint8", "uint8"), ("int4", "int4")):
            wrapped = quantized(model, variant, [inputs], **specs(*types))
            fill = wrapped.ptq_config.attention_mask_fill_value
            with torch.no_grad():
                expected = model_64(wrapped, inputs, fill)
            errors.append(peir(exact, last(wrapped, **inputs)))
            assert errors[-1] == pytest.approx(peir(exact, expected), rel=0.2)
        assert errors == sorted(errors)
        assert 1e-4 < errors[0] < 0.005
        assert errors[-1] > 0.3


def exported(module, inputs):
    """The program of a module, saved and loaded again.

    `strict=False`: a strict export gives the same operators, and warns of what transformers keeps
    while it records outputs.
    """
    with torch.no_grad():
        program = torch.export.export(module, (), inputs, strict=False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def assert_static(program):
    """No shape depends on data, and no number is read back to decide anything."""
    for node in program.graph.nodes:
        assert not free_unbacked_symbols(node.meta.get("val")), node
        name = str(node.target)
        for unwanted in ("nonzero", "item", "_local_scalar_dense", "masked_select", "split"):
            assert unwanted not in name, node


def has_fake_quantize(program):
    return any("fake_quantize_per_tensor" in str(node.target) for node in program.graph.nodes)


FEW_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}  # exports faster


@pytest.mark.slow
@pytest.mark.no_cover  # measuring coverage takes a capture several times as long
class TestExport:
    @VARIANTS
    @pytest.mark.parametrize("quantised", [False, True])
    def test_the_text_model_with_everything_as_inputs(self, variant, quantised):
        examples = [at_all_positions(with_features(1, 8, seed=seed), 0.0) for seed in (3, 4)]
        wrapped = wrap(tiny(num_hidden_layers=1, **FEW_HEADS), variant, deepstack=1)
        if quantised:
            wrappers.calibrate(wrapped, examples)
            wrappers.convert(wrapped)
        fill = wrapped.ptq_config.attention_mask_fill_value
        positions = torch.cat((torch.arange(8).expand(1, 1, 8), grids(1, 8)))
        for example in examples:
            example["inputs_embeds"] = wrapped.embed_tokens(example.pop("input_ids")).detach()
            example |= {"attention_mask": causal(8, fill), "position_ids": positions}
            example["use_cache"] = False
        # Exported with one example; run with another, whose visual positions differ too.
        examples[1]["visual_pos_masks"] = examples[1]["visual_pos_masks"].roll(2, dims=1)
        examples[1]["position_ids"] = positions + 3
        program = exported(wrapped, examples[0])
        for example in examples:
            with torch.no_grad():
                found = program.module()(**example).last_hidden_state
            assert peir(last(wrapped, **example), found) <= 1e-6
        assert peir(last(wrapped, **examples[0]), last(wrapped, **examples[1])) > 0.1
        assert_static(program)
        assert has_fake_quantize(program) == quantised

    def test_a_mask_made_inside_has_the_fill_value_of_the_config(self):
        inputs = {"input_ids": tokens(1, 8), "use_cache": False}
        fill = -77.0
        wrapped = quantized(
            tiny(num_hidden_layers=1, **FEW_HEADS),
            "prefill_reference",
            [inputs],
            deepstack=0,
            attention_mask_fill_value=fill,
        )
        program = exported(wrapped, inputs)
        with torch.no_grad():
            found = program.module()(**inputs).last_hidden_state
        assert peir(last(wrapped, **inputs), found) <= 1e-6
        assert_static(program)
        numbers = [a for node in program.graph.nodes for a in node.args if isinstance(a, float)]
        assert min(numbers) == fill
