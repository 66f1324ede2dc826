"""Models that step: how inputs are laid out, what is run, and which calls belong together."""

import copy

import pytest
import torch

import tracer
import wrappers
from tests.builders.comparing import agreed
from tracer.errors import InputError, UsageError
from tracer.execution.pairing import pair
from tracer.execution.stepping import Stepping, decode_step, ending_in_steps
from tracer.models.candidates import candidate
from tracer.models.loading import Loaded, load

SIDES = ("left", "right")


def wrap(model: torch.nn.Module, variant: str) -> torch.nn.Module:
    return wrappers.prepare(model, wrappers.PTQConfig(variant=variant))


def visible_logits(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return logits[mask.bool()]


def calls_of_heads(comparison: tracer.Comparison) -> list[tuple[str, int]]:
    rows = [row for row in comparison.rows if "lm_head" in row.module and row.is_output]
    return [(row.module, row.call) for row in rows]


@pytest.fixture(
    scope="module", params=["tiny-llama", pytest.param("stories260K", marks=pytest.mark.slow)]
)
def loaded(request: pytest.FixtureRequest) -> dict[str, Loaded]:
    """A Llama with three sequences of 48, 40 and 32 tokens, by the side that is padded."""
    name = request.param
    if name == "stories260K":
        name = request.getfixturevalue("shared_data") / name / "hf"
    return {side: load(name, batch=3, sequence_length=48, padding=side) for side in SIDES}


class TestLayout:
    def test_the_picture(self):
        a, b, c, d, e, f, g, h, i = range(1, 10)
        inputs = {
            "input_ids": torch.tensor([[a, b, c, d, 0, 0], [e, f, g, h, i, 0]]),
            "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]),
        }
        made = ending_in_steps(inputs, 2)
        assert made["input_ids"].tolist() == [[a, b, c, c, d], [e, f, g, h, i]]
        assert made["attention_mask"].tolist() == [[1, 1, 0, 1, 1], [1, 1, 1, 1, 1]]
        assert made["position_ids"].tolist() == [[0, 1, 1, 2, 3], [0, 1, 2, 3, 4]]

    def test_padding_on_the_left_stays(self):
        inputs = {
            "input_ids": torch.tensor([[0, 0, 3, 4, 5], [1, 2, 3, 4, 5]]),
            "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
        }
        made = ending_in_steps(inputs, 2)
        assert torch.equal(made["input_ids"], inputs["input_ids"])
        assert torch.equal(made["attention_mask"], inputs["attention_mask"])
        assert made["position_ids"].tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]

    @pytest.mark.parametrize("side", SIDES)
    def test_again_changes_nothing(self, loaded, side: str):
        once = ending_in_steps(loaded[side].inputs, 7)
        again = ending_in_steps(once, 7)
        assert once.keys() == again.keys()
        assert all(torch.equal(again[name], value) for name, value in once.items())

    def test_without_a_mask(self):
        made = ending_in_steps({"input_ids": torch.tensor([[5, 6, 7]])}, 1)
        assert made["attention_mask"].tolist() == [[1, 1, 1]]
        assert made["input_ids"].tolist() == [[5, 6, 7]]

    @pytest.mark.parametrize(("inputs", "message"), [
        ({"pixels": torch.ones(1, 3)}, "found pixels; decode steps take input_ids"),
        ({"input_ids": torch.ones(3)}, r"found input_ids of shape \[3\]"),
        (
            {"input_ids": torch.ones(1, 3), "attention_mask": torch.ones(1, 1, 3, 3)},
            r"an attention_mask of shape \[1, 1, 3, 3\]",
        ),
        ({"input_ids": torch.ones(1, 2)}, "a row has 2 tokens, of which 2 would be decode"),
        (
            {
                "input_ids": torch.ones(2, 4),
                "attention_mask": torch.tensor([[1] * 4, [0, 0, 1, 1]]),
            },
            "a row has 2 tokens, of which 2",
        ),
    ])  # fmt: skip
    def test_refused(self, inputs: dict[str, torch.Tensor], message: str):
        with pytest.raises(InputError, match=message):
            ending_in_steps(inputs, 2)

    def test_an_image_is_no_step(self):
        loaded = load("tiny-qwen3-vl")
        assert ending_in_steps(loaded.inputs, 15)["input_ids"].shape == (1, 84)
        with pytest.raises(InputError, match="the last 16 tokens of a row hold some of an image"):
            ending_in_steps(loaded.inputs, 16)

    def test_no_steps(self, loaded):
        with pytest.raises(UsageError, match="steps 0: expected at least 1"):
            Stepping(loaded["left"].model, steps=0)


