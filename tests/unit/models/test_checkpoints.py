"""Checkpoints and where they come from: whole ones load, others are refused in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors.torch import load_file, save_file
from torch import nn

from tracer.errors import ModelLoadError
from tracer.models.builtin import build
from tracer.models.checkpoints import load_pretrained, load_tokenizer
from tracer.models.locate import check_hub, locate


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a checkpoint, without a tokenizer."""
    folder = tmp_path_factory.mktemp("saved") / "llama"
    build("random-llama", seed=1).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(saved, tmp_path / "llama"))


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path, dtype: torch.dtype | None = torch.float32) -> nn.Module:
    return load_pretrained("it", folder, dtype)[0]


class TestWhole:
    def test_weights_and_dtypes_are_those_of_the_checkpoint(self, saved: Path, checkpoint: Path):
        loaded, notes = load_pretrained("it", saved, torch.float32)
        for name, parameter in build("random-llama", seed=1).named_parameters():
            assert torch.equal(parameter, loaded.get_parameter(name)), name
        assert notes == ()
        build("random-llama", seed=1).to(torch.bfloat16).save_pretrained(checkpoint)
        assert next(load(checkpoint, None).parameters()).dtype == torch.bfloat16
        model, notes = load_pretrained("it", checkpoint, torch.float32)
        assert next(model.parameters()).dtype == torch.float32
        assert notes == ("loaded in float32; the checkpoint is bfloat16",)

    def test_what_is_said_of_weights(self, checkpoint: Path, capfd):
        change_weights(checkpoint, lambda weights: weights.update(extra=torch.ones(2)))
        _, notes = load_pretrained("it", checkpoint, torch.float32)
        assert notes == ("weights in the checkpoint that LlamaForCausalLM has no use for: extra",)
        change_weights(checkpoint, lambda weights: weights.pop("lm_head.weight"))
        with pytest.raises(ModelLoadError):
            load(checkpoint)
        assert capfd.readouterr() == ("", "")


