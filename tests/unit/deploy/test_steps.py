"""Steps, the static graphs of Llama: against the float model over a DynamicCache."""

import copy

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import wrappers
from tests.builders.agreement import peir
from tests.builders.llama import tiny, tokens, wrap
from tests.builders.steps import PARTS, FloatStep, arguments, causal, flat, scaled, tables
from wrappers.attention.cache import StepCache
from wrappers.attention.rope import negate_first_half
from wrappers.deploy.steps import Step
from wrappers.errors import ModelInputError, WrapError

EACH_PART = pytest.mark.parametrize("part", PARTS)
LIMIT = 2e-6


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def pair(request):
    """A float model, and its decode variant quantised to int16; tests leave both as they are."""
    model = tiny(request.param)
    wrapped = wrap(model, "decode", activation=wrappers.affine("int16"))
    prompts = [tokens(2, 24, seed) for seed in (5, 6)]
    wrappers.calibrate_decode(model, wrapped, prompts, steps=8, source="float")
    return model, wrappers.convert(wrapped)


class TestQuantisationOff:
    @EACH_PART
    @pytest.mark.parametrize(("variant", "batch", "past_length", "query_length"), [
        ("decode", 1, 1, 1), ("decode", 3, 7, 1), ("decode", 1, 40, 1), ("decode", 1, 8, 5),
        ("decode", 2, 3, 9), ("decode", 2, 0, 6), ("prefill", 2, 0, 6), ("prefill", 2, 5, 1),
        ("prefill_reference", 2, 0, 6), ("prefill_reference", 2, 5, 3),
    ])  # fmt: skip
    def test_equals_the_float_model_over_a_dynamic_cache(
        self, part, variant, batch, past_length, query_length
    ):
        model = tiny()
        wrapped = wrap(model, variant)
        reference = FloatStep(model, part, tokens(batch, past_length + query_length), past_length)
        step, given = arguments(model, wrapped, part, reference, past_length)
        with torch.no_grad():
            output, *new = step(*given)
        assert output.shape == reference.output.shape
        assert peir(reference.output, output) <= LIMIT
        expected = flat(scaled(reference.new, wrapped), step.layers)
        assert len(new) == len(expected) == 2 * len(step.layers)
        for found, wanted in zip(new, expected, strict=True):
            assert found.shape == (batch, 2, query_length, 8)
            assert peir(wanted, found) <= LIMIT

    @EACH_PART
    @pytest.mark.parametrize("query_length", [1, 3])
    def test_sequences_of_different_lengths_in_one_batch(self, part, query_length):
        model, slots, lengths = tiny(), 12, (9, 1, 12)
        wrapped = wrap(model, "decode")
        rows = [
            FloatStep(model, part, tokens(1, length + query_length, seed=length), length)
            for length in lengths
        ]
        step = Step(wrapped.get_submodule(PARTS[part]))
        # What unused slots hold must not matter, as long as it is what keys and values may be.
        generator = torch.Generator().manual_seed(3)
        past = [torch.randn(3, 2, slots, 8, generator=generator) for _ in step.layers * 2]
        mask = causal(query_length, slots).repeat(3, 1, 1)
        for row, (length, reference) in enumerate(zip(lengths, rows, strict=True)):
            mask[row, :, length:slots] = -torch.inf
            states = flat(scaled(reference.past, wrapped), step.layers)
            for slot, filled in zip(past, states, strict=True):
                slot[row, :, :length] = filled[0]
        positions = torch.tensor(lengths)[:, None] + torch.arange(query_length)
        inputs = torch.cat([reference.inputs for reference in rows])
        with torch.no_grad():
            output, *new = step(inputs, *step.tables(*tables(model, positions)), mask, *past)
        for row, reference in enumerate(rows):
            assert peir(reference.output[0], output[row]) <= LIMIT
            expected = flat(scaled(reference.new, wrapped), step.layers)
            for found, wanted in zip(new, expected, strict=True):
                assert peir(wanted[0], found[row]) <= LIMIT

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_dtypes(self, dtype):
        model = tiny(dtype=dtype)
        reference = FloatStep(model, "causal LM", tokens(2, 9), 8)
        step, given = arguments(model, wrap(model, "decode"), "causal LM", reference, 8)
        with torch.no_grad():
            output, *new = step(*given)
        assert {states.dtype for states in (output, *new)} == {dtype}
        # float32 inside the softmax and the norms limits float64.
        assert peir(reference.output, output) <= max(LIMIT, 8 * torch.finfo(dtype).eps)

    def test_calibrating_observes_what_comes_in_and_changes_no_bit(self):
        model = tiny()
        reference = FloatStep(model, "causal LM", tokens(2, 9), 8)
        wrapped = wrap(model, "decode")
        step, given = arguments(model, wrapped, "causal LM", reference, 8)
        with torch.no_grad():
            expected = step(*given)
            wrappers.calibrate(step, [given])
            for found, wanted in zip(step(*given), expected, strict=True):
                assert torch.equal(found, wanted)
        for layer, points in enumerate(each.self_attn.points for each in wrapped.model.layers):
            for name, states in zip(
                ("past_key", "past_value"), given[4:][2 * layer :], strict=False
            ):
                observer = points[name].observer
                assert (observer.minimum, observer.maximum) == states.aminmax()
        wrappers.convert(step)


