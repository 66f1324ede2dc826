"""The generation check: greedy texts of two models side by side, and what is measured of them."""

import copy

import pytest
import torch

import wrappers
from tests.builders.llama import calibrated, tiny, tokens, wrap
from wrappers.deploy.runtime import Runtime
from wrappers.errors import ModelInputError
from wrappers.evaluate import Continuation, GenerationCheck, generation_check, repetition
from wrappers.evaluate.generation import is_degenerate

PROMPTS = [[1, 7, 9], [1, 30], [1, 5, 60, 61, 62]]


@pytest.fixture(scope="module")
def model():
    made = tiny()
    made.generation_config.pad_token_id = 0
    made.generation_config.eos_token_id = None
    return made


def greedy(model, prompt, count):
    """Token by token, without a cache and without `generate`."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


class TestCheck:
    def test_both_texts_are_the_models_own(self, model):
        other = tiny(seed=1)
        other.generation_config = copy.deepcopy(model.generation_config)
        seen = []

        def progress(prompts):
            seen.append(len(prompts))
            return prompts

        check = generation_check(model, other, PROMPTS, max_new_tokens=12, progress=progress)
        assert seen == [3]
        for prompt, texts in zip(PROMPTS, check.continuations, strict=True):
            assert texts.reference == greedy(model, prompt, 12)
            assert texts.candidate == greedy(other, prompt, 12)
        equal = sum(
            r == c
            for texts in check.continuations
            for r, c in zip(texts.reference, texts.candidate, strict=True)
        )
        assert check.equal_share == equal / 36 < 0.5

    def test_a_model_with_itself_and_wrapped(self, model):
        for other in (model, wrap(model, "prefill")):
            check = generation_check(model, other, PROMPTS, max_new_tokens=8)
            assert (check.equal_share, check.identical) == (1.0, 3)
            assert check.first_different == (None, None, None)
            assert check.repetition[0] == check.repetition[1]
            assert check.degenerate[0] == check.degenerate[1]

    def test_the_decode_graph(self, model):
        prompts = [tokens(2, 24, seed) for seed in (5, 6)]
        decode = wrap(model, "decode")
        wrappers.calibrate_decode(model, decode, prompts, steps=8, source="float")
        prefill = wrappers.convert(calibrated(model, "prefill", prompts))
        for pair in ((wrap(model, "prefill"), wrap(model, "decode")), (model, model)):
            runtime = Runtime(*pair, capacity=32)
            check = generation_check(model, runtime, PROMPTS, max_new_tokens=8)
            assert check.equal_share == 1.0
        runtime = Runtime(prefill, wrappers.convert(decode), capacity=32)
        check = generation_check(model, runtime, PROMPTS, max_new_tokens=8)
        expected = runtime.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=8)
        assert check.continuations[0].candidate == tuple(expected[0].tolist())

    def test_a_text_ends_where_the_model_ends_it(self, model):
        ending = copy.deepcopy(model)
        last = greedy(model, PROMPTS[0], 3)[-1]
        ending.generation_config.eos_token_id = last
        check = generation_check(model, ending, PROMPTS[:1], max_new_tokens=10)
        [texts] = check.continuations
        assert texts.candidate[-1] == last
        assert texts.candidate == texts.reference[: len(texts.candidate)]
        assert check.first_different == (len(texts.candidate),)
        assert check.equal_share == len(texts.candidate) / 10

    def test_a_length_of_the_models_own_settings_is_no_limit(self, model, caplog):
        limited = copy.deepcopy(model)
        limited.generation_config.max_length = 5
        own = limited.generation_config
        check = generation_check(model, limited, PROMPTS[:1], max_new_tokens=6)
        assert check.continuations[0].candidate == greedy(model, PROMPTS[0], 6)
        assert not caplog.records
        assert limited.generation_config is own
        assert own.max_length == 5

    def test_what_the_reference_has_written_before(self, model):
        other = tiny(seed=1)
        other.generation_config = copy.deepcopy(model.generation_config)
        check = generation_check(model, other, PROMPTS, max_new_tokens=6)
        before = [text.reference for text in check.continuations]
        assert generation_check(before, other, PROMPTS, max_new_tokens=6) == check
        with pytest.raises(ModelInputError, match="found 2 texts of 3 prompts"):
            generation_check(before[:2], other, PROMPTS, max_new_tokens=6)

    @pytest.mark.parametrize(("prompts", "count", "message"), [
        ([], 4, "takes at least one prompt, each of at least one token"),
        ([[1], []], 4, "takes at least one prompt, each of at least one token"),
        ([[1]], 0, "found max_new_tokens of 0; expected at least 1"),
    ])  # fmt: skip
    def test_refused(self, model, prompts, count, message):
        with pytest.raises(ModelInputError, match=message):
            generation_check(model, model, prompts, max_new_tokens=count)


class TestMeasures:
    @pytest.mark.parametrize(("reference", "candidate", "first", "equal"), [
        ((1, 2, 3), (1, 2, 3), None, 3), ((1, 2, 3), (1, 5, 3), 1, 2), ((1, 2, 3), (1, 2), 2, 2),
        ((1, 2), (1, 2, 3), 2, 2), ((), (1,), 0, 0), ((), (), None, 0),
    ])  # fmt: skip
    def test_where_two_texts_part(self, reference, candidate, first, equal):
        texts = Continuation(reference, candidate)
        assert (texts.first_different, texts.equal) == (first, equal)

    def test_shares_are_of_the_longer_text(self):
        check = GenerationCheck((Continuation((1, 2, 3, 4), (1, 2)), Continuation((5, 6), (5, 7))))
        assert (check.equal_share, check.identical) == (3 / 6, 0)
        assert check.first_different == (2, 1)

    @pytest.mark.parametrize(("text", "share"), [
        ((), 0.0), ((1, 1, 1), 0.0), (range(20), 0.0), ((1,) * 8, 4 / 5),
        ((1, 2, 3, 4, 5, 1, 2, 3, 4, 5), 2 / 7),
    ])  # fmt: skip
    def test_repetition(self, text, share):
        assert repetition(text) == pytest.approx(share)

    @pytest.mark.parametrize(("text", "expected"), [
        ((), True), ((1,), False), ((7, 7, 7), False), ((7, 7, 7, 7), True),
        ((9, 8, *(1, 2, 3) * 4), True), ((9, 8, *(1, 2, 3) * 3), False),
        ((*(1, 2, 3) * 4, 9), False), (tuple(range(8)) * 4, True), (tuple(range(9)) * 4, False),
    ])  # fmt: skip
    def test_a_loop_at_the_end(self, text, expected):
        assert is_degenerate(text) is expected

    def test_means_of_both_sides(self):
        check = GenerationCheck(
            (Continuation(tuple(range(8)), (1,) * 8), Continuation((1,) * 8, (1,) * 8))
        )
        assert check.repetition == pytest.approx((0.4, 0.8))
        assert check.degenerate == (1, 2)
