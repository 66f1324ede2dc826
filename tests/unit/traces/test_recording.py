"""What is recorded of a run, and that the model is left as it was."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import tracer
import wrappers
from tests.builders.small_net import Net, X, recorded
from tracer.errors import InputError, UsageError
from tracer.execution.hooks import Phase
from tracer.models.loading import load
from tracer.traces.recorded import Playback, open_trace


def test_what_it_returns_and_the_header(tmp_path, net) -> None:
    made = tracer.record(
        *(net, {"x": X}, tmp_path / "a"),
        name="a net",
        seed=4,
        command="record it",
        notes=["by hand"],
    )
    assert (made.calls, made.path) == (5, str(tmp_path / "a"))
    trace = open_trace(tmp_path / "a")
    header = trace.header
    for key in ("trace_model", "torch", "transformers", "safetensors", "python", "platform"):
        assert header[key]
    expected = {
        "name": "a net",
        "model": "Net",
        "dtype": "float32",
        "device": "cpu",
        "values": "all",
        "include": ["*"],
        "seed": 4,
        "command": "record it",
        "notes": ["by hand"],
        "training": False,
        "format": 3,
    }
    assert expected.items() <= header.items()
    assert list(header["modules"]) == [name for name, _ in net.named_modules()]
    assert type(trace).__name__ == "Net"
    assert [type(m).__name__ for m in trace.modules()] == [type(m).__name__ for m in net.modules()]
    args, kwargs = trace.inputs()
    assert args == ()
    assert torch.equal(kwargs["x"], X)


def test_checksums_and_values_stored_once(tmp_path, net, broken) -> None:
    sums = [
        recorded(model, X, tmp_path / name).header["checksum"]
        for name, model in (("a", net), ("b", copy.deepcopy(net)), ("c", broken))
    ]
    assert sums[0] == sums[1] != sums[2]
    made = tracer.record(net, X, tmp_path / "d")
    # The inputs and their copy, the outputs of three linear layers, tanh and its product.
    assert made.tensors == 6
    calls = {(c.name, p.value): c for c, p in Playback(open_trace(tmp_path / "d")).events()}
    assert calls["", "start"].arguments["x"] is calls["block.first", "start"].arguments["input"]


def test_an_edit_in_place_is_another_value(tmp_path: Path) -> None:
    class Editing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Identity(), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x * 1)
            y.add_(1)
            return self.b(y)

    trace = recorded(Editing(), X, tmp_path / "a")
    outputs = {c.name: c.output for c, p in Playback(trace).events() if p is Phase.END}
    assert torch.equal(outputs["a"], X)
    assert torch.equal(outputs["b"], X + 1)


def test_values_let_go_and_a_part_of_the_modules(tmp_path: Path, net) -> None:
    deep = nn.Sequential(*(nn.Linear(8, 8) for _ in range(20)))
    playback = Playback(recorded(deep, X, tmp_path / "a"))
    assert max(len(playback._alive) for _ in playback.events()) <= 3
    assert not playback._alive
    trace = recorded(net, X, tmp_path / "b", include=["block.*"])
    assert set(trace.called) == {"block.first", "block.second"}
    coverage = tracer.compare(trace, net).coverage
    assert set(coverage.paired_modules) - {"", "block", "last"} == {"block.first", "block.second"}
    assert {coverage.reasons[n] for n in coverage.reference_only} == {"not recorded"}


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    loaded = load("tiny-llama")
    before = {name: t.clone() for name, t in loaded.model.state_dict().items()}
    random_state = torch.get_rng_state()
    expected = loaded.model(**loaded.inputs).logits
    trace = recorded(loaded.model, loaded.inputs, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.model.modules())
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    outputs = [c.output for c, p in Playback(trace).events() if p is Phase.END]
    assert torch.equal(outputs[-1]["logits"], expected)


@pytest.mark.parametrize(("options", "message"), [
    ({"values": "some"}, "expected one of all, outputs, fingerprints"),
    ({"include": "nothing.*"}, "matches none of the 5 modules that the model has"),
])  # fmt: skip
def test_what_cannot_be_asked_for(tmp_path, net, options, message) -> None:
    with pytest.raises(UsageError, match=message):
        tracer.record(net, X, tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


def test_a_model_without_values(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = nn.Linear(8, 8)
    with pytest.raises(UsageError, match="meta device has no values to record"):
        tracer.record(model, X.to("meta"), tmp_path / "a")


def test_a_dtype_without_a_place_is_left_out(tmp_path: Path) -> None:
    class Coarse(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + 1, x.to(torch.float8_e4m3fnuz)

    trace = recorded(Coarse(), X, tmp_path / "a")
    (output,) = [c.output for c, p in Playback(trace).events() if p is Phase.END]
    assert str(output[1]) == "float8_e4m3fnuz has no place in a trace"
    assert tracer.compare(trace, Coarse()).coverage.left_out == 1


def test_inference_tensors(tmp_path, net) -> None:
    class Inferring(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return super().forward(x)

    net.__class__ = Inferring
    assert tracer.compare(recorded(net, X, tmp_path / "a"), net).verdict.agrees


def test_a_wrapped_model_is_recorded_in_the_form_of_its_model(tmp_path: Path) -> None:
    loaded = load("tiny-llama")
    wrapped = wrappers.prepare(loaded.model, wrappers.PTQConfig(variant="prefill")).eval()
    trace = recorded(wrapped, loaded.inputs, tmp_path / "a")
    assert tracer.compare(trace, wrapped).verdict.agrees
    assert tracer.compare(trace, loaded.model).verdict.agrees


def test_a_cache_among_the_inputs(tmp_path: Path) -> None:
    loaded = load("tiny-llama")
    cache = DynamicCache()
    ids = loaded.inputs["input_ids"]
    with torch.no_grad():
        loaded.model(ids[:, :8], past_key_values=cache, use_cache=True)
    inputs = {"input_ids": ids[:, 8:], "past_key_values": cache}
    trace = recorded(loaded.model, inputs, tmp_path / "a")
    comparison = tracer.compare(trace, loaded.model, inputs)
    assert comparison.verdict.agrees
    assert any(row.is_written for row in comparison.rows)
    with pytest.raises(InputError, match="hold an object"):
        tracer.compare(trace, loaded.model)


def test_names_and_files_of_a_trace(tmp_path: Path, net) -> None:
    model = nn.Module()
    model.header = nn.Linear(8, 8)
    model.add_module("name", nn.Linear(8, 8))
    model.forward = lambda x: model.name(model.header(x))
    trace = recorded(model, X, tmp_path / "a")
    assert tuple(tracer.compare(trace, model).coverage.paired_modules) == ("", "header", "name")
    recorded(net, X, tmp_path / "b")
    names = sorted(file.name for file in (tmp_path / "b").iterdir())
    assert names == ["events.jsonl", "header.json", "values-00000.safetensors"]
    for line in (tmp_path / "b" / "events.jsonl").read_text().splitlines():
        json.loads(line)