class TestMask:
    def test_hides_by_the_fill_value_of_the_config(self):
        model = tiny()
        attention = model.model.layers[1].self_attn
        reference = FloatStep(model, "attention", tokens(2, 9), 8)
        wrapped = wrap(model, "decode", attention_mask_fill_value=-2.0)
        step, (inputs, cos, sin, mask, *past) = arguments(model, wrapped, "attention", reference, 8)
        mask = mask.clone()
        mask[0, :, :5] = -torch.inf
        cache = DynamicCache()
        cache.update(*reference.past[0], 0)
        cache.update(*reference.past[1], 1)
        with torch.no_grad():
            expected, _ = attention(
                inputs, tables(model, torch.tensor([[8]])), mask.clamp(min=-2.0)[:, None], cache
            )
            exact = reference.output
            found, *_ = step(inputs, cos, sin, mask, *past)
        assert peir(expected, found) <= LIMIT
        assert peir(exact[0], found[0]) > 0.01  # it does matter here

    @pytest.mark.parametrize("convert", [
        lambda visible: torch.where(visible, 0.0, -torch.inf),
        lambda visible: torch.where(visible, 0.0, -1e4),
        lambda visible: torch.where(visible, 0.0, -120.0),
        lambda visible: visible,
        lambda visible: visible.long(),
    ], ids=["-inf", "-1e4", "fill", "bool", "int64"])  # fmt: skip
    def test_of_any_kind(self, convert):
        model = tiny()
        reference = FloatStep(model, "model", tokens(2, 9), 8)
        step, (inputs, cos, sin, mask, *past) = arguments(
            model, wrap(model, "decode"), "model", reference, 8
        )
        visible = mask == 0
        visible[0, :, :3] = False
        with torch.no_grad():
            expected = step(inputs, cos, sin, torch.where(visible, 0.0, -3e38), *past)
            found = step(inputs, cos, sin, convert(visible), *past)
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one, other)


class TestQuantisationOn:
    @EACH_PART
    @pytest.mark.parametrize("query_length", [1, 4])
    def test_equals_the_forward_of_transformers_bit_for_bit(self, pair, part, query_length):
        model, wrapped = pair
        reference = FloatStep(model, part, tokens(2, 8 + query_length), 8)
        step, given = arguments(model, wrapped, part, reference, 8)
        cache = StepCache(dict(enumerate(scaled(reference.past, wrapped))))
        positions = torch.arange(8, 8 + query_length)[None]
        inputs, mask = reference.inputs, given[3][:, None]
        shared = {"attention_mask": mask, "past_key_values": cache}
        rope = {"position_embeddings": tables(model, positions)}
        module = wrapped.get_submodule(PARTS[part])
        with torch.no_grad():
            expected = {
                "attention": lambda: module(inputs, **rope, **shared)[0],
                "layer": lambda: module(inputs, **rope, **shared),
                "model": lambda: (
                    module(inputs_embeds=inputs, position_ids=positions, **shared).last_hidden_state
                ),
                "causal LM": lambda: module(inputs, position_ids=positions, **shared).logits,
            }[part]()
            output, *new = step(*given)
        assert torch.equal(output, expected)
        assert not torch.equal(output, reference.output)
        assert list(cache.new) == step.layers
        for found, wanted in zip(new, flat(cache.new, step.layers), strict=True):
            assert torch.equal(found, wanted)

    def test_of_a_quantised_prefill_likewise(self):
        model = tiny()
        wrapped = wrap(model, "prefill")
        wrappers.calibrate(wrapped, [tokens(2, 8)])
        wrappers.convert(wrapped)
        reference = FloatStep(model, "causal LM", tokens(2, 8), 0)
        step, given = arguments(model, wrapped, "causal LM", reference, 0)
        with torch.no_grad():
            output, *_ = step(*given)
            assert torch.equal(output, wrapped(tokens(2, 8)).logits)