INDEX = "model.safetensors.index.json"
OWN_CODE = {
    "architectures": ["QuuxForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "quux.QuuxForCausalLM"},
}


class TestBroken:
    def refused(self, folder: Path, message: str) -> None:
        with pytest.raises(ModelLoadError, match=message) as error:
            load(folder)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("kept", [0, 4, 5000])
    def test_truncated(self, checkpoint: Path, kept: int):
        path = checkpoint / "model.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        self.refused(checkpoint, f"cannot be read .* is the file complete. It has {kept:,} bytes")

    def test_no_weights(self, checkpoint: Path):
        (checkpoint / "model.safetensors").unlink()
        self.refused(checkpoint, "the weights cannot be loaded: .*no file named model.safetensors")

    def test_missing_weights_are_not_made_up(self, checkpoint: Path):
        change_weights(checkpoint, lambda weights: weights.pop("model.norm.weight"))
        self.refused(checkpoint, "lacks 1 weights of LlamaForCausalLM.*: model.norm.weight")

    def test_another_shape(self, checkpoint: Path):
        change_config(checkpoint, vocab_size=500)
        self.refused(checkpoint, r"2 weights have another shape .*\[512, 64\] in the checkpoint")

    def test_a_shard_is_missing(self, checkpoint: Path):
        index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
        self.refused(checkpoint, "lacks model-00001-of-00002.safetensors, which .*index.json names")

    def test_an_index_that_is_none(self, checkpoint: Path):
        (checkpoint / "model.safetensors.index.json").write_text("[]")
        self.refused(checkpoint, "cannot be read as an index of shards")

    def test_config_is_no_json(self, checkpoint: Path):
        (checkpoint / "config.json").write_text("{")
        self.refused(checkpoint, "config.json cannot be read as JSON: Expecting")

    def test_a_field_of_the_wrong_type(self, checkpoint: Path):
        change_config(checkpoint, num_hidden_layers="four")
        self.refused(checkpoint, "num_hidden_layers.*expected int")

    def test_unknown_model_type(self, checkpoint: Path):
        change_config(checkpoint, model_type="quux")
        self.refused(checkpoint, "model type `quux`")

    def test_unknown_architecture(self, checkpoint: Path):
        change_config(checkpoint, architectures=["QuuxForCausalLM"])
        self.refused(checkpoint, "'QuuxForCausalLM' is not in transformers")

    def test_code_of_its_own(self, checkpoint: Path):
        change_config(
            checkpoint,
            architectures=["QuuxForCausalLM"],
            auto_map={"AutoModelForCausalLM": "quux.QuuxForCausalLM"},
        )
        self.refused(checkpoint, "brings code of its own, which --trust-remote-code runs")

    def test_no_architecture(self, checkpoint: Path):
        change_config(checkpoint, architectures=None)
        self.refused(checkpoint, 'names no class under "architectures"')


def test_code_of_its_own_runs_when_trusted(checkpoint: Path, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    (checkpoint / "quux.py").write_text(
        "from transformers import LlamaForCausalLM\n\n\n"
        "class QuuxForCausalLM(LlamaForCausalLM):\n    pass\n"
    )
    change_config(checkpoint, **OWN_CODE)
    model, _ = load_pretrained("it", checkpoint, torch.float32, trust_remote_code=True)
    assert type(model).__name__ == "QuuxForCausalLM"


class TestTokenizer:
    def test_none_a_real_one_and_a_broken_one(self, checkpoint: Path, shared_data: Path):
        assert load_tokenizer("it", checkpoint) is None
        tokenizer = load_tokenizer("it", shared_data / "stories260K" / "hf")
        assert tokenizer("Once upon a time")["input_ids"][0] == tokenizer.bos_token_id
        (checkpoint / "tokenizer.json").write_text("{")
        with pytest.raises(ModelLoadError, match="it: the tokenizer cannot be loaded"):
            load_tokenizer("it", checkpoint)

    def test_a_hub_repository_without(self, monkeypatch):
        asked: list[str] = []

        def cached_file(source: str, file: str, **options: object) -> None:
            asked.append(f"{source}/{file}")

        monkeypatch.setattr("transformers.utils.cached_file", cached_file)
        assert load_tokenizer("it", "organisation/name") is None
        assert "organisation/name/tokenizer.json" in asked


class TestLocate:
    def test_a_folder_a_name_and_a_hub_id(self, saved: Path):
        assert (locate(str(saved)), locate("random-llama")) == (saved, "random-llama")
        assert (locate("tiny-llama") / "model.safetensors").is_file()
        assert locate("organisation/name") == "organisation/name"

    @pytest.mark.parametrize(("name", "message"), [
        ("tiny-lama", "unknown model 'tiny-lama': .*tiny-qwen3-vl.*did you mean 'tiny-llama'"),
        ("./nowhere", "there is no folder of that name"),
        ("a/b/c", "a hub id has the form organisation/name"),
    ])  # fmt: skip
    def test_nowhere(self, name: str, message: str):
        with pytest.raises(ModelLoadError, match=message):
            locate(name)

    def test_no_checkpoint(self, saved: Path, tmp_path: Path):
        with pytest.raises(ModelLoadError, match=r"unknown candidate 'sdap'.*did you mean 'sdpa'"):
            locate("sdap", {"sdpa": "fused attention"})
        with pytest.raises(ModelLoadError, match=r"folder without config\.json"):
            locate(str(tmp_path))
        with pytest.raises(ModelLoadError, match="is a file: give the folder"):
            locate(str(saved / "config.json"))


class TestHub:
    @pytest.mark.parametrize(("raised", "message"), [
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (GatedRepoError, "its owner grants access"),
        (RepositoryNotFoundError, "no such repository, or a private one"),
        (EntryNotFoundError("no file"), "has no config.json, so it is no checkpoint"),
        (OSError("Name or service not known"), "cannot be reached .Name or service not known"),
    ])  # fmt: skip
    def test_errors_are_explained(self, raised, message: str, monkeypatch):
        def fail(*args: object, **kwargs: object) -> None:
            # The hub's own errors want a response, of which nothing is looked at here.
            raise raised if isinstance(raised, Exception) else raised.__new__(raised)

        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
        with pytest.raises(ModelLoadError, match=f"organisation/none: .*{message}"):
            check_hub("organisation/none")

    def test_what_is_in_the_cache_is_not_asked_for(self, monkeypatch):
        def fail(*args: object, **kwargs: object) -> None:
            raise AssertionError("the hub was asked")

        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: "/cached")
        check_hub("organisation/name")
