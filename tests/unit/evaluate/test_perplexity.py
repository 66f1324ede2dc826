"""Perplexity: each token once, against scoring by hand in float64, and published figures."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoTokenizer

from tests.builders.documents import BOS, loss_by_hand, texts_of
from tests.builders.llama import real_model, tiny, wrap
from tracer.models.loading import load
from wrappers.errors import ModelInputError
from wrappers.evaluate import Perplexity, Window, documents, perplexity, windows


@pytest.fixture(scope="module")
def tokenizer():
    return load("tiny-llama").tokenizer


class TestWindows:
    @settings(deadline=None, max_examples=200)
    @given(data=st.data())
    def test_each_token_is_scored_once_after_all_that_fits(self, data):
        window = data.draw(st.integers(2, 12), "window")
        stride = data.draw(st.none() | st.integers(1, window - 1), "stride")
        bos = data.draw(st.sampled_from([None, 99]), "bos")
        lengths = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=4), "lengths")
        # No two tokens are alike, so that each tells its place.
        texts = [[1000 * i + j for j in range(n)] for i, n in enumerate(lengths)]
        predicted = [ids if bos is not None else ids[1:] for ids in texts]
        if not any(predicted):
            with pytest.raises(ModelInputError, match="without a token to score"):
                windows(texts, window=window, stride=stride, bos=bos)
            return
        made = windows(texts, window=window, stride=stride, bos=bos)
        head = 0 if bos is None else 1
        scored = [[] for _ in texts]
        for each in made:
            ids = texts[each.document]
            assert len(each.ids) <= window
            assert each.ids[:head] == (bos,) * head
            start = ids.index(each.ids[head])
            assert list(each.ids[head:]) == ids[start : start + len(each.ids) - head]
            # Something is before what is scored.
            assert 1 <= each.scored < len(each.ids)
            further = bool(scored[each.document])
            assert not further or each.scored <= (window - 1 if stride is None else stride)
            scored[each.document] += each.ids[len(each.ids) - each.scored :]
            ends = each.ids[-1] == ids[-1]
            assert ends or len(each.ids) == window
        assert scored == predicted

    def test_the_documented_example(self):
        assert windows([range(9)], window=6, stride=3, bos=99) == [
            Window(0, (99, 0, 1, 2, 3, 4), 5),
            Window(0, (99, 3, 4, 5, 6, 7), 3),
            Window(0, (99, 6, 7, 8), 1),
        ]
        assert windows([range(5)], window=3, bos=None) == [
            Window(0, (0, 1, 2), 2),
            Window(0, (2, 3, 4), 2),
        ]

    @pytest.mark.parametrize(("options", "message"), [
        ({"window": 1}, "found a window of 1 tokens; expected at least 2"),
        ({"window": 4, "stride": 0}, "found a stride of 0 .* expected from 1 to 3"),
        ({"window": 4, "stride": 4}, "found a stride of 4 .* expected from 1 to 3"),
    ])  # fmt: skip
    def test_refused(self, options, message):
        with pytest.raises(ModelInputError, match=message):
            windows([[1, 2, 3]], bos=BOS, **options)


class TestPerplexity:
    @pytest.mark.parametrize("bos", [BOS, None])
    def test_short_documents_with_their_full_context(self, bos):
        model = tiny(dtype=torch.float64)
        texts = texts_of(7, 1, 20, 2)
        found = perplexity(model, texts, bos=bos)
        head = [] if bos is None else [bos]
        for ids, loss, count in zip(texts, found.losses, found.tokens, strict=True):
            whole = [*head, *ids]
            expected = [loss_by_hand(model, whole[:i], whole[i]) for i in range(1, len(whole))]
            assert count == len(expected)
            # Logits are made float32 before they are scored.
            assert loss == pytest.approx(math.fsum(expected), rel=1e-6)
        assert found.windows == 4 - (bos is None)
        mean = math.fsum(found.losses) / sum(found.tokens)
        assert (found.loss, found.value) == (mean, math.exp(mean))

    @pytest.mark.parametrize("bos", [BOS, None])
    @pytest.mark.parametrize("stride", [1, 3, 7])
    def test_a_long_document_with_the_context_of_its_windows(self, model, bos, stride):
        [ids] = texts_of(23)
        found = perplexity(model, [ids], bos=bos, window=8, stride=stride)
        head = [] if bos is None else [bos]
        room = 8 - len(head)
        expected = []
        for place in range(1 - len(head), len(ids)):
            further = max(0, math.ceil((place + 1 - room) / stride))  # windows after the first
            context = [*head, *ids[further * stride : place]]
            expected.append(loss_by_hand(model, context, ids[place]))
        assert found.tokens == (len(expected),)
        assert found.losses[0] == pytest.approx(math.fsum(expected), rel=1e-5)

    def test_batches_give_what_single_windows_give(self, model):
        texts = texts_of(30, 9, 30, 4)
        seen = []

        def progress(parts):
            seen.append(len(parts))
            return parts

        alone = perplexity(model, texts, bos=BOS, window=10, stride=4, progress=progress)
        for batch in (2, 3, 100):
            found = perplexity(model, texts, bos=BOS, window=10, stride=4, batch=batch)
            assert found.losses == pytest.approx(alone.losses, rel=1e-5)
            assert (found.tokens, found.windows) == (alone.tokens, alone.windows)
        assert seen == [alone.windows]

    @pytest.mark.parametrize("variant", ["prefill", "prefill_reference"])
    def test_wrapped_scores_what_float_scores(self, model, variant):
        texts = texts_of(30, 9)
        float_, off = (
            perplexity(each, texts, bos=BOS, window=16, batch=2)
            for each in (model, wrap(model, variant))
        )
        assert off.losses == pytest.approx(float_.losses, rel=1e-5)

    def test_quantised(self, model, quantized):
        prefill, _ = quantized
        [ids] = texts_of(20)
        found = perplexity(prefill, [ids], bos=BOS)
        with torch.no_grad():
            logits = prefill(torch.tensor([[BOS, *ids]])).logits[0, :-1].double()
        expected = -logits.log_softmax(-1)[range(20), ids].sum()
        assert found.losses[0] == pytest.approx(float(expected), rel=1e-6)
        off = perplexity(model, [ids], bos=BOS).losses[0]
        assert 1e-4 < abs(found.losses[0] / off - 1) < 0.2

    def test_a_model_that_is_sure_of_the_wrong_token(self, model):
        sure = copy.deepcopy(model)
        with torch.no_grad():
            sure.lm_head.weight.mul_(1e6)
        found = perplexity(sure, texts_of(30), bos=BOS)
        assert found.loss > 1000
        assert found.value == math.inf
        assert Perplexity((2.0, 4.0), (1, 2), 2).value == math.exp(2.0)

    @pytest.mark.parametrize(("options", "message"), [
        ({"window": 129}, "a window of 129 tokens for a model of 128 positions"),
        ({"texts": [[5, 96]]}, "found token 96 for a model of 96 tokens: .* another tokenizer"),
        ({"texts": [[5, -1]]}, "found token -1"),
        ({"texts": []}, "found 0 documents without a token to score"),
        ({"batch": 0}, "found a batch of 0"),
    ])  # fmt: skip
    def test_refused(self, model, options, message):
        with pytest.raises(ModelInputError, match=message):
            perplexity(model, **{"texts": [[5, 6]], "bos": BOS, **options})


class Plain(nn.Module):
    """A causal LM that cannot be asked for its last logits alone."""

    def __init__(self, model):
        super().__init__()
        self.inside, self.config = model, model.config

    def get_input_embeddings(self):
        return self.inside.get_input_embeddings()

    def forward(self, input_ids, use_cache=False):
        return self.inside(input_ids, use_cache=use_cache)


class TestOtherModels:
    def test_one_that_returns_all_logits(self, model):
        texts = texts_of(20, 5)
        found, expected = (
            perplexity(each, texts, bos=BOS, window=9, stride=2) for each in (Plain(model), model)
        )
        assert found.losses == pytest.approx(expected.losses, rel=1e-6)

    def test_one_that_does_not_say_how_long_a_text_may_be(self, model):
        other = Plain(model)
        other.config = SimpleNamespace()
        with pytest.raises(
            ModelInputError, match="Plain does not say how many positions it has: give"
        ):
            perplexity(other, [[5, 6]], bos=BOS)
        assert perplexity(other, [[5, 6]], bos=BOS, window=8).tokens == (2,)


class TestDocuments:
    def test_parts_between_separators_without_special_tokens(self, tokenizer):
        found = documents("a cat\r\n<|x|>\n\n<|x|>  a dog", tokenizer, separator="<|x|>")
        assert [tokenizer.decode(ids) for ids in found] == ["a cat", "a dog"]
        assert documents("a cat\r\nran", tokenizer) == [
            tokenizer("a cat\nran", add_special_tokens=False)["input_ids"]
        ]

    def test_long_texts_and_none(self, tokenizer):
        text = "".join(f"Line {i} is about a cat, and {i % 7} dogs.\n" for i in range(900))
        assert len(text) > 20_000
        [found] = documents(text, tokenizer)
        assert tokenizer.decode(found) == text
        with pytest.raises(ModelInputError, match="found no text among 5 characters"):
            documents("<x>\n ", tokenizer, separator="<x>")


@pytest.mark.slow
def test_the_published_figure_of_a_real_checkpoint(shared_data):
    """benchmarks/perplexity.py prints it with those that take longer."""
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "stories260K" / "hf")
    text = (shared_data / "tinystories" / "tinystories_sample_cs336.txt").read_text()
    found = documents(text, tokenizer, separator="<|endoftext|>")
    scored = perplexity(
        real_model(shared_data, "stories260K", "sdpa"), found, bos=tokenizer.bos_token_id
    )
    assert (sum(scored.tokens), scored.value) == (1804, pytest.approx(3.548, abs=0.01))
