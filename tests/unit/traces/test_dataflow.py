"""What goes through one model: the numbers, the table, the tree and the JSON."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import tracer
import wrappers
from tracer.errors import InputError, ModelRunError, UsageError
from tracer.models.loading import load
from tracer.reports.dataflow import lines, render, show
from tracer.tensors.fingerprints import Fingerprint
from tracer.traces.dataflow import FlowCall, FlowValue, Moments

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, *, note: str = "", flag: bool = True) -> object:
        y = self.first(x)
        return {"y": self.second(y), "name": note, "again": self.second(y), "nothing": None}


class Writing(nn.Module):
    """Appends to a list that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Appending()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: list[torch.Tensor] = [x]
        self.inner(x, found)
        return found[-1]


class Appending(nn.Module):
    def forward(self, x: torch.Tensor, found: list[torch.Tensor]) -> None:
        found.append(x + 1)


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


@pytest.fixture(scope="module")
def quantized() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A tiny Llama that was calibrated and quantised, and its inputs."""
    loaded = load("tiny-llama")
    config = wrappers.PTQConfig(
        activation=wrappers.affine("uint8"), weight=wrappers.affine("uint4")
    )
    wrapped = wrappers.prepare(loaded.model, config).eval()
    wrappers.calibrate(wrapped, [loaded.inputs])
    return wrappers.convert(wrapped), loaded.inputs


class TestMoments:
    @pytest.mark.parametrize(
        "tensor",
        [X, X.to(torch.bfloat16), torch.arange(10), torch.tensor([True, False, False]), X[0, 0]],
    )
    def test_they_are_torchs_own(self, tensor: torch.Tensor) -> None:
        exact = tensor.double()
        expected = exact.mean(), exact.min(), exact.max(), exact.std(correction=0)
        for found in (Moments.of(tensor), Moments.of(Fingerprint.of(tensor))):
            values = found.mean, found.min, found.max, found.stddev
            assert values == pytest.approx([e.item() for e in expected], abs=1e-7)
            assert found.nonfinite == 0

    def test_of_complex_and_infinite_numbers(self) -> None:
        tensor = torch.tensor([1 + 2j, 3 - 4j])
        for found in (Moments.of(tensor), Moments.of(Fingerprint.of(tensor))):
            assert (found.mean, found.min, found.max) == (0.5, -4.0, 3.0)
        for tensor in (torch.tensor([math.nan, math.inf]), torch.empty(0)):
            for found in (Moments.of(tensor), Moments.of(Fingerprint.of(tensor))):
                assert found == Moments(None, None, None, None, tensor.numel())
        tensor = torch.tensor([1.0, math.nan, 3.0])
        for found in (Moments.of(tensor), Moments.of(Fingerprint.of(tensor))):
            assert found == Moments(2.0, 1.0, 3.0, 1.0, 1)


class TestFlow:
    def test_the_calls(self, net: Net) -> None:
        flow = tracer.flow(net, X)
        assert [(c.module, c.call, c.depth, c.module_class) for c in flow.calls] == [
            ("", 0, 0, "Net"), ("first", 0, 1, "Linear"), ("second", 0, 1, "Linear"),
            ("second", 1, 1, "Linear"),
        ]  # fmt: skip
        assert (flow.model, flow.is_complete, flow.points) == ("Net", True, {})
        assert flow.calls[0].caller is None
        assert flow.calls[1].caller.file == __file__
        with torch.no_grad():
            expected = net.first(X)
        (value,) = flow.calls[1].outputs
        assert (value.path, value.kind, value.shape) == ("output", "output", (3, 8))
        assert value.moments == Moments.of(expected)
        assert value.values is None

    def test_arguments_by_position_and_by_keyword(self, net: Net) -> None:
        call = tracer.flow(net, {"x": X, "note": "hello", "flag": False}).calls[0]
        assert [(v.path, v.kind, v.text) for v in call.arguments] == [
            ("x", "keyword", ""), ("note", "keyword", "'hello'"), ("flag", "keyword", "False"),
        ]  # fmt: skip
        assert [v.kind for v in tracer.flow(net, X).calls[0].arguments] == ["argument"]
        assert [(v.path, v.text) for v in call.outputs] == [
            ("output.y", ""), ("output.name", "'hello'"), ("output.again", ""),
            ("output.nothing", "None"),
        ]  # fmt: skip

    def test_parts_and_what_was_written(self, net: Net) -> None:
        call = tracer.flow(Writing(), X).calls[1]
        assert [(v.path, v.kind) for v in call.outputs] == [
            ("output", "output"),
            ("found.1", "written"),
        ]
        assert [v.path for v in call.arguments] == ["x", "found.0"]
        flow = tracer.flow(net, X, include="second", focus="second")
        assert [call.call for call in flow.calls] == [0, 1]
        assert [call.depth for call in flow.calls] == [0, 0]
        (value,) = flow.calls[0].arguments
        with torch.no_grad():
            assert torch.equal(value.values, net.first(X))

    @pytest.mark.parametrize("values", ["all", "fingerprints"])
    def test_a_trace_says_the_same(self, tmp_path: Path, values: str) -> None:
        loaded = load("tiny-llama", batch=2)
        live = tracer.flow(loaded.model, loaded.inputs)
        tracer.record(loaded.model, loaded.inputs, tmp_path / "a", values=values)
        again = tracer.flow(tracer.open_trace(tmp_path / "a"))
        assert (again.model, len(again.calls)) == (live.model, len(live.calls))
        for old, new in zip(live.calls, again.calls, strict=True):
            for name in ("module", "call", "module_class", "depth", "caller", "ended"):
                assert getattr(old, name) == getattr(new, name)
            pairs = zip((*old.arguments, *old.outputs), (*new.arguments, *new.outputs), strict=True)
            for left, right in pairs:
                assert (left.path, left.kind, left.shape, left.dtype, left.text) == (
                    *(right.path, right.kind, right.shape, right.dtype, right.text),
                )
                if left.moments is not None and abs(left.moments.min) < 1e30:
                    numbers = ("mean", "min", "max", "stddev")
                    assert [getattr(right.moments, n) for n in numbers] == pytest.approx(
                        [getattr(left.moments, n) for n in numbers], rel=1e-6, abs=1e-6
                    )

    def test_what_was_not_recorded_says_so(self, tmp_path: Path, net: Net) -> None:
        tracer.record(net, X, tmp_path / "a", values="outputs")
        flow = tracer.flow(tracer.open_trace(tmp_path / "a"))
        assert flow.calls[1].arguments[0].text == "arguments were not recorded"
        assert flow.calls[1].arguments[0].moments is None

    def test_a_recording_that_was_ended(self, tmp_path: Path, net: Net) -> None:
        tracer.record(net, X, tmp_path / "a")
        events = tmp_path / "a" / "events.jsonl"
        events.write_bytes(b"".join(events.read_bytes().splitlines(keepends=True)[:3]))
        flow = tracer.flow(tracer.open_trace(tmp_path / "a"))
        assert not flow.is_complete
        assert [(call.module, call.ended) for call in flow.calls] == [("", False), ("first", False)]
        text = "\n".join(lines(flow, width=80))
        assert "it did not come to its end" in text
        assert text.endswith("the recording was ended early: what follows is not in it")

    def test_what_it_refuses(self, net: Net) -> None:
        with pytest.raises(UsageError, match="matches none of the 3 modules that the model has"):
            tracer.flow(net, X, include="third")
        with pytest.raises(InputError, match="inputs name 'z'"):
            tracer.flow(net, {"z": X})
        net.second.forward = lambda x: 1 / 0
        with pytest.raises(ModelRunError, match="ZeroDivisionError in module 'second'"):
            tracer.flow(net, X)
        with pytest.raises(ModelRunError, match="TypeError in its own forward"):
            tracer.flow(Net())

    def test_a_module_of_the_users_with_points(self) -> None:
        class Pointing(nn.Identity):
            def quantization_points(self) -> dict[str, dict[str, object]]:
                return {"act": {"dtype": "int4", "scale": 0.5, "zero_point": 0}}

        flow = tracer.flow(Pointing(), X)
        assert flow.points == {"": {"act": {"dtype": "int4", "scale": 0.5, "zero_point": 0}}}
        assert "  q   act  int4  scale 0.5  zero_point 0" in list(lines(flow, width=80))


class TestQuantizationPoints:
    def test_they_are_those_of_the_wrappers(self, quantized) -> None:
        model, inputs = quantized
        flow = tracer.flow(model, inputs)
        name = "model.layers.0.mlp.down_proj"
        own = model.get_submodule(name).points
        shown = flow.points[name]
        assert list(shown) == list(own)
        weight = model.get_submodule(name).weight
        assert shown["weight"]["dtype"] == "uint4"
        assert shown["weight"]["role"] == "weight"
        assert shown["weight"]["qscheme"] == "per_channel_asymmetric"
        assert shown["weight"]["observed_min"] == weight.amin(dim=1).tolist()
        assert shown["weight"]["observed_max"] == weight.amax(dim=1).tolist()
        activation = shown["act_out"]
        assert activation["dtype"] == "uint8"
        assert activation["scale"] == own["act_out"].qparams.scale.item()
        assert activation["zero_point"] == own["act_out"].qparams.zero_point.item()
        # 255 steps from the least to the greatest value observed.
        spread = activation["observed_max"] - activation["observed_min"]
        assert activation["scale"] == pytest.approx(spread / 255)

    def test_ranges_before_calibration_and_in_a_trace(self, tmp_path: Path, quantized) -> None:
        wrapped = wrappers.prepare(load("tiny-llama").model, wrappers.PTQConfig())
        facts = wrapped.get_submodule("lm_head").quantization_points()["act_in"]
        assert facts["observed_min"] is facts["scale"] is facts["zero_point"] is None
        model, inputs = quantized
        tracer.record(model, inputs, tmp_path / "a")
        trace = tracer.open_trace(tmp_path / "a")
        assert tracer.flow(trace).points == tracer.flow(model, inputs).points

    @pytest.mark.parametrize("width", [80, 200])
    def test_they_are_printed(self, quantized, width: int) -> None:
        model, inputs = quantized
        flow = tracer.flow(model, inputs, include="model.layers.0.mlp.down_proj")
        text = list(lines(flow, width=width))
        assert max(map(len, text)) <= width
        joined = " ".join(" ".join(text).split())
        point = flow.points["model.layers.0.mlp.down_proj"]["act_in"]
        assert (
            f"act_in uint8 per_tensor_asymmetric observed {point['observed_min']:.4g} to "
            f"{point['observed_max']:.4g} scale {point['scale']:.5g} zero_point "
            f"{point['zero_point']}"
        ) in joined
        assert "in 64 channels" in joined


class TestPrinted:
    @pytest.mark.parametrize("width", [80, 200])
    @pytest.mark.parametrize("tree", [False, True])
    def test_it_fits(self, width: int, tree: bool) -> None:
        loaded = load("tiny-qwen3-vl")
        flow = tracer.flow(loaded.model, loaded.inputs)
        text = list(lines(flow, width=width, tree=tree))
        assert max(map(len, text)) <= width
        assert len(text) > len(flow.calls)

    def test_the_table(self, net: Net) -> None:
        text = list(lines(tracer.flow(net, X), width=120))
        assert text[0].split() == [
            *("value", "dtype", "and", "shape", "mean", "min", "max", "stddev")
        ]
        assert text[1] == "the root (Net)"
        number = Moments.of(X)
        expected = f"in x float32 3x8 {number.mean:.3g} {number.min:.3g} {number.max:.3g}"
        assert " ".join(text[2].split()).startswith(expected)
        line = next(line for line in text if line.startswith("second (Linear, call 1)"))
        assert f"called at {Path(__file__).name}:" in line
        assert any(" ".join(line.split()) == "out output.nothing None" for line in text)

    def test_short_dtypes_and_what_is_not_finite(self, net: Net) -> None:
        narrow = "\n".join(lines(tracer.flow(net, X), width=80))
        assert "f32 3x8" in narrow
        assert "float32" not in narrow
        flow = tracer.flow(nn.Identity(), torch.tensor(True))
        assert any("bool scalar" in line for line in lines(flow, width=80))
        flow = tracer.flow(nn.Identity(), torch.tensor([1.0, math.nan]))
        assert any(line.endswith("  1 not finite") for line in lines(flow, width=80))
        flow = tracer.flow(nn.Identity(), torch.tensor([math.nan]))
        assert any("        -         -         -" in line for line in lines(flow, width=120))

    def test_the_tree(self, net: Net) -> None:
        text = list(lines(tracer.flow(net, X), width=100, tree=True))
        names = [line[:30].rstrip() for line in text]
        assert names[0].startswith("call")
        assert names[1].startswith("the root (Net)")
        assert names[2].startswith("  first (Linear)")
        assert names[4].startswith("  second#1 (Linear)")
        silent = list(lines(tracer.flow(Writing(), X), width=100, tree=True))
        assert silent[2] == "  inner (Appending)"

    def test_focused_values_respect_torchs_print_options(self, net: Net, capsys) -> None:
        flow = tracer.flow(net, X, focus="first")
        whole = "\n".join(lines(flow, width=120))
        with torch.no_grad():
            assert all(line in whole for line in str(net.first(X)).splitlines())
        try:
            torch.set_printoptions(precision=1)
            show(flow, width=120)
            printed = capsys.readouterr().out
            assert all(f"      {line}\n" in printed for line in str(X).splitlines())
        finally:
            torch.set_printoptions(profile="default")
        assert printed != whole

    def test_a_long_name_and_value_are_cut(self) -> None:
        value = FlowValue("a" * 100, "keyword", text="b" * 100)
        call = FlowCall("m." * 60 + "m", 0, "Net", 0, None, (value,), ended=True)
        flow = tracer.Flow("Net", (call,), {})
        assert all(len(line) <= 80 for line in lines(flow, width=80))
        assert all(len(line) <= 80 for line in lines(flow, width=80, tree=True))


class TestJson:
    def test_the_document(self, net: Net) -> None:
        document = json.loads(render(tracer.flow(net, X, focus="second")))
        assert (document["schema"], document["model"], document["is_complete"]) == (1, "Net", True)
        call = document["calls"][2]
        found = [call[name] for name in ("module", "call", "depth", "ended")]
        assert found == ["second", 0, 1, True]
        assert call["caller"].startswith(f"{__file__}:")
        with torch.no_grad():
            expected = net.second(net.first(X))
        (output,) = call["outputs"]
        assert output["values"] == expected.tolist()
        assert output["mean"] == pytest.approx(expected.mean().item(), abs=1e-6)
        assert (output["dtype"], output["shape"], output["nonfinite"]) == ("float32", [3, 4], 0)
        assert "values" not in document["calls"][1]["outputs"][0]
        nothing = document["calls"][0]["outputs"][3]
        expected = {"path": "output.nothing", "kind": "output", "shape": [], "dtype": None}
        assert nothing == {**expected, "text": "None"}

    def test_points_and_what_is_not_finite(self, quantized) -> None:
        model, inputs = quantized
        flow = tracer.flow(model, inputs, include="lm_head")
        assert json.loads(render(flow))["points"] == flow.points
        infinite = tracer.flow(nn.Identity(), torch.tensor([[math.inf]]), focus="*")
        assert json.loads(render(infinite))["calls"][0]["outputs"][0]["values"] == [["inf"]]
