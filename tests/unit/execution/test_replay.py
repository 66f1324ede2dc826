"""One long forward pass as the reference of a prefill and decode steps."""

import pytest
import torch

import tracer
import wrappers
from tests.builders.comparing import agreed
from tracer.errors import ModelRunError, UsageError
from tracer.execution.hooks import Call, Phase
from tracer.execution.replay import Replay
from tracer.execution.stepping import Stepped, Stepping
from tracer.models.loading import Loaded, load
from tracer.tensors.leaves import LeftOut

SIDES = ("left", "right")


def wrapped(model: torch.nn.Module, steps: int) -> Stepping:
    prefill, decode = (
        wrappers.prepare(model, wrappers.PTQConfig(variant=variant))
        for variant in ("prefill", "decode")
    )
    return Stepping(prefill, decode, steps=steps)


@pytest.fixture(
    scope="module", params=["tiny-llama", pytest.param("stories260K", marks=pytest.mark.slow)]
)
def loaded(request: pytest.FixtureRequest) -> dict[str, Loaded]:
    """A Llama with three sequences of 48, 40 and 32 tokens, by the side that is padded."""
    name = request.param
    if name == "stories260K":
        name = request.getfixturevalue("shared_data") / name / "hf"
    return {side: load(name, batch=3, sequence_length=48, padding=side) for side in SIDES}


class TestRightPairs:
    @pytest.mark.covers
    @pytest.mark.parametrize("side", SIDES)
    def test_prefill_and_decode_agree(self, loaded, side: str):
        model, inputs = loaded[side].model, loaded[side].inputs
        comparison = agreed(Stepped(model, steps=16), wrapped(model, 16), inputs)
        assert all(row.agrees for row in comparison.rows)
        assert comparison.form_differences == ()
        coverage = comparison.coverage
        assert len(coverage.paired_modules) == len(list(model.modules()))
        assert coverage.reference_only == coverage.candidate_only == ()
        assert (coverage.unmatched_calls, coverage.left_out) == ((), 0)
        heads = [row for row in comparison.rows if row.module == "lm_head" and row.is_output]
        assert [row.call for row in heads] == list(range(17))
        vocabulary = model.config.vocab_size
        assert [row.shape for row in heads] == [(3, 32, vocabulary), *[(3, 1, vocabulary)] * 16]

    @pytest.mark.covers
    @pytest.mark.parametrize("side", SIDES)
    def test_as_much_is_compared_as_where_both_step(self, loaded, side: str):
        model, inputs = loaded[side].model, loaded[side].inputs
        at_once = tracer.compare(Stepped(model, steps=4), wrapped(model, 4), inputs)
        both = tracer.compare(Stepping(model, steps=4), wrapped(model, 4), inputs)
        places = [
            [(row.module, row.call, row.value, row.shape) for row in comparison.rows]
            for comparison in (at_once, both)
        ]
        assert places[0] == places[1]

    @pytest.mark.parametrize("side", SIDES)
    def test_with_fused_attention(self, loaded, side: str):
        model, inputs = loaded[side].model, loaded[side].inputs
        model.set_attn_implementation("sdpa")
        try:
            comparison = tracer.compare(Stepped(model, steps=4), wrapped(model, 4), inputs)
        finally:
            model.set_attn_implementation("eager")
        assert comparison.verdict.agrees, comparison.verdict.explanation
        assert all(row.agrees for row in comparison.rows)

    @pytest.mark.covers
    @pytest.mark.parametrize("length", [8, 64], ids=["heads", "hidden"])
    @pytest.mark.parametrize("side", SIDES)
    def test_a_sequence_as_long_as_another_dimension_raises_no_false_alarm(self, side, length):
        lengths = torch.tensor([length, length - 2, length - 3])[:, None]
        places = torch.arange(length)
        visible = places < lengths if side == "right" else places >= length - lengths
        ids = torch.randint(1, 500, (3, length), generator=torch.Generator().manual_seed(1))
        model = load("tiny-llama").model
        inputs = {"input_ids": ids, "attention_mask": visible.long()}
        comparison = agreed(Stepped(model, steps=3), wrapped(model, 3), inputs)
        assert comparison.coverage.left_out > 0
        assert f"{comparison.coverage.left_out} values left out" in str(comparison.coverage)

    @pytest.mark.covers
    def test_a_batch_as_large_as_it_is_long(self):
        ids = torch.randint(1, 500, (12, 12), generator=torch.Generator().manual_seed(1))
        mask = (torch.arange(12) >= torch.arange(12)[:, None] % 5).long()
        model = load("tiny-llama").model
        inputs = {"input_ids": ids, "attention_mask": mask}
        assert agreed(Stepped(model, steps=3), wrapped(model, 3), inputs).coverage.left_out == 0


