"""A prefill and a decode model that score as one."""

import pytest
import torch

from tests.builders.documents import BOS, loss_by_hand, texts_of
from tests.builders.llama import tokens, wrap
from tracer.models import decode_step
from wrappers.errors import ModelInputError
from wrappers.evaluate import DecodedModel, decoded_perplexity, step_perplexity, windows


class TestDecoded:
    @pytest.mark.parametrize("prompt", [1, 4])
    @pytest.mark.parametrize("batch", [1, 3])
    def test_float_models_score_the_same_tokens_alike(self, model, prompt, batch):
        texts = texts_of(12, 20, 3)
        found = decoded_perplexity(
            model, model, texts, bos=BOS, prompt=prompt, window=9, batch=batch
        )
        losses, counts = [0.0] * 3, [0] * 3
        for each in windows(texts, window=9, bos=BOS):
            for place in range(prompt + 1, len(each.ids)):
                losses[each.document] += loss_by_hand(model, each.ids[:place], each.ids[place])
                counts[each.document] += 1
        known = [i for i, count in enumerate(counts) if count]
        assert found.tokens == tuple(counts[i] for i in known)
        assert found.losses == pytest.approx([losses[i] for i in known], rel=1e-5)

    def test_wrapped_and_quantised(self, model, quantized):
        texts = texts_of(20, 14)
        expected = decoded_perplexity(model, model, texts, bos=BOS, prompt=3)
        off = decoded_perplexity(
            wrap(model, "prefill"), wrap(model, "decode"), texts, bos=BOS, prompt=3
        )
        assert off.losses == pytest.approx(expected.losses, rel=1e-5)
        on = decoded_perplexity(*quantized, texts, bos=BOS, prompt=3, batch=2)
        assert on.tokens == expected.tokens
        assert 1e-4 < abs(on.loss / expected.loss - 1) < 0.2

    def test_a_past_that_another_model_has_made(self, model, quantized):
        texts = texts_of(12, 20, 3)
        options = {"bos": BOS, "prompt": 4, "window": 12}
        expected = decoded_perplexity(model, model, texts, **options)
        float_past = step_perplexity(model, model, texts, batch=2, **options)
        assert float_past.tokens == expected.tokens
        assert float_past.losses == pytest.approx(expected.losses, rel=1e-5)
        prefill, decode = quantized
        # A step over the cache that transformers' own forward leaves, one place at a time.
        losses, count = 0.0, 0
        for each in windows(texts, window=12, bos=BOS):
            for place in range(4, len(each.ids) - 1, 3):
                given = decode_step(prefill, {"input_ids": torch.tensor([each.ids[: place + 1]])})
                with torch.no_grad():
                    likely = decode(**given).logits[0, -1].double().log_softmax(-1)
                losses -= float(likely[each.ids[place + 1]])
                count += 1
        found = step_perplexity(prefill, decode, texts, batch=3, every=3, **options)
        assert sum(found.tokens) == count
        assert sum(found.losses) == pytest.approx(losses, rel=1e-5)
        own = decoded_perplexity(prefill, decode, texts, **options)
        assert step_perplexity(prefill, decode, texts, **options).losses != own.losses

    def test_the_model_gives_logits_of_the_whole_sequence(self, model, quantized):
        ids = tokens(2, 12, 8)
        decoded = DecodedModel(model, model, prompt=5)
        with torch.no_grad():
            expected = model(ids).logits
        torch.testing.assert_close(decoded(ids).logits, expected, rtol=1e-4, atol=1e-4)
        # Of a sequence that ends with the prompt there is nothing to decode.
        torch.testing.assert_close(decoded(ids[:, :5]).logits, expected[:, :5])
        prefill, decode = quantized
        both = DecodedModel(prefill, decode, prompt=5)(ids).logits
        with torch.no_grad():
            assert torch.equal(both[:, :5], prefill(ids[:, :5]).logits)
        assert not torch.equal(both[:, 5:], prefill(ids).logits[:, 5:])

    @pytest.mark.parametrize("prompt", [0, 5])
    def test_a_prompt_that_leaves_nothing(self, model, prompt):
        with pytest.raises(
            ModelInputError, match=f"found a prompt of {prompt} tokens and windows of"
        ):
            decoded_perplexity(model, model, [[5, 6, 7]], bos=BOS, prompt=prompt)
        with pytest.raises(
            ModelInputError, match="found a prompt of 0 tokens; expected at least 1"
        ):
            DecodedModel(model, model, prompt=0)
