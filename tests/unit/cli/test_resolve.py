"""A request becomes models and inputs."""

import sys
from dataclasses import replace

import pytest
import torch

import wrappers
from tests.builders.small_net import Net, X, recorded
from tracer.cli import main
from tracer.cli.parser import parse
from tracer.cli.requests import CompareRequest, RecordRequest
from tracer.cli.resolve import resolve, resolve_model
from tracer.errors import InputError, UsageError


def test_a_model_and_its_candidate() -> None:
    sides = resolve(CompareRequest(model="random-llama", candidate="bfloat16", sequence_length=4))
    assert sides.names == ("random-llama (LlamaForCausalLM, float32, cpu)", "bfloat16")
    assert sides.candidate.dtype is torch.bfloat16
    assert sides.inputs is not None
    assert sides.inputs["input_ids"].shape == (1, 4)
    assert not sides.quantized


def test_one_model() -> None:
    subject = resolve_model(RecordRequest(model="random-llama", out="x", batch=2, steps=1))
    assert type(subject.model).__name__ == "Stepping"
    assert "a prefill, and 1 decode steps" in subject.notes[-1]


def test_a_glob_that_matches_nothing() -> None:
    with pytest.raises(UsageError, match=r"--focus 'layers' matches none of the \d+ modules"):
        resolve(CompareRequest(model="random-llama", candidate="bfloat16", focus=("layers",)))


def test_a_trace_that_is_compared_in_python(tmp_path) -> None:
    path = tmp_path / "a.trace"
    recorded(Net(), X, path)
    request = CompareRequest(model="random-llama", reference=str(path), candidate="itself")
    with pytest.raises(UsageError, match="recorded with other inputs than tensors by name"):
        resolve(request)


PORTS = """
import torch
from torch import nn

class A(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, pixels):
        return self.conv(pixels)

class B(A):
    def forward(self, image):
        return self.conv(image.permute(0, 3, 1, 2))

class C(A):
    def forward(self, image):
        return self.conv(image)

class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(512, 4)

    def forward(self, tokens):
        return self.table(tokens)

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))

def a():
    return A(), {"pixels": X}

def b():
    return B(), {"image": X.permute(0, 2, 3, 1)}

def other():
    return B(), {"image": X.permute(0, 2, 3, 1) + 1}

def alone():
    return C()

def tokens():
    return Embedding(), {"tokens": torch.arange(6)[None]}

def tokens_alone():
    return Embedding()
"""
NAMES = (("image", "pixels"),)


class TestTheInputsOfACandidateThatAFunctionMakes:
    @pytest.fixture(autouse=True)
    def ports(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "ports.py").write_text(PORTS)

    def test_they_are_its_own(self) -> None:
        sides = resolve(CompareRequest(model="ports.py:a", candidate="ports.py:b"))
        assert [*sides.inputs] == ["pixels"]
        assert [*sides.candidate_inputs] == ["image"]
        assert sides.notes == (
            "inputs: of ports.py:a: pixels",
            "inputs of the candidate: of ports.py:b: image; not checked to be the reference's: "
            "image",
        )

    @pytest.mark.covers
    def test_a_name_is_mapped_and_what_is_the_same_agrees(self) -> None:
        request = ["compare", "ports.py:a", "--map-input", "image=pixels", "--candidate"]
        sides = resolve(parse([*request, "ports.py:b"]))
        assert sides.notes[1] == "inputs of the candidate: of ports.py:b: image"
        assert main([*request, "ports.py:b"]) == 0
        assert main([*request, "ports.py:alone"]) == 0

    def test_other_data_is_refused(self, capsys) -> None:
        request = ["compare", "ports.py:a", "--map-input", "image=pixels", "--candidate"]
        assert main([*request, "ports.py:other"]) == 2
        assert "both sides are given `pixels` (the candidate's `image`), and not" in (
            capsys.readouterr().err
        )

    def test_made_up_inputs_give_way(self) -> None:
        names = (("tokens", "input_ids"),)
        request = CompareRequest(model="random-llama", candidate="ports.py:tokens", map_input=names)
        sides = resolve(request)
        assert sides.inputs is not None
        assert sides.inputs["input_ids"].tolist() == [list(range(6))]
        assert sides.notes[-1] == "inputs: of ports.py:tokens: tokens"
        asked = replace(request, sequence_length=6)
        assert resolve(asked).inputs["input_ids"].tolist() != [list(range(6))]
        with pytest.raises(UsageError, match=r"inputs named tokens, and random-llama takes "
                           "input_ids.*--map-input tokens=input_ids"):  # fmt: skip
            resolve(replace(request, map_input=()))

    @pytest.mark.covers
    def test_traces_on_either_side(self, tmp_path, capsys) -> None:
        for name in ("a", "b"):
            assert main(["record", f"ports.py:{name}", "--out", f"{name}.trace"]) == 0
        mapped = ["--map-input", "image=pixels"]
        for reference, candidate in (
            ("a.trace", "ports.py:b"), ("a.trace", "ports.py:alone"), ("ports.py:a", "b.trace"),
            ("a.trace", "b.trace"),
        ):  # fmt: skip
            assert main(["compare", reference, "--candidate", candidate, *mapped]) == 0
        assert main(["compare", "a.trace", "--candidate", "ports.py:other", *mapped]) == 2
        assert "not the same data" in capsys.readouterr().err
        compared = ["compare", "ports.py:a", "--candidate", "ports.py:b", *mapped]
        assert main([*compared, "--baseline", "b.trace"]) == 0

    def test_recorded_alone(self, capsys) -> None:
        request = RecordRequest(model="ports.py:a", candidate="ports.py:b", out="x")
        assert [*resolve_model(request).inputs] == ["image"]
        alone = replace(request, candidate="ports.py:tokens_alone", model="random-llama")
        subject = resolve_model(replace(alone, map_input=(("tokens", "input_ids"),)))
        assert [*subject.inputs] == ["tokens"]
        with pytest.raises(InputError, match="not the same data"):
            resolve_model(replace(request, candidate="ports.py:other", map_input=NAMES))

    @pytest.mark.parametrize(("options", "message"), [
        (["--candidate", "sdpa"], "the candidate is sdpa, which has those of the model"),
        (["--candidate", "ports.py:tokens", "--steps", "1"], "--steps gives both sides input_ids"),
    ])  # fmt: skip
    def test_names_that_mean_nothing(self, options, message, capsys) -> None:
        command = ["compare", "random-llama", "--map-input", "tokens=input_ids", *options]
        assert main(command) == 2
        assert message in capsys.readouterr().err


