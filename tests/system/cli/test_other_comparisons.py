"""The other comparisons that people need: ports, checkpoints, training mode, other devices."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig
from transformers.utils import logging

from tracer.cli import main

PORT = Path(__file__).parents[3] / "examples" / "compare_a_port.py"
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
# Dropout, and batch normalisation, whose running statistics each pass in training mode moves.
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(rate)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x))))

def build():
    return Net(0.5), {"x": torch.linspace(-1, 1, 32).reshape(4, 8)}

def other():
    return Net(0.2)
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A Llama, the same with another weight, and the same weights as a Mistral."""
    folder = tmp_path_factory.mktemp("checkpoints")
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.save_pretrained(folder / "llama")
    mistral = AutoModelForCausalLM.from_config(MistralConfig(**SIZES, sliding_window=None))
    mistral.load_state_dict(model.state_dict())
    mistral.save_pretrained(folder / "mistral")
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.weight[3] *= 3.0
    model.save_pretrained(folder / "tuned")
    return folder


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "net.py").write_text(NET)
    return str(tmp_path / "net.py")


class TestCheckpoints:
    @pytest.mark.covers
    def test_two_of_one_architecture_or_of_two(self, compare, checkpoints: Path) -> None:
        report = compare(checkpoints / "llama", "--candidate", checkpoints / "tuned").report
        origin = report["verdict"]["origin"]
        assert (origin["module"], origin["kind"]) == ("model.layers.1.mlp.gate_proj", "parameter")
        assert report["verdict"]["confirmed"]
        ran = compare(checkpoints / "llama", "--candidate", checkpoints / "mistral")
        assert ran.code == 0
        assert re.search(r"coverage: (\d+) of \1 modules", ran.out)
        assert ran.report["verdict"]["agrees"] is True


@pytest.mark.covers
def test_a_port_is_paired_by_value(compare, monkeypatch) -> None:
    """A Llama of transformers against another implementation, under other names."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    report = compare("tiny-llama", "--candidate", f"{PORT}:build").report
    assert report["verdict"]["agrees"], report["verdict"]["explanation"]
    compared = {row["module"] for row in report["rows"]}
    assert {"model.layers.3.self_attn.k_proj", "model.layers.0.mlp", "lm_head"} <= compared
    missing = report["coverage"]["reference_only"]
    activations = [f"model.layers.{layer}.mlp.act_fn" for layer in range(4)]
    assert sorted(missing) == ["model", *activations, "model.rotary_emb"]


@pytest.mark.covers
@pytest.mark.parametrize("options", [
    "stories260K/hf --candidate bfloat16", "stories260K/hf --candidate sdpa",
    "stories260K/hf --variant prefill --batch 3",
    "stories260K/hf --variant prefill_reference --batch 3",
    "wikitext2-llama/hf --candidate float16", "wikitext2-llama/hf --candidate eager",
])  # fmt: skip
def test_real_checkpoints(compare, shared_data: Path, options: str) -> None:
    assert compare(*f"{shared_data / options} --sequence-length 16".split()).code == 0


@pytest.mark.covers
class TestTraining:
    def test_dropout_is_alike_and_another_rate_is_found(self, compare, net: str) -> None:
        ran = compare(f"{net}:build", "--candidate", f"{net}:build", "--train")
        assert ran.code == 0
        said = (
            "training mode: `drop` drops out (p 0.5) and 1 more; each call draws the same numbers"
        )
        assert said in ran.words
        assert "The models agree: every compared value is equal." in ran.words
        report = compare(f"{net}:build", "--candidate", f"{net}:other", "--train").report
        assert report["verdict"]["origin"]["module"] == "drop"
        assert "Its `p` is 0.5 in the reference and 0.2" in report["verdict"]["explanation"]

    def test_the_seed_says_what_drops_out(self, capsys, net: str) -> None:
        def rows(around: int, *options: str) -> list[object]:
            torch.manual_seed(around)
            arguments = (f"{net}:build", "--candidate", "bfloat16", "--train", *options)
            main(["compare", *arguments, "--json"])
            return json.loads(capsys.readouterr().out)["rows"]

        assert rows(1) == rows(2) != rows(1, "--seed", "1")

    def test_without_dropout(self, compare, net: str) -> None:
        assert compare(f"{net}:build", "--candidate", f"{net}:other").code == 0
        arguments = ("--candidate", "sdpa", "--sequence-length", "4", "--train")
        ran = compare("tiny-llama", *arguments)
        assert ran.code == 0
        assert "training mode, in which nothing drops out" in ran.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there(refused) -> None:
    message = refused("compare", "tiny-llama", "--candidate-device", "cuda")
    assert "device 'cuda' cannot be used here: " in message
    assert "this machine has cpu" in message
