"""Inputs: made from text or at random, padded, read from a file, and checked."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from tracer.errors import InputError, ModelLoadError, UsageError
from tracer.models.builtin import build
from tracer.models.inputs.text import InputSpec, check, from_text, random_tokens, read, vocabulary


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return build("random-llama", seed=0)


class Letters:
    """A tokenizer of one token per letter, after a token 1 that begins every text."""

    pad_token_id = 7

    def __call__(self, text: str, verbose: bool) -> dict[str, list[int]]:
        return {"input_ids": [1, *(10 + ord(letter) - ord("a") for letter in text)]}


class TestRequest:
    @pytest.mark.parametrize(("fields", "message"), [
        ({"batch": 0}, "batch 0: expected at least 1"),
        ({"sequence_length": -1}, "sequence length -1: expected at least 1"),
        ({"padding": "both"}, "padding 'both': expected right or left"),
    ])  # fmt: skip
    def test_refused(self, fields: dict[str, object], message: str):
        with pytest.raises(UsageError, match=message):
            InputSpec(**fields)

    @given(st.integers(1, 200), st.integers(1, 9))
    @settings(deadline=None)
    def test_lengths_are_longest_first_and_differ_where_there_is_room(self, longest: int, n: int):
        lengths = InputSpec(batch=n).lengths(longest)
        assert (len(lengths), lengths[0]) == (n, longest)
        assert lengths == sorted(lengths, reverse=True)
        assert min(lengths) >= 1
        if longest >= 2 * n:
            assert len(set(lengths)) == n


class TestFromText:
    def test_random_tokens_or_a_prompt(self, llama):
        made, description = from_text(llama, None, InputSpec(seed=3))
        assert made["input_ids"].shape == (1, 32)
        assert made["input_ids"].dtype == torch.int64
        assert bool(made["attention_mask"].all())
        assert description == "32 random tokens (seed 3)"
        again, _ = from_text(llama, None, InputSpec(seed=3))
        assert torch.equal(made["input_ids"], again["input_ids"])
        other, _ = from_text(llama, None, InputSpec(seed=4))
        assert not torch.equal(made["input_ids"], other["input_ids"])
        made, description = from_text(llama, Letters(), InputSpec(prompt="abc"))
        assert made["input_ids"].tolist() == [[1, 10, 11, 12]]
        assert description == "4 tokens of the prompt"

    @pytest.mark.parametrize(
        ("length", "tokens"), [(1, [1]), (3, [1, 10, 11]), (7, [1, 10, 11, 12, 10, 11, 12])]
    )
    def test_a_prompt_is_cut_or_repeated_to_the_length(self, llama, length, tokens):
        made, _ = from_text(llama, Letters(), InputSpec(prompt="abc", sequence_length=length))
        assert made["input_ids"].tolist() == [tokens]

    @pytest.mark.parametrize("padding", ["right", "left"])
    def test_a_batch_is_padded_on_the_side_asked_for(self, llama, padding: str):
        request = InputSpec(prompt="abcdefghijk", batch=3, padding=padding)
        made, description = from_text(llama, Letters(), request)
        ids, mask = made["input_ids"], made["attention_mask"]
        assert mask.sum(1).tolist() == [12, 10, 8]
        assert bool((ids[mask == 0] == Letters.pad_token_id).all())
        padded = mask.diff(dim=1) < 0 if padding == "right" else mask.diff(dim=1) > 0
        assert padded.sum(1).tolist() == [0, 1, 1]
        # Every sequence begins with the first token, and no two are alike.
        begins = ids[:, 0] if padding == "right" else ids[range(3), 12 - mask.sum(1)]
        assert begins.tolist() == [1, 1, 1]
        assert len({tuple(row[row != Letters.pad_token_id].tolist()) for row in ids}) == 3
        assert f"a batch of 3 with lengths 12, 10, 8, padded on the {padding}" in description

    def test_prompts_that_cannot_be_taken(self, llama):
        with pytest.raises(UsageError, match="a prompt needs a tokenizer"):
            from_text(llama, None, InputSpec(prompt="abc"))

        class Nothing(Letters):
            def __call__(self, text: str, verbose: bool) -> dict[str, list[int]]:
                return {"input_ids": []}

        with pytest.raises(InputError, match="'' gives no tokens"):
            from_text(llama, Nothing(), InputSpec(prompt=""))

    def test_a_model_that_takes_no_tokens(self, llama, monkeypatch):
        monkeypatch.setattr(type(llama), "main_input_name", "pixel_values")
        with pytest.raises(InputError, match="takes 'pixel_values', which is not made from text"):
            from_text(llama, None, InputSpec())

    def test_an_encoder_decoder_gets_tokens_for_both(self, llama, monkeypatch):
        monkeypatch.setattr(llama.config, "is_encoder_decoder", True, raising=False)
        made, _ = from_text(llama, None, InputSpec())
        assert torch.equal(made["decoder_input_ids"], made["input_ids"])


class TestRead:
    def test_keyword_arguments_come_back(self, tmp_path: Path):
        save_file({"input_ids": torch.tensor([[1, 2]])}, tmp_path / "inputs.safetensors")
        assert read(tmp_path / "inputs.safetensors")["input_ids"].tolist() == [[1, 2]]

    def test_no_file(self, tmp_path: Path):
        with pytest.raises(ModelLoadError, match="there is no such file of inputs"):
            read(tmp_path / "inputs.safetensors")

    def test_another_file(self, tmp_path: Path):
        (tmp_path / "inputs.safetensors").write_text("a text, and no tensors at all")
        with pytest.raises(ModelLoadError, match="not a safetensors file that can be read"):
            read(tmp_path / "inputs.safetensors")

    def test_no_tensors(self, tmp_path: Path):
        save_file({}, tmp_path / "inputs.safetensors")
        with pytest.raises(InputError, match="holds no tensors"):
            read(tmp_path / "inputs.safetensors")


IDS = torch.tensor([[1, 2, 3]])


class TestCheck:
    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"input_idz": IDS}, "takes no input 'input_idz'.*did you mean 'input_ids'"),
            ({"attention_mask": IDS}, "lack 'input_ids', which tiny needs; found attention_mask"),
            ({"input_ids": IDS[:, :0]}, r"input_ids is empty, of shape \[1, 0\]"),
            ({"input_ids": IDS.float()}, "input_ids is float32: expected token ids as int64"),
            ({"input_ids": IDS[0]}, r"shape \[3\]: expected \[batch, sequence\]"),
            ({"input_ids": IDS + 509}, "holds 512: tiny has a vocabulary of 512"),
            ({"input_ids": IDS - 3}, "holds -2: tiny has a vocabulary of 512"),
            ({"input_ids": IDS.repeat(1, 200)}, "a sequence of 600 tokens: tiny has 512 positions"),
            (
                {"input_ids": IDS, "attention_mask": torch.ones(1, 4)},
                r"attention_mask has shape \[1, 4\], and the tokens \[1, 3\]",
            ),
            ({"inputs_embeds": torch.ones(1, 513, 64)}, "a sequence of 513 tokens"),
        ],
        ids=lambda value: re.sub(r"\W+", "-", value)[:30] if isinstance(value, str) else None,
    )
    def test_refused(self, llama, inputs: dict[str, torch.Tensor], message: str):
        with pytest.raises(InputError, match=message):
            check(llama, inputs, "tiny")

    @pytest.mark.parametrize("inputs", [
        {"input_ids": IDS},
        {"input_ids": IDS.int(), "attention_mask": torch.ones(1, 3, dtype=torch.bool)},
        {"input_ids": IDS, "attention_mask": torch.zeros(1, 1, 3, 3)},
        {"inputs_embeds": torch.ones(1, 3, 64)},
    ])  # fmt: skip
    def test_accepted(self, llama, inputs: dict[str, torch.Tensor]):
        check(llama, inputs, "tiny")

    @pytest.mark.parametrize(("given", "advice"), [
        ((), "--sequence-length"),
        (("pixel_values",), "--max-pixels"),
        (("pixel_values", "pixel_values_videos"), "fewer frames"),
    ])  # fmt: skip
    def test_what_would_shorten_a_sequence(self, given, advice: str):
        inputs = {"input_ids": IDS.repeat(1, 200)} | {name: torch.ones(1, 1) for name in given}
        with pytest.raises(InputError, match=f"has 512 positions; .* or {advice}$"):
            check(build("tiny-qwen3-vl", seed=0), inputs, "tiny")


def test_random_tokens_use_the_whole_vocabulary(llama):
    drawn = random_tokens(llama, (100, 100), seed=0)
    assert (vocabulary(llama), drawn.unique().tolist()) == (512, list(range(512)))