class TestTheQuantisedCandidate:
    """Mixed precision, and a configuration from a file."""

    def kinds(self, *options: str) -> dict[str, str]:
        command = ["compare", "random-llama", "--sequence-length", "4", "--calibrate", "0"]
        request = parse([*command, "--candidate", "quantized", *options])
        self.sides = resolve(request)
        return {
            f"{module}.{name}": point.kind
            for module, name, point in wrappers.iter_points(self.sides.candidate)
        }

    def test_overrides(self) -> None:
        kinds = self.kinds("--override", "*.down_proj=int16", "--override", "lm_head=float")
        assert kinds["model.layers.3.mlp.down_proj.weight"] == "int16"
        assert kinds["lm_head.weight"] == "identity"
        assert kinds["model.layers.3.mlp.up_proj.weight"] == "uint8"
        assert self.sides.names[1] == (
            "quantized (variant prefill, activation uint8, weight uint8, *.down_proj=int16, "
            "lm_head=float)"
        )

    def test_a_file(self, tmp_path) -> None:
        file = tmp_path / "c.json"
        config = wrappers.PTQConfig(
            activation=wrappers.affine("int16"),
            overrides={"lm_head.weight": wrappers.affine("uint4")},
            variant="decode",
        )
        file.write_text(config.to_json())
        kinds = self.kinds("--config", str(file), "--override", "lm_head.act_in=uint8")
        assert kinds["model.layers.0.mlp.act_in"] == "int16"
        assert kinds["lm_head.weight"] == "uint4"
        assert kinds["lm_head.act_in"] == "uint8"
        assert self.sides.names[1] == (
            "quantized (variant decode, config c.json, lm_head.act_in=uint8)"
        )
        assert self.sides.inputs["input_ids"].shape == (1, 1)  # a decode step

    @pytest.mark.parametrize(("text", "message"), [
        ("", "c.json: not a PTQConfig in JSON"), ("[]", "expected an object, found"),
        ('{"weigth": {}}', "a PTQConfig has no 'weigth'"), ("\\xff", "c.json: "),
    ])  # fmt: skip
    def test_a_file_that_is_none(self, text, message, tmp_path, capsys) -> None:
        (tmp_path / "c.json").write_bytes(text.encode().decode("unicode_escape").encode("latin-1"))
        options = ["--candidate", "quantized", "--config", str(tmp_path / "c.json")]
        assert main(["compare", "random-llama", *options]) == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(("options", "message"), [
        (["--override", "x=int8"], "--override goes with --candidate quantized"),
        (["--candidate", "quantized", "--override", "int8"], "expected GLOB=DTYPE"),
        (["--candidate", "quantized", "--override", "*.mpl=int8"], "did you mean *.mlp"),
        (["--candidate", "quantized", "--weight", "int8", "--config", __file__], "choose one"),
    ])  # fmt: skip
    def test_what_is_refused(self, options, message, capsys) -> None:
        assert main(["compare", "random-llama", *options]) == 2
        assert message in capsys.readouterr().err