class TestRun:
    @pytest.mark.parametrize("side", SIDES)
    def test_the_logits_are_those_of_one_forward(self, loaded, side: str):
        model, inputs = loaded[side].model, loaded[side].inputs
        laid_out = ending_in_steps(inputs, 8)
        with torch.no_grad():
            found = Stepping(model, steps=8)(**inputs)
            at_once = model(**laid_out).logits
            alone = [
                model(row[visible.bool()][None]).logits[0]
                for row, visible in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
            ]
        mask = laid_out["attention_mask"]
        for expected in (visible_logits(at_once, mask), torch.cat(alone)):
            error = (visible_logits(found, mask) - expected).abs().max()
            assert error / (expected.max() - expected.min()) < 2e-6

    @pytest.mark.parametrize("driver", [Stepping, tracer.Stepped])
    def test_models_stay_in_their_modes(self, driver):
        model = load("tiny-llama").model
        model.model.layers[1].train()
        before = [module.training for module in model.modules()]
        driver(model, steps=1)
        assert [module.training for module in model.modules()] == before

    @pytest.mark.parametrize("side", SIDES)
    def test_one_step(self, loaded, side: str):
        model, inputs = loaded[side].model, loaded[side].inputs
        step = decode_step(model, inputs)
        lengths = inputs["attention_mask"].sum(1)
        assert step["input_ids"].shape == (3, 1)
        assert step["position_ids"].flatten().tolist() == (lengths - 1).tolist()
        assert step["past_key_values"].get_seq_length() == 47
        with torch.no_grad():
            found = model(**step).logits[:, 0]
            for row in range(3):
                ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]
                expected = model(ids).logits[0, -1]
                error = (found[row] - expected).abs().max()
                assert error / (expected.max() - expected.min()) < 2e-6

    def test_comparing_leaves_the_cache_of_a_step_alone(self, loaded):
        model = loaded["left"].model
        step = decode_step(model, loaded["left"].inputs)
        tracer.compare(model, wrap(model, "decode"), step)
        assert step["past_key_values"].get_seq_length() == 47


class TestCalls:
    @pytest.mark.covers
    @pytest.mark.no_cover  # many steps through the same lines
    @pytest.mark.parametrize("side", SIDES)
    def test_right_pairs_agree_step_by_step(self, loaded, side: str):
        model, inputs = loaded[side].model, loaded[side].inputs
        reference = Stepping(model, steps=8)
        prefill, decode = wrap(model, "prefill"), wrap(model, "decode")
        for made in (Stepping(prefill, decode, steps=8), Stepping(decode, steps=8)):
            comparison = agreed(reference, made, inputs)
            assert all(row.agrees for row in comparison.rows)
            coverage = comparison.coverage
            assert len(coverage.paired_modules) == len(list(model.modules()))
            assert coverage.reference_only == coverage.candidate_only == ()
            assert coverage.unmatched_calls == ()
            assert calls_of_heads(comparison) == [("lm_head", call) for call in range(9)]

    @pytest.mark.parametrize("side", SIDES)
    def test_a_single_step_agrees(self, loaded, side: str):
        model = loaded[side].model
        comparison = tracer.compare(
            model, wrap(model, "decode"), decode_step(model, loaded[side].inputs)
        )
        assert comparison.verdict.agrees
        assert all(row.agrees for row in comparison.rows)
        assert len(comparison.coverage.paired_modules) == len(list(model.modules()))

    @pytest.mark.covers
    @pytest.mark.parametrize(("stage", "call"), [("prefill", 0), ("decode", 1)])
    def test_a_mistake_in_one_of_two_models(self, loaded, stage: str, call: int):
        model, inputs = loaded["left"].model, loaded["left"].inputs
        made = Stepping(wrap(model, "prefill"), wrap(model, "decode"), steps=3)
        path = "model.layers.1.mlp.up_proj"
        wrong = made.get_submodule(f"{stage}.{path}")
        wrong.weight = torch.nn.Parameter(wrong.weight.detach() * 1.5)
        verdict = tracer.compare(Stepping(model, steps=3), made, inputs).verdict
        assert (verdict.origin.module, verdict.origin.kind) == (path, "parameter")
        assert verdict.symptom.call == call
        assert verdict.confirmed

    @pytest.mark.slow
    def test_a_step_that_is_given_something_else(self, loaded):
        model, inputs = loaded["left"].model, loaded["left"].inputs

        class Wrong(Stepping):
            def step_inputs(self, *args):
                step = super().step_inputs(*args)
                return {**step, "position_ids": step["position_ids"] + 1}

        verdict = tracer.compare(Stepping(model, steps=3), Wrong(model, steps=3), inputs).verdict
        assert (verdict.origin.module, verdict.origin.argument) == ("", "position_ids")
        assert verdict.symptom.call == 1
        assert verdict.confirmed
        assert (
            "What runs it passes a wrong `position_ids` to the root module and 2 more"
            in verdict.explanation
        )

    def test_names_of_two_models_lead_to_those_of_one(self, loaded):
        model = loaded["left"].model
        pairing = pair(
            Stepping(model, steps=1), Stepping(copy.deepcopy(model), copy.deepcopy(model), steps=1)
        )
        names = [name for name, _ in model.named_modules()]
        assert list(pairing.reference) == names
        assert pairing.pairs["prefill"] == pairing.pairs["decode"] == ""
        assert pairing.pairs["prefill.lm_head"] == pairing.pairs["decode.lm_head"] == "lm_head"
        assert len(pairing.pairs) == 2 * len(names)

    @pytest.mark.covers
    def test_two_models_keep_their_stages(self, loaded):
        model, inputs = loaded["left"].model, loaded["left"].inputs
        first, second = (
            Stepping(copy.deepcopy(model), wrap(model, "decode"), steps=2) for _ in range(2)
        )
        comparison = agreed(first, second, inputs)
        assert calls_of_heads(comparison) == [
            ("prefill.lm_head", 0), ("decode.lm_head", 0), ("decode.lm_head", 1),
        ]  # fmt: skip
        model = loaded["left"].model
        two = Stepping(model, wrap(model, "decode"), steps=1)
        with pytest.raises(UsageError, match="give the one model as the reference"):
            tracer.compare(two, Stepping(model, steps=1), loaded["left"].inputs)

    def test_rules_for_names_apply_within_each_model(self, loaded):
        model, inputs = loaded["left"].model, loaded["left"].inputs
        renamed = copy.deepcopy(model)
        renamed.head = renamed.lm_head
        del renamed.lm_head
        renamed.forward = lambda **kwargs: _with_head(renamed, **kwargs)
        comparison = tracer.compare(
            Stepping(model, steps=2),
            Stepping(renamed, steps=2),
            inputs,
            rename={"^head$": "lm_head"},
        )
        assert comparison.verdict.agrees
        assert "lm_head" in comparison.coverage.paired_modules


