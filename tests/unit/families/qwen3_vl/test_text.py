"""Qwen3-VL, text: float against wrapped, calibrated, quantised and exported, in both variants."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from transformers import DynamicCache, Qwen3VLTextConfig, StaticCache
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextAttention,
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextMLP,
    Qwen3VLTextModel,
    Qwen3VLTextRMSNorm,
    Qwen3VLTextRotaryEmbedding,
)

import wrappers
from tests.builders.agreement import (
    BATCHES,
    IMPLEMENTATIONS,
    VARIANTS,
    assert_modules_agree,
    fake_quantize_64,
    linear_64,
    padding,
    peir,
    record,
    redrawn,
    with_checkpointing,
)
from tests.unit.families.test_llama import ATTENTION_POINTS
from wrappers.core.module import QuantModule
from wrappers.core.point import Mode
from wrappers.core.registry import lookup
from wrappers.errors import ConfigError, ModelInputError, UnknownOverrideError, WrapError
from wrappers.families.qwen3_vl import text

DEEPSTACK = 2  # layers that take visual features, of three
FACTOR = 8**-0.5  # on the logits, from head_dim


def rope(kind, **options):
    sections = {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return {"rope_type": kind, "rope_theta": 1e4, **sections, **options}


SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rope_parameters": rope("default"),
}


def tiny(implementation="eager", *, dtype=torch.float32, **changes):
    config = Qwen3VLTextConfig(**{**SIZES, **changes})
    config._attn_implementation = implementation
    return redrawn(Qwen3VLTextModel(config)).to(dtype).eval()


def wrap(model, variant, deepstack=DEEPSTACK, **config):
    known = {text.DEEPSTACK_LAYERS: deepstack}
    return wrappers.prepare(model, wrappers.PTQConfig(variant=variant, model_args=known, **config))


def calibrated(model, variant, inputs, **config):
    wrapped = wrap(model, variant, **config)
    wrappers.calibrate(wrapped, inputs)
    return wrapped


def quantized(model, variant, inputs, **config):
    return wrappers.convert(calibrated(model, variant, inputs, **config))


def tokens(batch, length, seed=1):
    return torch.randint(3, 96, (batch, length), generator=torch.Generator().manual_seed(seed))


def randn(*shape, seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_features(batch, length, side=None, seed=3):
    """Tokens, some of which are visual, and the features of these for each layer that takes any."""
    positions = torch.zeros(batch, length, dtype=torch.bool)
    for row in range(batch):  # in the middle, another number in each row
        positions[row, length // 2 : length // 2 + 1 + row] = True
    count = int(positions.sum())
    inputs = {
        "input_ids": tokens(batch, length),
        "visual_pos_masks": positions,
        "deepstack_visual_embeds": list(randn(DEEPSTACK, count, 32, seed=seed)),
    }
    if side is not None:
        inputs["attention_mask"] = padding(batch, length, side)
    return inputs


def at_all_positions(inputs, elsewhere):
    """The features in full size, [B, length, hidden], with a number wherever they have no place."""
    positions = inputs["visual_pos_masks"]
    full = []
    for features in inputs["deepstack_visual_embeds"]:
        spread = torch.full((*positions.shape, 32), elsewhere)
        spread[positions] = features
        full.append(spread)
    return inputs | {"deepstack_visual_embeds": full}


def grids(batch, length):
    """Positions of tokens with an image among them: times, rows and columns, [3, batch, length]."""
    positions = torch.arange(length).expand(3, batch, length).clone()
    positions[0, :, 2:6] = 2
    positions[1, :, 2:6] = torch.tensor([2, 2, 3, 3])
    positions[2, :, 2:6] = torch.tensor([2, 3, 2, 3])
    positions[:, :, 6:] -= 2
    return positions


def attention_inputs(model, hidden_states):
    positions = torch.arange(hidden_states.shape[1]).expand(3, 1, -1)
    return {
        "hidden_states": hidden_states,
        "position_embeddings": model.rotary_emb(hidden_states, positions),
        "attention_mask": causal(hidden_states.shape[1], -120.0),
    }


def causal(length, fill):
    return torch.full((length, length), fill).triu(1)[None, None]


def last(model, **inputs):
    with torch.no_grad():
        return model(**inputs).last_hidden_state


class TestQuantisationOff:
    @VARIANTS
    @IMPLEMENTATIONS
    @BATCHES
    def test_every_module_equals_the_float_model(
        self, variant, implementation, batch, length, side
    ):
        model = tiny(implementation)
        inputs = with_features(batch, length, side)
        assert_modules_agree(model, wrap(model, variant), 2e-6, **inputs)

    @VARIANTS
    @pytest.mark.parametrize(
        "positions",
        [
            torch.arange(5, 13)[None],
            torch.stack((torch.arange(8), torch.arange(4, 12))),
            torch.arange(5, 13)[None, None],
            grids(1, 8),
            grids(2, 8),
            torch.cat((torch.arange(8).expand(1, 2, 8), grids(2, 8))),
        ],
        ids=lambda positions: "x".join(map(str, positions.shape)),
    )
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
            {"attention_bias": True},
            {"num_key_value_heads": 4},
            {"num_key_value_heads": 1},
            {"head_dim": 16},
            {"hidden_act": "gelu"},
            {"rms_norm_eps": 0.3},
            {"is_causal": False},
            {"rope_parameters": rope("default", mrope_section=[1, 2, 1])},
            {"rope_parameters": rope("linear", factor=2.0)},
            {"rope_parameters": rope("yarn", factor=4.0)},
        ],
        ids=lambda changes: str(changes.get("rope_parameters", changes)).split(", 'mrope_i")[0],
    )
    def test_configurations(self, variant, changes):
        model = tiny(**changes)
        inputs = {"input_ids": tokens(2, 8), "position_ids": grids(2, 8)}
        assert_modules_agree(model, wrap(model, variant), 2e-6, **inputs)

    @VARIANTS
    @IMPLEMENTATIONS
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_dtypes(self, variant, implementation, dtype):
        model = tiny(implementation, dtype=dtype)
        # float32 inside the softmax and the norms limits float64; the others have their own step.
        limit = max(2e-6, 8 * torch.finfo(dtype).eps)
        # transformers' eager attention gives NaN for padding on the left in float64.
        side = "right" if dtype == torch.float64 else "left"
        assert_modules_agree(model, wrap(model, variant), limit, **with_features(3, 12, side))

    @VARIANTS
    def test_embeddings_in_place_of_ids(self, variant):
        model = tiny()
        embeds = model.embed_tokens(tokens(2, 6)).detach()
        assert_modules_agree(model, wrap(model, variant), 2e-6, inputs_embeds=embeds)

    @VARIANTS
    @IMPLEMENTATIONS
    def test_hidden_states_and_attentions(self, variant, implementation):
        model = tiny(implementation)
        eager = implementation == "eager"
        inputs = with_features(2, 8) | {"output_hidden_states": True, "output_attentions": eager}
        with torch.no_grad():
            expected, found = model(**inputs), wrap(model, variant)(**inputs)
        for r, c in zip(expected.hidden_states, found.hidden_states, strict=True):
            assert peir(r, c) < 2e-6
        assert len(found.hidden_states) == 4
        if eager:
            for r, c in zip(expected.attentions, found.attentions, strict=True):
                assert peir(r, c) < 4e-6
        else:
            assert expected.attentions is None and found.attentions is None

    @VARIANTS
    def test_tuples_instead_of_outputs(self, variant):
        model, inputs = tiny(), with_features(1, 6) | {"return_dict": False, "use_cache": False}
        with torch.no_grad():
            expected, found = model(**inputs), wrap(model, variant)(**inputs)
        assert type(found) is type(expected) is tuple
        assert len(found) == len(expected) == 1
        assert peir(expected[0], found[0]) < 2e-6

    @VARIANTS
    @IMPLEMENTATIONS
    def test_gradients_equal_those_of_the_float_model(self, variant, implementation):
        model = tiny(implementation)
        inputs = with_features(2, 9, "right")
        for features in inputs["deepstack_visual_embeds"]:
            features.requires_grad_()
        leaves = dict(model.named_parameters()) | dict(enumerate(inputs["deepstack_visual_embeds"]))

        def gradients(candidate, leaves):
            for leaf in leaves.values():
                leaf.grad = None
            candidate(**inputs).last_hidden_state.square().mean().backward()
            return {name: leaf.grad.clone() for name, leaf in leaves.items()}

        expected = gradients(model, leaves)
        wrapped = wrap(model, variant)
        found = gradients(wrapped, leaves | dict(wrapped.named_parameters()))
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            if variant == "prefill" and "k_norm" in str(name):
                gradient = gradient * FACTOR  # d loss / d W of what was multiplied into W
            assert expected[name].abs().max() > 0
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)

    @VARIANTS
    def test_gradient_checkpointing(self, variant):
        model = with_checkpointing(tiny())
        wrapped, inputs = wrap(model, variant), with_features(2, 9)
        gradients = []
        for candidate in (wrapped, model):
            model.zero_grad()
            candidate(**inputs, use_cache=False).last_hidden_state.square().mean().backward()
            gradients.append(model.embed_tokens.weight.grad.clone())
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)

    def test_dropout_in_training_is_that_of_the_float_model(self):
        model = tiny(attention_dropout=0.5).train()
        found = []
        for candidate in (model, wrap(model, "prefill_reference")):
            torch.manual_seed(3)
            found.append(candidate(**with_features(2, 9)).last_hidden_state)
        assert peir(*found) < 2e-6

    @VARIANTS
    def test_moved_after_wrapping(self, variant):
        inputs = with_features(1, 9)
        expected = last(tiny(dtype=torch.float64), **inputs)
        assert peir(expected, last(wrap(tiny(), variant).double(), **inputs)) < 1e-6

    @VARIANTS
    @pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
    def test_an_empty_batch_gives_an_empty_output(self, variant, shape):
        ids = torch.zeros(shape, dtype=torch.int64)
        assert last(wrap(tiny(), variant), input_ids=ids).shape == (*shape, 32)


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

    @VARIANTS
    def test_a_cache_passes_between_the_float_and_the_wrapped_model(self, variant):
        model = tiny()
        wrapped, ids = wrap(model, variant), tokens(2, 12)
        expected = last(model, input_ids=ids)[:, 8:]
        with torch.no_grad():
            for first, second in ((model, wrapped), (wrapped, model)):
                cache = first(ids[:, :8], use_cache=True).past_key_values
                found = last(second, input_ids=ids[:, 8:], past_key_values=cache)
                assert peir(expected, found) < 2e-6

    @VARIANTS
    def test_it_holds_what_the_float_model_caches(self, variant):
        model, inputs = tiny(), with_features(2, 8)
        with torch.no_grad():
            expected = model(**inputs, use_cache=True).past_key_values
            found = wrap(model, variant)(**inputs, use_cache=True).past_key_values
        for r, c in zip(expected.layers, found.layers, strict=True):
            assert peir(r.keys, c.keys) < 2e-6
            assert peir(r.values, c.values) < 2e-6

    @VARIANTS
    def test_a_legacy_cache(self, variant):
        model = tiny()
        wrapped, ids = wrap(model, variant), tokens(2, 12)
        with torch.no_grad():
            layers = model(ids[:, :8], use_cache=True).past_key_values.layers
            legacy = tuple((layer.keys, layer.values) for layer in layers)
            output = wrapped(ids[:, 8:], past_key_values=legacy)
        assert peir(last(model, input_ids=ids)[:, 8:], output.last_hidden_state) < 2e-6
        assert output.past_key_values.get_seq_length() == 12
        assert legacy[0][0].shape[2] == 8

    @VARIANTS
    def test_no_cache_is_made_where_none_is_wanted(self, variant):
        wrapped = wrap(tiny(), variant)
        with torch.no_grad():
            assert wrapped(tokens(1, 4), use_cache=False).past_key_values is None
            assert wrapped(tokens(1, 4)).past_key_values.get_seq_length() == 4


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
    def test_names_are_kept_and_parameters_shared_but_for_the_folded_norm(self, variant):
        model = tiny(attention_bias=True)
        inputs = with_features(2, 8)
        state = {name: p.clone() for name, p in model.state_dict().items()}
        before = last(model, **inputs)
        wrapped = quantized(model, variant, [inputs])
        assert [n for n, _ in wrapped.named_modules()] == [n for n, _ in model.named_modules()]
        for (name, p), (other, q) in zip(
            model.named_parameters(), wrapped.named_parameters(), strict=True
        ):
            folded = variant == "prefill" and "k_norm" in name
            assert name == other
            assert (p is q) != folded
            if folded:
                torch.testing.assert_close(q, p * FACTOR)
        last(wrapped, **inputs)
        assert all(torch.equal(p, state[name]) for name, p in model.state_dict().items())
        assert torch.equal(last(model, **inputs), before)

    @VARIANTS
    def test_only_rotary_embedding_and_containers_stay_float(self, variant):
        wrapped = wrap(tiny(), variant)
        unwrapped = {type(m) for m in wrapped.modules() if not isinstance(m, QuantModule)}
        assert unwrapped == {nn.ModuleList, Qwen3VLTextRotaryEmbedding}
        assert isinstance(wrapped.embed_tokens, QuantModule)
        assert isinstance(wrapped.norm, QuantModule)

    @VARIANTS
    def test_wrappers_are_registered_and_are_instances_of_the_float_classes(self, variant):
        wrapped = wrap(tiny(), variant)
        layer = wrapped.layers[0]
        attention = {
            "prefill": text.QuantQwen3VLTextAttentionPrefill,
            "prefill_reference": text.QuantQwen3VLTextAttentionPrefillReference,
        }[variant]
        for module, float_class, wrapper in (
            (wrapped, Qwen3VLTextModel, text.QuantQwen3VLTextModel),
            (layer, Qwen3VLTextDecoderLayer, text.QuantQwen3VLTextDecoderLayer),
            (layer.self_attn, Qwen3VLTextAttention, attention),
            (layer.mlp, Qwen3VLTextMLP, text.QuantQwen3VLTextMLP),
            (layer.self_attn.q_norm, Qwen3VLTextRMSNorm, text.QuantQwen3VLTextRMSNorm),
        ):
            assert lookup(float_class, variant) is wrapper
            assert type(module) is wrapper
            assert isinstance(module, float_class)

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

    def test_the_folded_factor_is_declared(self):
        model = tiny()
        folded = wrap(model, "prefill").layers[0].self_attn.k_norm
        x = randn(1, 5, 2, 8)
        with torch.no_grad():
            plain = model.layers[0].self_attn.k_norm(x)
            torch.testing.assert_close(folded(x), plain * FACTOR)
            torch.testing.assert_close(folded.to_reference_output(folded(x)), plain)

    def test_nothing_is_folded_in_the_reference(self):
        attention = wrap(tiny(), "prefill_reference").layers[0].self_attn
        x = randn(1, 5, 2, 8)
        for module in (attention.k_norm, attention.q_norm, attention.k_proj):
            assert module.output_scale == 1.0
            assert module.to_reference_output(x) is x

    def test_a_key_norm_that_cannot_be_folded_is_refused(self):
        class OtherNorm(Qwen3VLTextRMSNorm):
            pass

        model = tiny()
        model.layers[1].self_attn.k_norm = OtherNorm(8)
        with pytest.raises(WrapError, match=r"layers\.1\.self_attn\.k_norm is a OtherNorm"):
            wrap(model, "prefill")
        assert last(wrap(model, "prefill_reference"), input_ids=tokens(1, 4)).shape == (1, 4, 32)

    @VARIANTS
    def test_a_norm_that_layers_share_is_folded_into_once(self, variant):
        model = tiny()
        model.layers[2].self_attn.k_norm = model.layers[0].self_attn.k_norm
        assert_modules_agree(model, wrap(model, variant), 2e-6, input_ids=tokens(2, 8))

    @VARIANTS
    def test_overrides_of_single_points(self, variant):
        overrides = {
            "layers.0.self_attn.k_norm.weight": wrappers.affine("int16"),
            "layers.1.mlp": {"gated_out": {"dtype": "int4"}, "down_proj.weight": {"dtype": "int8"}},
            "deepstack_sum_1": wrappers.no_quantization(),
        }
        wrapped = quantized(tiny(), variant, [with_features(2, 8)], overrides=overrides)
        dtypes = {
            f"{module}.{name}".lstrip("."): None if point.qparams is None else point.qparams.dtype
            for module, name, point in wrappers.iter_points(wrapped)
        }
        changed = {name: str(dtype) for name, dtype in dtypes.items() if str(dtype) != "uint8"}
        assert changed == {
            "layers.0.self_attn.k_norm.weight": "int16",
            "layers.1.mlp.gated_out": "int4",
            "layers.1.mlp.down_proj.weight": "int8",
            "deepstack_sum_1": "None",
        }

    def test_an_override_of_a_point_of_another_variant_is_refused(self):
        overrides = {"layers.0.self_attn.q_neg": wrappers.affine("int8")}
        wrap(tiny(), "prefill_reference", overrides=overrides)
        with pytest.raises(UnknownOverrideError, match="q_neg"):
            wrap(tiny(), "prefill", overrides=overrides)

    @pytest.mark.parametrize("given", [{}, {"input_ids", "inputs_embeds"}])
    def test_ids_or_embeddings_exactly_one(self, given):
        values = {"input_ids": tokens(1, 3), "inputs_embeds": torch.zeros(1, 3, 32)}
        with pytest.raises(ModelInputError, match="exactly one"):
            wrap(tiny(), "prefill")(**{name: values[name] for name in given})

    @pytest.mark.parametrize("shape", [(6,), (2, 1, 6), (5, 1, 6), (3, 1, 1, 6)])
    def test_positions_of_another_form_are_refused(self, shape):
        positions = torch.zeros(shape, dtype=torch.int64)
        with pytest.raises(ModelInputError, match=r"position_ids of shape \[.*\[batch, sequence\]"):
            wrap(tiny(), "prefill")(tokens(1, 6), position_ids=positions)

    @pytest.mark.parametrize("part", ["self_attn", None])
    def test_missing_position_embeddings_are_named(self, part):
        layer = wrap(tiny(), "prefill").layers[0]
        with pytest.raises(ModelInputError, match="position_embeddings"):
            (layer if part is None else layer.self_attn)(hidden_states=torch.zeros(1, 3, 32))


class TestCalibration:
    @VARIANTS
    @IMPLEMENTATIONS
    def test_calibrating_changes_no_bit(self, variant, implementation):
        wrapped = wrap(tiny(implementation), variant)
        inputs = with_features(3, 40, "left")
        _, expected = record(wrapped, **inputs)
        wrappers.calibrate(wrapped, [inputs])
        assert all(m.mode is Mode.CALIBRATE for _, m in wrappers.iter_wrappers(wrapped))
        _, found = record(wrapped, **inputs)
        for (name, _, before), (_, _, after) in zip(expected, found, strict=True):
            for a, b in zip(before, after, strict=True):
                assert not isinstance(a, torch.Tensor) or torch.equal(a, b), name

    @VARIANTS
    @IMPLEMENTATIONS
    def test_one_batch_with_features_reaches_every_point(self, variant, implementation):
        wrapped = quantized(tiny(implementation), variant, [with_features(1, 8)])
        assert all(m.mode is Mode.QUANT for _, m in wrappers.iter_wrappers(wrapped))
        assert all(point.qparams is not None for _, _, point in wrappers.iter_points(wrapped))

    @VARIANTS
    def test_the_fill_value_of_the_config_reaches_every_mask(self, variant):
        inputs = [with_features(1, 8)]
        wrapped = quantized(tiny(), variant, inputs, attention_mask_fill_value=-51.0)
        masks = [
            point.qparams
            for _, name, point in wrappers.iter_points(wrapped)
            if name in ("attn_mask", "attention_mask")
        ]
        assert len(masks) == 1 + 3
        assert all(float(qparams.scale) == pytest.approx(51.0 / 255) for qparams in masks)


def norm_64(norm, x):
    """A quantised root mean square norm, written out once more, in float64."""
    x = fake_quantize_64(x, norm.points["act_in"])
    normalised = x / (x.square().mean(dim=-1, keepdim=True) + norm.variance_epsilon).sqrt()
    weight = fake_quantize_64(norm.weight.double(), norm.points["weight"])
    return fake_quantize_64(weight * normalised, norm.points["act_out"])


def mlp_64(mlp, x):
    """The quantised MLP, likewise."""

    def q(module, x, name):
        return fake_quantize_64(x, module.points[name])

    x = q(mlp, x, "act_in")
    gate = q(mlp.act_fn, linear_64(mlp.gate_proj, x), "act_in")
    act = q(mlp.act_fn, gate * q(mlp.act_fn, gate.sigmoid(), "sigmoid"), "mul")
    product = q(mlp.act_fn, act, "act_out") * linear_64(mlp.up_proj, x)
    return q(mlp, linear_64(mlp.down_proj, q(mlp, product, "gated_out")), "act_out")


def attention_64(attention, hidden, cos, sin, fill, *, folded):
    """The quantised attention of one sequence without a cache, likewise."""

    def q(x, name):
        return fake_quantize_64(x, attention.points[name])

    def rotate(x, name):
        x1, x2 = q(x[..., :4], f"{name}_x1"), q(x[..., 4:], f"{name}_x2")
        first = x2 if folded else q(-x2, f"{name}_neg")
        turned = q(torch.cat((first, x1), dim=-1), f"{name}_cat") * sin
        return q(q(x * cos, f"{name}_cos") + q(turned, f"{name}_sin"), f"{name}_rot")

    length = hidden.shape[1]
    hidden = q(hidden, "hidden")
    cos, sin = q(cos.double(), "cos"), sin.double()
    sin = q(torch.cat((-sin[..., :4], sin[..., 4:]), dim=-1) if folded else sin, "sin")
    mask = q(causal(length, fill)[0, 0].double(), "attn_mask")
    projected = [linear_64(getattr(attention, f"{n}_proj"), hidden)[0] for n in "qkv"]
    # [length, heads, head_dim]
    query, key, value = (x.view(length, -1, 8) for x in projected)
    query = rotate(norm_64(attention.q_norm, query).transpose(0, 1), "q")
    key = rotate(norm_64(attention.k_norm, key).transpose(0, 1), "k")
    key, value = q(q(key, "new_k"), "present_key"), q(value.transpose(0, 1), "new_v")
    value = q(value, "present_value")
    outputs = []
    for head in range(4):
        logits = query[head] @ key[head // 2].T
        if not folded:
            scale = q(torch.tensor(FACTOR, dtype=torch.float64), "scale")
            logits = q(logits, "logits_raw") * scale
        masked = q(q(logits, "logits") + mask, "mask_add")
        weights = q(masked.softmax(dim=-1), "softmax")
        outputs.append(q(weights @ value[head // 2], "attn_out"))
    return linear_64(attention.o_proj, q(torch.cat(outputs, dim=-1)[None], "attn_out_h"))


def layer_64(layer, hidden, cos, sin, fill, *, folded):
    """The quantised decoder layer, likewise."""

    def q(x, name):
        return fake_quantize_64(x, layer.points[name])

    hidden = q(hidden, "act_in")
    normalised = norm_64(layer.input_layernorm, hidden)
    attended = attention_64(layer.self_attn, normalised, cos, sin, fill, folded=folded)
    hidden = q(hidden + attended, "post_attn")
    return q(hidden + mlp_64(layer.mlp, norm_64(layer.post_attention_layernorm, hidden)), "act_out")


def model_64(model, inputs, fill, *, folded):
    """The quantised text model with visual features and positions of text, likewise."""

    def q(module, x, name):
        return fake_quantize_64(x, module.points[name])

    table = q(model.embed_tokens, model.embed_tokens.weight.double(), "weight")
    hidden = q(model.embed_tokens, table[inputs["input_ids"]], "act_out")
    hidden = q(model, hidden, "inputs_embeds")
    positions = torch.arange(hidden.shape[1]).expand(3, 1, -1)
    cos, sin = model.rotary_emb(torch.zeros(1), positions)
    cos, sin = q(model, cos.double(), "cos"), q(model, sin.double(), "sin")
    visual = inputs["visual_pos_masks"]
    for i, layer in enumerate(model.layers):
        hidden = layer_64(layer, hidden, cos, sin, fill, folded=folded)
        if i < DEEPSTACK:
            features = inputs["deepstack_visual_embeds"][i].double()
            features = q(model, features, f"deepstack_visual_embeds_{i}")
            hidden = hidden.clone()
            hidden[visual] = q(model, hidden[visual] + features, f"deepstack_sum_{i}")
    return norm_64(model.norm, hidden)


def specs(activation, weight):
    return {
        "activation": wrappers.affine(activation),
        "weight": wrappers.affine(weight),
    }


def assert_on_the_same_steps(found, expected, point):
    """float32 and float64 fall on different sides of a rounding now and then: a step at one point
    moves a few outputs by a few steps and no more."""
    step = float(point.qparams.scale)
    difference = (found.double() - expected).abs()
    assert difference.max() <= 4 * step
    assert (difference > step / 2).double().mean() < 0.05


class TestQuantisationOn:
    @VARIANTS
    @pytest.mark.parametrize("part", ["self_attn", "layer"])
    @pytest.mark.parametrize(
        ("activation", "weight"), [("uint8", "uint8"), ("uint8", "uint4"), ("int8", "int8")]
    )
    def test_blocks_equal_an_independent_computation(self, variant, part, activation, weight):
        model = tiny()
        spec = specs(activation, weight)
        inputs = {"input_ids": tokens(2, 24)}
        wrapped = quantized(model, variant, [inputs], deepstack=0, **spec)
        layer = wrapped.layers[0]
        hidden = model.embed_tokens(inputs["input_ids"][:1]).detach()
        written_out = layer_64
        if part == "self_attn":
            hidden = model.layers[0].input_layernorm(hidden).detach()
            layer, written_out = layer.self_attn, attention_64
        arguments = attention_inputs(model, hidden)
        with torch.no_grad():
            found = layer(**arguments)
            found = found[0] if part == "self_attn" else found
            expected = written_out(
                layer,
                hidden.double(),
                *arguments["position_embeddings"],
                wrapped.ptq_config.attention_mask_fill_value,
                folded=variant == "prefill",
            )
        points = layer.o_proj.points if part == "self_attn" else layer.points
        assert_on_the_same_steps(found, expected, points["act_out"])

    @pytest.mark.parametrize("name", ["input_layernorm", "q_norm", "k_norm", "mlp"])
    def test_norms_and_mlp_equal_an_independent_computation(self, name):
        wrapped = quantized(tiny(), "prefill", [{"input_ids": tokens(2, 24)}], deepstack=0)
        layer = wrapped.layers[0]
        module = getattr(layer.self_attn if name in ("q_norm", "k_norm") else layer, name)
        x = randn(1, 7, 2, 8) if name in ("q_norm", "k_norm") else randn(1, 7, 32)
        with torch.no_grad():
            found = module(x)
            expected = (mlp_64 if name == "mlp" else norm_64)(module, x.double())
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
                expected = model_64(wrapped, inputs, fill, folded=variant == "prefill")
            errors.append(peir(exact, last(wrapped, **inputs)))
            assert errors[-1] == pytest.approx(peir(exact, expected), rel=0.2)
        assert errors == sorted(errors)
        assert 1e-4 < errors[0] < 0.005
        assert errors[-1] > 0.3

    @VARIANTS
    def test_a_quantised_cache_step_by_step_equals_one_forward(self, variant):
        inputs = {"input_ids": tokens(2, 12)}
        wrapped = quantized(tiny(), variant, [inputs], deepstack=0, **specs("int16", "int16"))
        ids, cache, found = inputs["input_ids"], None, []
        with torch.no_grad():
            for start, end in ((0, 5), (5, 6), (6, 12)):
                output = wrapped(ids[:, start:end], past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                found.append(output.last_hidden_state)
        assert peir(last(wrapped, **inputs), torch.cat(found, dim=1)) < 1e-3

    @VARIANTS
    def test_copies_compute_the_same(self, variant):
        inputs = with_features(2, 8)
        wrapped = quantized(tiny(), variant, [inputs])
        assert torch.equal(last(copy.deepcopy(wrapped), **inputs), last(wrapped, **inputs))


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


@pytest.mark.no_cover  # measuring coverage takes a capture several times as long
class TestExport:
    @pytest.mark.parametrize("quantised", [False, True])
    @pytest.mark.parametrize(
        ("part", "variant"),
        [
            ("self_attn", "prefill"),
            ("self_attn", "prefill_reference"),
            ("layer", "prefill"),
            ("mlp", "prefill"),
            ("input_layernorm", "prefill"),
            ("k_norm", "prefill"),
        ],
    )
    def test_parts(self, variant, quantised, part):
        model = tiny(num_hidden_layers=1, **FEW_HEADS)
        wrapped = wrap(model, variant, deepstack=0)
        if quantised:
            wrappers.calibrate(wrapped, [{"input_ids": tokens(2, 8)}])
            wrappers.convert(wrapped)
        layer = wrapped.layers[0]
        module, inputs = {
            "self_attn": (layer.self_attn, attention_inputs(model, randn(1, 8, 32))),
            "layer": (layer, attention_inputs(model, randn(1, 8, 32))),
            "mlp": (layer.mlp, {"x": randn(1, 8, 32)}),
            "input_layernorm": (layer.input_layernorm, {"hidden_states": randn(1, 8, 32)}),
            "k_norm": (layer.self_attn.k_norm, {"hidden_states": randn(1, 8, 1, 8)}),
        }[part]
        program = exported(module, inputs)
        with torch.no_grad():
            expected, found = module(**inputs), program.module()(**inputs)
        if part == "self_attn":
            expected, found = expected[0], found[0]
        assert peir(expected, found) <= 1e-6
        assert_static(program)
        assert has_fake_quantize(program) == quantised

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

    def test_features_of_visual_positions_only(self):
        inputs = with_features(1, 8) | {"use_cache": False}
        wrapped = wrap(tiny(num_hidden_layers=1, **FEW_HEADS), "prefill", deepstack=1)
        program = exported(wrapped, inputs)
        with torch.no_grad():
            found = program.module()(**inputs).last_hidden_state
        assert peir(last(wrapped, **inputs), found) <= 1e-6
        assert_static(program)
