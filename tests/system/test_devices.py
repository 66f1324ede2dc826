"""Two models on two devices; here one that only says so, and on CUDA where there is one."""

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from tests.builders.comparing import agreed
from tests.builders.second_device import DEVICE, Elsewhere, second_device
from tracer.cli import main

X = torch.linspace(-1.0, 1.0, 24).reshape(1, 3, 8)


class Attention(nn.Module):
    """Has a parameter, a buffer, a table beside them and a setting of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.register_buffer("shift", torch.linspace(0.0, 1.0, 8))
        self.scale = 8**-0.5

    def forward(self, x, attention_mask=None):
        query, key, value = self.qkv(x + self.shift).chunk(3, dim=-1)
        logits = query @ key.mT * self.scale
        if attention_mask is not None:
            logits = logits + attention_mask
        return self.out(logits.softmax(-1) @ value)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = Attention()
        self.head = nn.Linear(8, 4)
        self.is_masked = True

    def forward(self, x, seen=None):
        mask = (
            torch.full((3, 3), -120.0, dtype=x.dtype, device=x.device).triu(1)
            if self.is_masked
            else None
        )
        x = x + self.attention(x, attention_mask=mask)
        if seen is not None:
            seen.append(x)
        return self.head(x)


Plant = Callable[[Any], object]
NOTHING: Plant = lambda model: None  # noqa: E731


def edited(path: str) -> Plant:
    def plant(model: Net) -> None:
        tensor = model.get_parameter(path) if "shift" not in path else model.attention.shift
        with torch.no_grad():
            tensor[1] += 1.0

    return plant


def setting(path: str, **values: Any) -> Plant:
    return lambda model: vars(model.get_submodule(path)).update(values)


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with second_device():
        yield


def pair(plant: Plant, candidate_is_there: bool) -> tuple[Net, Net]:
    reference, candidate = Net().eval(), Net().eval()
    plant(candidate)
    (candidate if candidate_is_there else reference).to(DEVICE)
    return reference, candidate


def inputs(reference: Net) -> torch.Tensor:
    return X.to(reference.head.weight.device)


MISTAKES = [
    (True, edited("head.bias"), "head", "parameter"),
    (False, edited("attention.shift"), "attention", "parameter"),
    (False, setting("attention", scale=1.0), "attention", "computation"),
    (True, setting("", is_masked=False), "", "attention_mask"),
    (False, setting("", is_masked=False), "", "attention_mask"),
]


class TestOnTwoDevices:
    @pytest.mark.covers
    @pytest.mark.parametrize("there", [True, False], ids=["candidate", "reference"])
    def test_the_same_model(self, there: bool) -> None:
        reference, candidate = pair(NOTHING, there)
        assert isinstance((candidate if there else reference).head.weight, Elsewhere)
        options = {"isolate": "leaves", "what_if": 1, "noise_floor": True, "samples": 8}
        comparison = agreed(reference, candidate, inputs(reference), **options)
        assert all(row.error == 0.0 for row in comparison.rows)
        assert all(row.sample is not None for row in comparison.rows if row.is_output)
        assert not [note for note in comparison.verdict.explanation.splitlines() if "not" in note]

    @pytest.mark.parametrize(("there", "plant", "module", "found"), MISTAKES)
    def test_a_mistake_is_found(self, there: bool, plant: Plant, module: str, found: str) -> None:
        reference, candidate = pair(plant, there)
        verdict = tracer.compare(reference, candidate, inputs(reference)).verdict
        origin = verdict.origin
        assert origin is not None
        assert (origin.module, origin.argument or origin.kind) == (module, found)
        assert verdict.confirmed, verdict.explanation

    @pytest.mark.covers
    def test_the_line_and_what_it_costs(self) -> None:
        reference, candidate = pair(setting("attention", scale=1.0), candidate_is_there=True)
        options = {"isolate": "leaves", "what_if": 2}
        comparison = tracer.compare(reference, candidate, inputs(reference), **options)
        assert "\n  candidate: mul at " in comparison.verdict.explanation
        assert comparison.isolation is not None
        worst = comparison.isolation.modules[0]
        assert (worst.module, round(worst.share, 3)) == ("attention", 1.0)
        assert comparison.isolation.recoveries[0].after < 1e-6
        assert not comparison.isolation.unforced

    @pytest.mark.covers
    @pytest.mark.parametrize("there", [True, False], ids=["candidate", "reference"])
    def test_a_list_is_filled_on_both(self, there: bool) -> None:
        reference, candidate = pair(edited("attention.out.bias"), there)
        given = {"x": inputs(reference), "seen": []}
        verdict = tracer.compare(reference, candidate, given).verdict
        assert verdict.origin is not None
        assert verdict.origin.module == "attention.out"
        assert verdict.confirmed, verdict.explanation

    @pytest.mark.covers
    @pytest.mark.parametrize("there", [True, False], ids=["candidate", "reference"])
    def test_a_table_in_an_attribute(self, there: bool) -> None:
        both = Net().eval(), Net().eval()
        for model, value in zip(both, (1.0, 2.0), strict=True):
            del model.attention.shift
            model.attention.shift = torch.full((8,), value)
        moved = both[int(there)].to(DEVICE)
        moved.attention.shift = moved.attention.shift.to(DEVICE)
        verdict = tracer.compare(*both, inputs(both[0])).verdict
        assert verdict.origin is not None
        assert (verdict.origin.module, verdict.origin.kind) == ("attention", "parameter")
        assert verdict.confirmed, verdict.explanation

    @pytest.mark.parametrize("there", [True, False], ids=["candidate", "reference"])
    def test_captured_values_stay_where_they_are(self, there: bool) -> None:
        reference, candidate = pair(NOTHING, there)
        captured = tracer.capture(reference, candidate, inputs(reference), include="head")
        where = {(value.reference.device.type, value.candidate.device.type) for value in captured}
        assert where == {("cpu", "xla") if there else ("xla", "cpu")}


def test_another_dtype_and_tensors_that_stay() -> None:
    reference, candidate = pair(NOTHING, candidate_is_there=True)
    comparison = agreed(reference, candidate.bfloat16(), X)
    assert {row.candidate_dtype for row in comparison.rows if row.is_output} == {torch.bfloat16}
    # Inputs that only the candidate could take are not moved for the reference.
    reference, candidate = pair(NOTHING, candidate_is_there=True)
    with pytest.raises(tracer.ModelRunError, match=r"the reference raised .* on one device"):
        tracer.compare(reference, candidate, X.to(DEVICE))


FACTORY = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), {"input": torch.ones(2, 8)}
"""


