"""What the text decoders of all families keep to: off they are the float model, calibrating changes
nothing, quantised they err as an independent computation does, and they export."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

import wrappers
from tests.builders.agreement import (
    IMPLEMENTATIONS,
    assert_modules_agree,
    padding,
    peir,
    with_checkpointing,
)
from tests.builders.in_float64 import assert_on_the_same_steps, attention_64, mlp_64
from tests.builders.llama import specs, tokens
from tests.builders.text_families import CASES, FOLDED
from wrappers.errors import ModelInputError, WrapError

LIMIT = 2e-6
FACTOR = 8**-0.5


def states(*shape, seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attention_arguments(case, model, hidden_states):
    """Of an attention: tables for positions from 0, and a causal mask of the fill value."""
    decoder, length = case.family.decoder(model), hidden_states.shape[1]
    positions = torch.arange(length).expand(3, 1, -1)
    positions = positions if case.family.name == "qwen3_vl" else positions[0]
    return {
        "hidden_states": hidden_states,
        "position_embeddings": decoder.rotary_emb(hidden_states, positions),
        "attention_mask": torch.full((length, length), -120.0).triu(1)[None, None],
    }


@CASES
class TestQuantisationOff:
    @pytest.mark.parametrize(("implementation", "batch", "length", "side"), [
        ("eager", 1, 1, None), ("sdpa", 1, 7, None), ("eager", 3, 16, "left"),
        ("sdpa", 3, 16, "left"), ("eager", 3, 16, "right"), ("sdpa", 3, 16, None),
        ("eager", 1, 97, None),
    ])  # fmt: skip
    def test_every_module_equals_the_float_model(self, case, implementation, batch, length, side):
        model, wrapped = case.pair(implementation)
        assert_modules_agree(model, wrapped, LIMIT, **case.family.inputs(batch, length, side))

    @pytest.mark.parametrize(("implementation", "dtype"), [
        ("eager", torch.float64), ("sdpa", torch.float64), ("eager", torch.bfloat16),
        ("sdpa", torch.float16),
    ])  # fmt: skip
    def test_dtypes(self, case, implementation, dtype):
        model, wrapped = case.pair(implementation, dtype=dtype)
        # float32 inside the softmax and the norms limits float64; the others have their own step.
        limit = max(LIMIT, 8 * torch.finfo(dtype).eps)
        # transformers' eager attention gives NaN for padding on the left in float64.
        side = "right" if dtype == torch.float64 else "left"
        assert_modules_agree(model, wrapped, limit, **case.family.inputs(3, 12, side))

    def test_embeddings_instead_of_ids(self, case):
        model, wrapped = case.pair()
        embeds = case.family.decoder(model).embed_tokens(tokens(2, 6)).detach()
        assert_modules_agree(model, wrapped, LIMIT, inputs_embeds=embeds)

    @IMPLEMENTATIONS
    def test_hidden_states_and_attentions(self, case, implementation):
        model, wrapped = case.pair(implementation)
        eager = implementation == "eager"
        inputs = case.family.inputs(2, 8)
        inputs |= {"output_hidden_states": True, "output_attentions": eager}
        with torch.no_grad():
            # The float model first and last: neither installs its hooks on the other.
            before, found, after = (each(**inputs) for each in (model, wrapped, model))
        layers = len(case.family.decoder(model).layers)
        for output in (before, found, after):
            assert len(output.hidden_states) == layers + 1
        for r, c in zip(before.hidden_states, found.hidden_states, strict=True):
            assert peir(r, c) < LIMIT
        if eager:
            for r, c in zip(before.attentions, found.attentions, strict=True):
                assert peir(r, c) < 4e-6
        else:
            assert found.attentions is None and before.attentions is None

    def test_tuples_instead_of_outputs(self, case):
        inputs = case.family.inputs(1, 6) | {"return_dict": False}
        with torch.no_grad():
            expected, found = (model(**inputs) for model in case.pair())
        assert type(found) is type(expected) is tuple
        assert len(found) == len(expected)
        assert peir(expected[0], found[0]) < LIMIT

    @pytest.mark.parametrize("prepared", [lambda model: model, with_checkpointing])
    def test_gradients_equal_those_of_the_float_model(self, case, prepared):
        model, inputs = prepared(case.family.tiny()), case.family.inputs(2, 9, "right")
        leaves = list(inputs.get("deepstack_visual_embeds", ()))
        for leaf in leaves:
            leaf.requires_grad_()
        gradients = []
        for candidate in (model, case.wrap(model)):
            parameters = dict(candidate.named_parameters()) | dict(enumerate(leaves))
            for parameter in parameters.values():
                parameter.grad = None
            case.family.result(candidate(**inputs, use_cache=False)).square().mean().backward()
            gradients.append({name: p.grad.clone() for name, p in parameters.items()})
        expected, found = gradients
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            if case.variant == "prefill" and case.family.folded in str(name):
                gradient = gradient * FACTOR  # d loss / d W of what was multiplied into W
            assert expected[name].abs().max() > 0
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)

    def test_dropout_in_training_is_that_of_the_float_model(self, case):
        if case.variant != "prefill_reference":
            pytest.skip("heads one by one draw in another order")
        model = case.family.tiny(attention_dropout=0.5).train()
        found = []
        for candidate in (model, case.wrap(model)):
            torch.manual_seed(3)
            found.append(case.family.result(candidate(**case.family.inputs(2, 9))))
        assert peir(*found) < LIMIT

    def test_moved_after_wrapping(self, case):
        inputs = case.family.inputs(1, 9)
        expected = case.run(case.family.tiny().double(), **inputs)
        assert peir(expected, case.run(case.pair()[1].double(), **inputs)) < 1e-6

    @pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
    def test_an_empty_batch_gives_an_empty_output(self, case, shape):
        found = case.run(case.pair()[1], torch.zeros(shape, dtype=torch.int64))
        assert found.shape[:2] == shape

    @pytest.mark.slow
    def test_compiled_equals_eager(self, case):
        model, wrapped = case.pair()
        attention = case.layer(wrapped).self_attn
        compiled = torch.compile(attention, backend="eager", fullgraph=True)
        inputs = attention_arguments(case, model, states(1, 8, 32))
        with torch.no_grad():
            assert torch.equal(compiled(**inputs)[0], attention(**inputs)[0])
        torch.compiler.reset()


@CASES
class TestCache:
    @pytest.mark.parametrize(("implementation", "kind", "cuts"), [
        ("eager", "dynamic", (5, 8, 9, 12)),
        ("sdpa", "none at first", (5, 8, 9, 12)),
        ("eager", "static", (4, 5, 6, 7, 8, 9, 10, 11, 12)),
        ("sdpa", "dynamic", (4, 5, 6, 7, 8, 9, 10, 11, 12)),
    ])  # fmt: skip
    def test_steps_and_chunks_equal_one_forward(self, case, implementation, kind, cuts):
        model, wrapped = case.pair(implementation)
        ids, mask = tokens(3, 12), padding(3, 12, "left")
        cache = {
            "dynamic": DynamicCache,
            "none at first": lambda: None,
            "static": lambda: StaticCache(model.config, max_cache_len=16),
        }[kind]()
        expected = case.run(model, ids, attention_mask=mask)
        seen, found = 0, []
        for end in cuts:
            with torch.no_grad():
                output = wrapped(
                    ids[:, seen:end],
                    attention_mask=mask[:, :end],
                    position_ids=torch.arange(seen, end)[None],
                    past_key_values=cache,
                    use_cache=True,
                )
            cache, seen = output.past_key_values, end
            found.append(case.family.result(output))
        # What hidden queries see depends on how many keys there are so far: compare the others.
        visible = mask.bool()
        assert peir(expected[visible], torch.cat(found, dim=1)[visible]) < LIMIT

    def test_a_cache_passes_between_the_float_and_the_wrapped_model(self, case):
        models, ids = case.pair(), tokens(2, 12)
        expected = case.run(models[0], ids)[:, 8:]
        caches = []
        for first, second in (models, models[::-1]):
            with torch.no_grad():
                cache = first(ids[:, :8], use_cache=True).past_key_values
            assert peir(expected, case.run(second, ids[:, 8:], past_key_values=cache)) < LIMIT
            caches.append(cache)
        for r, c in zip(caches[0].layers, caches[1].layers, strict=True):
            assert peir(r.keys, c.keys) < LIMIT
            assert peir(r.values, c.values) < LIMIT

    def test_a_legacy_cache_and_none(self, case):
        (model, wrapped), ids = case.pair(), tokens(2, 12)
        with torch.no_grad():
            layers = model(ids[:, :8], use_cache=True).past_key_values.layers
            legacy = tuple((layer.keys, layer.values) for layer in layers)
            output = wrapped(ids[:, 8:], past_key_values=legacy)
        assert peir(case.run(model, ids)[:, 8:], case.family.result(output)) < LIMIT
        assert isinstance(output.past_key_values, DynamicCache)
        assert output.past_key_values.get_seq_length() == 12
        assert legacy[0][0].shape[2] == 8
        _, wrapped = case.pair()
        with torch.no_grad():
            assert wrapped(tokens(1, 4), use_cache=False).past_key_values is None
            assert wrapped(tokens(1, 4)).past_key_values.get_seq_length() == 4


@CASES
class TestStructure:
    @pytest.mark.parametrize("given", [{}, {"input_ids", "inputs_embeds"}])
    def test_ids_or_embeddings_exactly_one(self, case, given):
        values = {"input_ids": tokens(1, 3), "inputs_embeds": torch.zeros(1, 3, 32)}
        with pytest.raises(ModelInputError, match="exactly one"):
            case.pair()[1](**{name: values[name] for name in given})

    @pytest.mark.parametrize("part", ["self_attn", None])
    def test_missing_position_embeddings_are_named(self, case, part):
        layer = case.layer(case.pair()[1])
        with pytest.raises(ModelInputError, match="position_embeddings"):
            (layer if part is None else layer.self_attn)(hidden_states=torch.zeros(1, 3, 32))


class TestFolding:
    @CASES
    def test_the_factor_is_declared(self, case):
        model, wrapped = case.pair()
        x = states(2, 32) if case.family.folded == "k_proj" else states(1, 5, 2, 8)
        plain, folded = (
            getattr(case.layer(m).self_attn, case.family.folded) for m in (model, wrapped)
        )
        factor = FACTOR if case.variant == "prefill" else 1.0
        with torch.no_grad():
            torch.testing.assert_close(folded(x), plain(x) * factor)
            torch.testing.assert_close(folded.to_reference_output(folded(x)), plain(x))

    @FOLDED
    def test_what_cannot_be_folded_into_is_refused(self, case):
        model = case.family.tiny()
        attention = case.family.decoder(model).layers[1].self_attn
        other = type("Adapter", (type(getattr(attention, case.family.folded)),), {})
        adapter = other(8) if case.family.folded == "k_norm" else other(32, 16, bias=False)
        setattr(attention, case.family.folded, adapter)
        with pytest.raises(WrapError, match=rf"layers\.1\.self_attn\.{case.family.folded} is a A"):
            case.wrap(model)
        wrapped = case.family.prepare(model, "prefill_reference")
        assert case.run(wrapped, tokens(1, 4)).shape[:2] == (1, 4)


@CASES
class TestQuantisationOn:
    @pytest.mark.parametrize("which", range(3))
    def test_attention_equals_an_independent_computation(self, case, which):
        activation, weight = case.family.specs[which]
        model, ids = case.family.tiny(), tokens(2, 24)
        given = [case.family.inputs(2, 24)]
        wrapped = case.quantized(given, model, **specs(activation, weight))
        attention = case.layer(wrapped).self_attn
        layer = case.layer(model)
        with torch.no_grad():
            embedded = case.family.decoder(model).embed_tokens(ids[:1])
            inputs = attention_arguments(case, model, layer.input_layernorm(embedded))
            found, exact = (each(**inputs)[0] for each in (attention, layer.self_attn))
            cos, sin = (table[0] for table in inputs["position_embeddings"])
            mask = inputs["attention_mask"][0, 0]
            hidden = inputs["hidden_states"][0]
            expected, _, _ = attention_64(attention, hidden, cos, attention.sine_table(sin), mask)
        assert_on_the_same_steps(found[0], expected, attention.o_proj.points["act_out"])
        assert peir(exact[0], found[0]) == pytest.approx(peir(exact[0], expected), rel=0.2)

    def test_mlp_equals_an_independent_computation(self, case):
        mlp = case.layer(case.quantized([case.family.inputs(2, 24)])).mlp
        x = states(1, 7, 32, seed=4) * 0.5
        with torch.no_grad():
            found, expected = mlp(x), mlp_64(mlp, x.double())
        assert_on_the_same_steps(found, expected, mlp.down_proj.points["act_out"])

    def test_a_cache_step_by_step_equals_one_forward(self, case):
        ids, spec = tokens(2, 12), wrappers.affine("int16")
        wrapped = case.quantized([case.family.inputs(2, 12)], activation=spec, weight=spec)
        cache, found = None, []
        with torch.no_grad():
            for start, end in ((0, 5), (5, 6), (6, 12)):
                output = wrapped(ids[:, start:end], past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                found.append(case.family.result(output))
        assert peir(case.run(wrapped, ids), torch.cat(found, dim=1)) < 1e-3


@pytest.mark.covers
@FOLDED
@pytest.mark.no_cover  # measuring coverage takes a capture several times as long
def test_a_quantised_attention_exports(case):
    model = case.family.tiny(num_hidden_layers=2)
    attention = case.layer(case.quantized([case.family.inputs(2, 8)], model)).self_attn
    inputs = attention_arguments(case, model, states(1, 8, 32))
    with torch.no_grad():
        program = torch.export.export(attention, (), inputs)
        assert torch.equal(attention(**inputs)[0], program.module()(**inputs)[0])
    operators = [str(node.target) for node in program.graph.nodes]
    assert any("fake_quantize_per_tensor" in name for name in operators)
    assert not any("chunk" in name or "split" in name for name in operators)