class TestStructure:
    def test_the_sine_table_is_in_the_form_of_the_variant(self):
        model = tiny()
        cos, sin = tables(model, torch.arange(5)[None])
        for variant, expected in (
            ("decode", negate_first_half(sin)),
            ("prefill", negate_first_half(sin)),
            ("prefill_reference", sin),
        ):
            found = Step(wrap(model, variant).model.layers[0]).tables(cos, sin)
            assert found[0] is cos
            assert torch.equal(found[1], expected)

    @EACH_PART
    def test_layers_are_those_that_take_a_past(self, part):
        step = Step(wrap(tiny(), "decode").get_submodule(PARTS[part]))
        assert step.layers == ([1] if part in ("attention", "layer") else [0, 1])

    def test_a_copy_computes_the_same(self, pair):
        model, wrapped = pair
        reference = FloatStep(model, "layer", tokens(1, 9), 8)
        step, given = arguments(model, wrapped, "layer", reference, 8)
        with torch.no_grad():
            for one, other in zip(step(*given), copy.deepcopy(step)(*given), strict=True):
                assert torch.equal(one, other)

    @pytest.mark.parametrize(
        "take",
        [
            lambda model: model.model.layers[0].self_attn, lambda model: model,
            lambda model: wrap(model, "decode").model.layers[0].mlp,
            lambda model: wrap(model, "decode").model.layers, lambda model: nn.Linear(2, 2),
        ],
        ids=["float-attention", "float-model", "mlp", "list-of-layers", "linear"],
    )  # fmt: skip
    def test_what_has_no_graph_is_refused(self, take):
        module = take(tiny())
        with pytest.raises(WrapError, match=f"^{type(module).__name__} has no graph of a step"):
            Step(module)

    @pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
    def test_a_past_of_another_number_of_layers_is_refused(self, count):
        model = tiny()
        reference = FloatStep(model, "model", tokens(1, 5), 4)
        step, given = arguments(model, wrap(model, "decode"), "model", reference, 4)
        past = (given[4:] * 2)[:count]
        message = rf"found {count} tensors of the past; expected a key and a value for each of 2"
        with pytest.raises(ModelInputError, match=message):
            step(*given[:4], *past)

    @pytest.mark.parametrize("shape", [(1, 1, 4), (1, 1, 6), (1, 2, 5), (3, 1, 5)])
    def test_a_mask_that_does_not_fit_is_refused(self, shape):
        model = tiny()
        reference = FloatStep(model, "model", tokens(2, 5), 4)
        step, (inputs, cos, sin, _, *past) = arguments(
            model, wrap(model, "decode"), "model", reference, 4
        )
        with pytest.raises(ModelInputError, match="An attention mask of shape"):
            step(inputs, cos, sin, torch.zeros(shape), *past)


class TestExampleInputs:
    @pytest.mark.parametrize("past", [0, 5])
    def test_they_are_those_of_the_float_model(self, past) -> None:
        """With hidden states and a past that are random: tables and mask are the model's own."""
        model = tiny()
        step = Step(wrap(model, "decode").model.layers[0])
        inputs, cos, sin, mask, *kept = step.example_inputs(tokens=3, past=past, batch=2)
        positions = torch.arange(past, past + 3)[None]
        expected = step.tables(*model.model.rotary_emb(inputs, positions))
        assert torch.allclose(cos, expected[0], atol=1e-6)
        assert torch.allclose(sin, expected[1], atol=1e-6)
        assert mask.shape == (1, 3, past + 3)
        visible = torch.ones(3, past + 3).tril(past)
        assert torch.equal(mask[0], (1 - visible) * step.masks.fill_value)
        assert [tuple(t.shape) for t in kept] == [(2, 2, past, 8)] * (2 if past else 0)
        again = step.example_inputs(tokens=3, past=past, batch=2)
        assert torch.equal(again[0], inputs)
        assert not torch.equal(step.example_inputs(tokens=3, past=past, batch=2, seed=1)[0], inputs)

    def test_what_is_refused(self) -> None:
        step = Step(wrap(tiny(), "prefill"))
        for options in ({"tokens": 0}, {"past": -1}, {"batch": 0}):
            with pytest.raises(ModelInputError, match="expected at least 1 token"):
                step.example_inputs(**options)

    def test_in_the_dtype_of_the_model(self) -> None:
        step = Step(wrap(tiny().bfloat16(), "prefill").model)
        assert {tensor.dtype for tensor in step.example_inputs()} == {torch.bfloat16}
