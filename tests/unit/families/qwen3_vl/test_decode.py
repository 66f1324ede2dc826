"""Qwen3-VL in decode: steps after images, turns with further images, calibration, graphs."""

import pytest
import torch

import wrappers
from tests.builders.agreement import IMPLEMENTATIONS, peir
from tests.builders.qwen3_vl_whole import EXAMPLES, batch_of, joined, tiny, wrap
from wrappers.core.point import Mode
from wrappers.deploy.prompts import Prompts
from wrappers.deploy.runtime import run_prefill, turn_inputs
from wrappers.deploy.steps import Step
from wrappers.errors import ModelInputError, UnseenObserverError

LIMIT = 3e-6
PAIRS = pytest.mark.parametrize("prefill", ["float", "prefill", "prefill_reference"])
TURNS = {
    "images": (
        batch_of([3, ("image", (1, 4, 6)), 4]),
        batch_of([2, ("image", (1, 4, 2)), 3], seed=5),
        batch_of([1, ("image", (1, 2, 2)), ("image", (1, 2, 6)), 2], seed=6),
    ),
    "text first": (batch_of([6]), batch_of([2, ("image", (1, 4, 4)), 3], seed=5)),
    "padded": (
        batch_of([3, ("image", (1, 4, 6)), 4], [5, ("video", (2, 2, 2)), 2], [4]),
        batch_of([2, ("video", (2, 4, 2)), 6], [3, ("image", (1, 4, 4)), 2], [1], seed=5),
        batch_of([1], [4], [2, ("image", (1, 2, 4)), 1], seed=6),
    ),
}
BATCHES = [
    batch_of(
        [3, ("image", (1, 4, 6)), 8], [6, ("image", (1, 2, 2)), ("image", (1, 6, 2)), 7], [12]
    ),
    batch_of([2, ("video", (2, 4, 4)), 9], seed=2),
]


def runtime(model, prefill, capacity=90):
    """Of a float model, or of wrapped copies of it, quantisation off."""
    if prefill == "float":
        return wrappers.Runtime(model, capacity=capacity)
    return wrappers.Runtime(wrap(model, prefill), wrap(model, "decode"), capacity=capacity)


def generated(model, inputs, count):
    """The new tokens of transformers' own generate, [B, count]."""
    with torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=count, do_sample=False, eos_token_id=None)
    return made[:, inputs["input_ids"].shape[1] :]


class TestRuntime:
    @PAIRS
    @pytest.mark.parametrize("example", EXAMPLES)
    def test_generates_what_transformers_does(self, prefill, example):
        model = tiny("sdpa")
        expected = generated(model, EXAMPLES[example](), 12)
        generator = runtime(model, prefill)
        for side in ("left", "right"):
            found = generator.generate(**EXAMPLES[example](side=side), max_new_tokens=12)
            assert torch.equal(found, expected)

    @PAIRS
    @IMPLEMENTATIONS
    @pytest.mark.parametrize("turns", TURNS)
    def test_turns_with_further_images(self, prefill, implementation, turns):
        model = tiny(implementation)
        chat, said = runtime(model, prefill).conversation(), []
        for turn in TURNS[turns]:
            found = chat.generate(**turn, max_new_tokens=5)
            expected = generated(model, joined(*said, turn), 5)
            assert torch.equal(found, expected)
            said += [turn, found]

    def test_an_appended_image_gives_the_logits_of_one_forward(self):
        model, (first, second, _) = tiny(), TURNS["padded"]
        wrapped = wrap(model, "decode")
        prompts, turn = Prompts.packed(first), Prompts.packed(second)
        with torch.no_grad():
            _, slots = run_prefill(model, wrapped, prompts, 40, logits_to_keep=1)
            cache = slots.step()
            inputs, deltas = turn_inputs(wrapped, turn, slots, cache)
            found = wrapped(**inputs).logits
            whole = joined(first, second)
            expected = model(**whole).logits
        known = {name: value for name, value in whole.items() if "pixel" not in name}
        _, offsets = model.model.get_rope_index(**known)
        assert torch.equal(slots.deltas + deltas, offsets.squeeze(1))
        for row, length in enumerate(turn.lengths.tolist()):
            assert peir(expected[row, -length:], found[row, :length]) < LIMIT

    def test_offsets_are_not_left_in_the_model(self):
        model = tiny()
        runtime(model, "float").generate(**EXAMPLES["one image"](), max_new_tokens=2)
        assert model.model.rope_deltas is None

    def test_the_same_shapes_in_every_step(self):
        model, shapes = tiny(), []
        generator = runtime(model, "prefill", capacity=40)
        generator.decode.register_forward_pre_hook(
            lambda module, args, given: shapes.append(
                [tuple(v.shape) for v in given.values() if isinstance(v, torch.Tensor)]
            ),
            with_kwargs=True,
        )
        generator.generate(**EXAMPLES["batch"](), max_new_tokens=4)
        assert shapes == [[(3, 1), (3, 1, 1, 41), (3, 1)]] * 3