def _with_head(model, **kwargs):
    from transformers.modeling_outputs import CausalLMOutputWithPast

    states = model.model(**kwargs)
    return CausalLMOutputWithPast(
        logits=model.head(states.last_hidden_state), past_key_values=states.past_key_values
    )


class TestCandidates:
    @pytest.mark.covers
    def test_of_steps(self):
        loaded = load("tiny-llama", batch=2)
        made = candidate(loaded, "wrapped", variant="decode", steps=3)
        assert isinstance(made, Stepping)
        kinds = [type(part.model.layers[0].self_attn).__name__ for part in made.children()]
        assert kinds == ["QuantLlamaAttentionPrefill", "QuantLlamaAttentionDecode"]
        alone = candidate(loaded, "sdpa", steps=3)
        assert alone.prefill is alone.decode
        for other in (made, alone):
            agreed(Stepping(loaded.model, steps=3), other, loaded.inputs)

    @pytest.mark.covers
    def test_quantised_on_decode_steps_after_a_float_prefill(self):
        loaded = load("tiny-llama", batch=2)
        made = candidate(loaded, "quantized", variant="decode")
        expected = wrap_quantized(loaded, steps=8)
        step = decode_step(loaded.model, loaded.inputs)
        with torch.no_grad():
            assert torch.equal(
                made(**copy.deepcopy(step)).logits, expected(**copy.deepcopy(step)).logits
            )
            exact = loaded.model(**copy.deepcopy(step)).logits
            found = made(**step).logits
        assert 1e-3 < (found - exact).abs().max() / (exact.max() - exact.min()) < 0.5

    def test_quantised_on_the_text_after_an_image(self):
        loaded = load("tiny-qwen3-vl", sequence_length=14)  # five tokens come after the image
        made = candidate(loaded, "quantized", variant="decode")
        step = decode_step(loaded.model, loaded.inputs)
        with torch.no_grad():
            exact = loaded.model(**copy.deepcopy(step)).logits
            found = made(**step).logits
        assert 1e-3 < (found - exact).abs().max() / (exact.max() - exact.min()) < 0.5

    @pytest.mark.parametrize("variant", ["decode", "prefill"])
    def test_quantised_steps(self, variant: str):
        loaded = load("tiny-llama", batch=2)
        made = candidate(loaded, "quantized", variant=variant, steps=4)
        modes = {module.mode for _, module in wrappers.iter_wrappers(made)}
        assert modes == {wrappers.Mode.QUANT}
        with torch.no_grad():
            exact = Stepping(loaded.model, steps=4)(**loaded.inputs)[:, -4:]
            found = made(**loaded.inputs)[:, -4:]
        assert 1e-3 < (found - exact).abs().max() / (exact.max() - exact.min()) < 0.5


def wrap_quantized(loaded: Loaded, steps: int) -> torch.nn.Module:
    spec = wrappers.affine("uint8")
    config = wrappers.PTQConfig(activation=spec, weight=spec, variant="decode")
    decode = wrappers.prepare(loaded.model, config)
    wrappers.calibrate_decode(loaded.model, decode, [loaded.inputs], steps=steps, source="float")
    return wrappers.convert(decode)