class TestWrongPairs:
    @pytest.mark.covers
    def test_an_error_at_one_step(self, loaded):
        """Only the third step of one module is wrong."""
        model, inputs = loaded["left"].model, loaded["left"].inputs
        candidate = wrapped(model, 4)
        module = candidate.decode.model.layers[1].mlp.down_proj
        own, count = module.forward, iter(range(1000))

        def forward(x: torch.Tensor) -> torch.Tensor:
            return own(x) * (1.5 if next(count) % 4 == 2 else 1.0)

        module.forward = forward
        symptom = tracer.compare(Stepped(model, steps=4), candidate, inputs, confirm=False).verdict
        assert symptom.origin.module == "model.layers.1.mlp.down_proj"
        assert symptom.symptom.call == 3

    def test_a_reference_that_raises(self, loaded):
        model, inputs = loaded["left"].model, loaded["left"].inputs

        class Raising(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                raise ValueError("no such luck")

        candidate = wrapped(model, 4)
        own = model.model.layers[1].mlp
        model.model.layers[1].mlp = Raising()
        try:
            with pytest.raises(ModelRunError, match=r"the reference raised ValueError in module"):
                tracer.compare(Stepped(model, steps=4), candidate, inputs)
        finally:
            model.model.layers[1].mlp = own

    def test_no_steps(self, loaded):
        with pytest.raises(UsageError, match="steps 0: expected at least 1"):
            Stepped(loaded["left"].model, steps=0)


class TestParts:
    """What a step is told of a value, by the argument's name, for 6 positions and 2 steps."""

    def told(self, **values: object) -> list[dict[str, object]]:
        ids = torch.arange(12).view(2, 6)
        replay = Replay(2)
        call = Call("", 0, torch.nn.Identity(), {"input_ids": ids, **values}, (), None, None)
        replay.note(call, Phase.START)
        call.output = ids
        replay.note(call, Phase.END)
        return [told.arguments for told, phase in replay.events() if phase is Phase.START]

    def test_positions(self):
        hidden = torch.randn(2, 6, 5)
        prefill, first, second = (step["hidden"] for step in self.told(hidden=hidden))
        assert torch.equal(prefill, hidden[:, :4])
        assert torch.equal(first, hidden[:, 4:5])
        assert torch.equal(second, hidden[:, 5:6])

    @pytest.mark.parametrize("shape", [(2, 1, 6, 6), (2, 6, 6)], ids=str)
    def test_a_mask_of_queries_and_keys(self, shape: tuple[int, ...]):
        mask = torch.randn(shape)
        steps = [step["attention_mask"] for step in self.told(attention_mask=mask)]
        assert torch.equal(steps[0], mask[..., :4, :4])
        assert torch.equal(steps[1], mask[..., 4:5, :5])
        assert torch.equal(steps[2], mask[..., 5:6, :6])

    def test_masks_of_keys_and_what_cannot_be_told_apart(self):
        mask = torch.randn(2, 6)
        steps = [step["attention_mask"] for step in self.told(attention_mask=mask)]
        assert [step.shape[1] for step in steps] == [4, 5, 6]
        assert torch.equal(steps[1], mask[:, :5])
        step = self.told(
            weights=torch.randn(2, 6, 6), other=torch.randn(2, 3), channels=torch.randn(2, 3, 6)
        )[1]
        for name in ("weights", "other", "channels"):
            assert isinstance(step[name], LeftOut)

    def test_what_was_edited_afterwards(self):
        hidden = torch.randn(2, 6, 5)
        replay = Replay(2)
        arguments = {"input_ids": torch.arange(12).view(2, 6), "hidden": hidden}
        call = Call("", 0, torch.nn.Identity(), arguments, (), None, None)
        replay.note(call, Phase.START)
        hidden.add_(1)
        call.output = hidden
        replay.note(call, Phase.END)
        start, end = next(replay.events()), list(replay.events())[1]
        assert start[0].arguments["hidden"] == LeftOut("edited in place after the call")
        assert torch.equal(end[0].output, hidden[:, :4])

    def test_a_module_that_is_called_twice(self):
        replay = Replay(2)
        ids = torch.arange(12).view(2, 6)
        for index in range(2):
            call = Call("norm", index, torch.nn.Identity(), {"input_ids": ids}, (), None, None)
            replay.note(call, Phase.START)
            call.output = ids
            replay.note(call, Phase.END)
        indices = [told.index for told, phase in replay.events() if phase is Phase.START]
        assert indices == [0, 1, 2, 3, 4, 5]
