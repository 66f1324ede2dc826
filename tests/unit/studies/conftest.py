"""A tiny model with a tokenizer and a text, as a study loads them."""

import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wrappers.studies import LoadedWorkload, Results, Workload, load

WORDS = [f"w{number}" for number in range(40)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer, two heads and 64 positions, of words that follow one another."""
    path = tmp_path_factory.mktemp("study") / "model"
    vocabulary = {word: place for place, word in enumerate(["<s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, bos_token_id=0,
        eos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    draw = random.Random(0)
    documents = [" ".join(draw.choices(WORDS, k=draw.randint(20, 70))) for _ in range(12)]
    (path.parent / "text.txt").write_text("\n|\n".join(documents))
    return path


@pytest.fixture(scope="session")
def workload(folder: Path) -> Workload:
    """Some 150 tokens to score, the rest to calibrate on."""
    return Workload(
        str(folder), text=str(folder.parent / "text.txt"), separator="|", tokens=150,
        calibration_length=24, prompts=2, new_tokens=6,
    )  # fmt: skip


@pytest.fixture(scope="session")
def loaded(workload: Workload) -> LoadedWorkload:
    return load(workload)


@pytest.fixture
def known(tmp_path: Path) -> Results:
    head = {"study": "s", "workload": {"model": "<m>", "text": None}, "environment": {"torch": "2"}}
    return Results(tmp_path / "r.jsonl", head)