class TestCommandLine:
    @pytest.mark.parametrize("is_itself", [True, False])
    def test_the_candidate_is_there(self, capsys, monkeypatch, tmp_path, is_itself):
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setenv("COLUMNS", "400")
        (tmp_path / "net.py").write_text(FACTORY)
        name = f"{tmp_path / 'net.py'}:build"
        candidate = [] if is_itself else ["--candidate", name]
        assert main(["compare", name, "--candidate-device", str(DEVICE), *candidate]) == 0
        head = capsys.readouterr().out.splitlines()[0]
        own = f"{name} (Sequential, float32, xla:0)" if is_itself else f"{name} (on xla:0)"
        assert head == f"{name} (Sequential, float32, cpu) against {own}"


def test_the_model_is_left_where_it_is() -> None:
    loaded = tracer.models.Loaded("net", Net(), {"x": X})
    moved = tracer.models.moved(loaded, DEVICE)
    assert {p.device.type for p in loaded.model.parameters()} == {"cpu"}
    assert {p.device.type for p in moved.model.parameters()} == {"xla"}
    assert (loaded.inputs["x"].device.type, moved.inputs["x"].device.type) == ("cpu", "xla")


def test_weights_on_disk_are_not_moved() -> None:
    loaded = tracer.models.Loaded("net", Net(), {"x": X}, offload=True)
    with pytest.raises(tracer.UsageError, match="is not moved"):
        tracer.models.moved(loaded, DEVICE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
class TestCuda:
    def test_the_model_itself(self) -> None:
        arguments = ["--batch", "2", "--candidate-device", "cuda"]
        for kind in ([], ["--candidate", "wrapped"], ["--candidate", "sdpa"]):
            assert main(["compare", "tiny-llama", *arguments, *kind]) == 0

    def test_a_mistake_is_found(self) -> None:
        loaded = tracer.models.load("tiny-llama")
        candidate = copy.deepcopy(loaded.model).cuda()
        candidate.model.layers[1].self_attn.scaling *= 2
        verdict = tracer.compare(loaded.model, candidate, loaded.inputs).verdict
        assert verdict.origin is not None
        assert verdict.origin.module == "model.layers.1.self_attn"
        assert verdict.confirmed
