"""Models that a function of the user's makes."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tracer
from tracer.models.factories import build
from tracer.models.locate import factory_of, locate

CODE = """
import torch
from torch import nn
from widths import WIDTH

class Net(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.layer = nn.Linear(width, 4)

    def forward(self, x, *, shift=0.0):
        return self.layer(x) + shift

class Kinds:
    @staticmethod
    def small():
        return Net(2)

ready = Net(3)
number = 3

def alone():
    return Net()

def with_inputs():
    return Net(), {"x": torch.ones(2, WIDTH)}

def with_tokens():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 16}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))

def without_parameters():
    return nn.ReLU(), {"input": torch.ones(2)}

def wide():
    return Net().double(), {"x": torch.ones(2, WIDTH, dtype=torch.float64)}

def needs(width):
    return Net(width)

def fails():
    raise KeyError("weights")

def ends():
    raise SystemExit("no")

def nothing():
    pass

def three():
    return Net(), {}, 1

def listed():
    return Net(), [torch.ones(2)]

def numbers():
    return Net(), {"x": 1.0}

def empty():
    return Net(), {}
"""


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of the user's, with another one beside it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "widths", raising=False)
    (tmp_path / "widths.py").write_text("WIDTH = 8\n")
    (tmp_path / "port.py").write_text(CODE)
    return str(tmp_path / "port.py")


class TestNames:
    @pytest.mark.parametrize(("name", "parts"), [
        ("port.py:build", ("port.py", "build")),
        ("/a folder/the port.py:Kinds.small", ("/a folder/the port.py", "Kinds.small")),
        ("port:build", ("port", "build")),
        ("package.port:build", ("package.port", "build")),
        ("organisation/name", None), ("tiny-llama", None), ("C:\\models\\llama", None),
        ("port.py:", None), ("port.py:1", None), ("package/port:build", None),
    ])  # fmt: skip
    def test_of_a_function(self, name: str, parts: tuple[str, str] | None) -> None:
        assert factory_of(name) == parts

    @pytest.mark.parametrize(("name", "said"), [
        ("nowhere.py:build", r"there is no file nowhere\.py"),
        ("nowhere.port:build", "no module 'nowhere', neither installed"),
    ])  # fmt: skip
    def test_what_is_not_there(self, name: str, said: str) -> None:
        with pytest.raises(tracer.ModelLoadError, match=said):
            locate(name)


class TestBuild:
    def test_a_function(self, port: str) -> None:
        built = build(f"{port}:alone", 0)
        assert built.inputs is None
        assert built.model.layer.in_features == 8
        inputs = build(f"{port}:with_inputs", 0).inputs
        assert {name: value.shape for name, value in inputs.items()} == {"x": (2, 8)}

    def test_classes_methods_and_models(self, port: str) -> None:
        widths = [
            build(f"{port}:{name}", 0).model.layer.in_features
            for name in ("Net", "Kinds.small", "ready")
        ]
        assert widths == [8, 2, 3]
        one, two = (build(f"{port}:{name}", 0).model for name in ("alone", "with_inputs"))
        assert type(one) is type(two)

    def test_modules_of_the_working_directory_and_seeds(self, port: str, monkeypatch) -> None:
        monkeypatch.chdir(Path(port).parent)
        monkeypatch.delitem(sys.modules, "port", raising=False)
        assert locate("port:alone") == "port:alone"
        assert isinstance(build("port:alone", 0).model, nn.Module)
        before = torch.get_rng_state()
        weights = [build(f"{port}:alone", seed).model.layer.weight for seed in (0, 0, 1)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(("name", "said"), [
        ("alon", "there is no 'alon'; did you mean 'alone'"),
        ("Kinds.large", "there is no 'large'"), ("number", "is a int: expected a function"),
        ("needs", r"TypeError: needs\(\) missing 1 required positional argument: 'width'"),
        ("fails", r"cannot be called: KeyError: 'weights', at .*port\.py:\d+"),
        ("ends", "cannot be called: SystemExit: no"),
        ("nothing", "returned a NoneType: expected an nn.Module, or a pair"),
        ("three", "returned a tuple: expected"), ("listed", "returned inputs of type list"),
        ("numbers", "returned x that are no tensors"), ("empty", "returned no inputs"),
    ])  # fmt: skip
    def test_what_is_no_model(self, port: str, name: str, said: str) -> None:
        with pytest.raises(tracer.ModelLoadError, match=said):
            build(f"{port}:{name}", 0)

    @pytest.mark.parametrize("code", ["import missing_package", "1 / 0", "raise SystemExit(1)"])
    def test_code_that_cannot_be_imported(self, port: str, code: str) -> None:
        Path(port).with_name("broken.py").write_text(f"\n{code}\n")
        name = port.replace("port.py", "broken.py")
        for _ in range(2):
            with pytest.raises(tracer.ModelLoadError, match=r"imported: .*, at .*broken\.py:2$"):
                build(f"{name}:build", 0)


class TestLoad:
    def test_its_own_inputs(self, port: str) -> None:
        loaded = tracer.models.load(f"{port}:with_inputs")
        assert not loaded.model.training
        assert loaded.inputs["x"].shape == (2, 8)
        assert loaded.notes == (f"inputs: of {port}:with_inputs: x",)
        with pytest.raises(tracer.UsageError, match="there are no wrappers for Net"):
            tracer.models.candidate(loaded, "wrapped")
        given = {"x": torch.zeros(1, 8)}
        assert tracer.models.load(f"{port}:with_inputs", inputs=given).inputs["x"].shape == (1, 8)

    @pytest.mark.parametrize(("name", "options", "error", "said"), [
        ("alone", {}, tracer.InputError, "makes a Net, whose inputs are not known"),
        ("with_inputs", {"batch": 2}, tracer.UsageError, "makes its own inputs"),
        ("alone", {"video": 2}, tracer.UsageError, "are for checkpoints"),
        ("alone", {"offload": True}, tracer.UsageError, "are for checkpoints"),
        ("with_tokens", {"inputs": {"x": torch.ones(1)}}, tracer.InputError, "takes no input 'x'"),
    ])  # fmt: skip
    def test_what_does_not_go_with_it(self, port: str, name, options, error, said) -> None:
        with pytest.raises(error, match=said):
            tracer.models.load(f"{port}:{name}", **options)

    def test_other_models_of_a_user(self, port: str) -> None:
        loaded = tracer.models.load(f"{port}:with_tokens", batch=2, sequence_length=4)
        assert loaded.inputs["input_ids"].shape == (2, 4)
        loaded = tracer.models.load(f"{port}:without_parameters")
        candidate = tracer.models.candidate(loaded, f"{port}:without_parameters")
        assert tracer.compare(loaded.model, candidate, loaded.inputs).verdict.agrees

    def test_the_reference_is_cast_and_the_candidate_is_not(self, port: str) -> None:
        loaded = tracer.models.load(f"{port}:wide")
        assert loaded.model.layer.weight.dtype == loaded.inputs["x"].dtype == torch.float32
        candidate = tracer.models.candidate(loaded, f"{port}:wide")
        assert candidate.layer.weight.dtype == torch.float64
        as_built = tracer.models.load(f"{port}:wide", dtype="auto")
        assert as_built.model.layer.weight.dtype == as_built.inputs["x"].dtype == torch.float64