class TestCalibration:
    @pytest.mark.covers
    @pytest.mark.parametrize("source", ["float", "quantized"])
    def test_one_batch_with_an_image_reaches_every_point(self, source):
        model = tiny()
        prefill, decode = wrap(model, "prefill"), wrap(model, "decode")
        wrappers.calibrate_both(prefill, decode, BATCHES, steps=4, source=source)
        decode = wrappers.convert(decode)
        prefill = wrappers.convert(prefill) if source == "float" else prefill
        assert {module.mode for _, module in wrappers.iter_wrappers(decode)} == {Mode.QUANT}
        generator = wrappers.Runtime(prefill, decode, capacity=60)
        assert generator.generate(**EXAMPLES["batch"](), max_new_tokens=3).shape == (3, 3)

    def test_images_come_as_a_turn_and_then_each_step_by_itself(self):
        model = tiny()
        decode, steps = wrap(model, "decode"), 4
        given = wrappers.decode_inputs(model, decode, BATCHES, steps=steps, source="float")
        for batch in BATCHES:
            prompts = Prompts.packed(batch)
            with torch.no_grad():
                expected = model(**batch).logits
                turn = decode(**next(given)).logits
                found = [decode(**next(given)).logits for _ in range(steps)]
            starts = prompts.first_visual.clamp(max=prompts.lengths - 1)
            for row, (length, start) in enumerate(zip(prompts.lengths, starts, strict=True)):
                own = expected[row, -length:]  # padded on the left
                assert peir(own[start:], turn[row, : length - start]) < LIMIT
                assert peir(own[-steps:], torch.cat(found, dim=1)[row]) < LIMIT
        assert next(given, None) is None

    def test_text_alone_leaves_the_images_unseen(self):
        model = tiny()
        decode = wrap(model, "decode")
        wrappers.calibrate_decode(model, decode, [EXAMPLES["text"]()], steps=3, source="float")
        with pytest.raises(UnseenObserverError, match=r"model\.mm_fusion, model\.visual"):
            wrappers.convert(decode)

    def test_images_are_no_steps(self):
        given = wrappers.decode_inputs(
            tiny(), wrap(tiny(), "decode"), BATCHES, steps=9, source="float"
        )
        with pytest.raises(
            ModelInputError, match="ends in 8 tokens of text after its images, and 9"
        ):
            next(given)

    @pytest.mark.covers
    def test_in_int16_the_logits_are_close_to_the_float_models(self):
        model = tiny()
        spec = wrappers.affine("int16")
        decode = wrap(model, "decode", activation=spec, weight=spec)
        wrappers.calibrate_decode(model, decode, BATCHES, steps=4, source="float")
        wrappers.convert(decode)
        batch = BATCHES[0]
        given = list(wrappers.decode_inputs(model, decode, [batch], steps=4, source="float"))
        with torch.no_grad():
            expected = model(**batch).logits[:, -4:]
            found = torch.cat([decode(**each).logits for each in given[1:]], dim=1)
        assert 1e-6 < peir(expected, found) < 3e-3


class TestSteps:
    @pytest.mark.parametrize("variant", ["prefill", "decode"])
    @pytest.mark.parametrize("head", [True, False])
    def test_a_turn_with_an_image_as_a_static_graph(self, variant, head):
        """Embeddings with the features in their places, and those of the inner blocks, go in."""
        model = tiny()
        wrapped, first, second = wrap(model, variant), batch_of([7]), TURNS["images"][1]
        turn, calls = Prompts.packed(second), []
        with torch.no_grad():
            _, slots = run_prefill(model, wrapped, Prompts.packed(first), 7, logits_to_keep=1)
            inputs, _ = turn_inputs(wrapped, turn, slots, slots.step())
            hook = wrapped.model.language_model.register_forward_pre_hook(
                lambda module, args, given: calls.append(given), with_kwargs=True
            )
            wrapped(**inputs)
            hook.remove()
            expected = model(**joined(first, second)).logits[:, 7:]
            text, given = wrapped.model.language_model, calls[0]
            embeddings, positions = given["inputs_embeds"], given["position_ids"]
            spread = [
                torch.full_like(embeddings, 9.0).masked_scatter(
                    given["visual_pos_masks"][..., None], features
                )
                for features in given["deepstack_visual_embeds"]
            ]
            step = Step(wrapped if head else text)
            tables = step.tables(*text.rotary_emb(embeddings, positions))
            mask = inputs["attention_mask"].squeeze(1)
            past = [states for pair in slots.layers for states in pair]
            output, *new = step(
                embeddings, *tables, mask, *past,
                visual_pos_masks=given["visual_pos_masks"], deepstack_visual_embeds=spread,
            )  # fmt: skip
            output = output if head else wrapped.lm_head(output)
        assert peir(expected, output) < LIMIT
        assert len(new) == 2 * len(text.layers)

    @pytest.mark.slow
    @pytest.mark.parametrize("suffix", [".pt2", ".circle"])
    def test_the_graph_of_a_quantised_step_is_written(self, suffix, tmp_path):
        model = tiny(text={"num_hidden_layers": 2})
        decode = wrap(model, "decode", activation=wrappers.affine("int16"))
        wrappers.calibrate_decode(model, decode, BATCHES, steps=4, source="float")
        step = Step(wrappers.convert(decode).eval())
        inputs = step.example_inputs(past=9)
        wrappers.export(step, inputs, tmp_path / f"step{suffix}")
        if suffix == ".pt2":
            read = torch.export.load(tmp_path / "step.pt2").module()
            with torch.no_grad():
                for found, expected in zip(read(*inputs), step(*inputs), strict=True):
                    assert torch.equal(found, expected)

    def test_example_inputs_are_those_of_text(self):
        """In a text all three coordinates of a position are the same: plain rope."""
        wrapped = wrap(tiny(), "decode")
        text = wrapped.model.language_model
        step = Step(wrapped)
        ids, cos, sin, *_ = step.example_inputs(tokens=3, past=5)
        positions = torch.arange(5, 8).expand(3, 1, 3)
        expected = step.tables(*text.rotary_emb(text.embed_tokens(ids), positions))
        assert torch.allclose(cos, expected[0], atol=1e-6)
        assert torch.allclose(sin, expected[1], atol=1e-6)
