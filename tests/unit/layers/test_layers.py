"""The layer wrappers, each asked the same four questions: off equals float, calibrating leaves
outputs unchanged, the quantised error is in the range that an independent computation gives, it
exports."""

import pytest
import torch

from tests.builders.layers import LAYERS, layer
from wrappers import Mode, PTQConfig, affine, calibrate, convert, prepare
from wrappers.core.module import QuantModule


@pytest.mark.parametrize("name", LAYERS)
def test_off_equals_float_and_calibrating_changes_nothing(name):
    source, x = layer(name)
    wrapper = prepare(source, PTQConfig(strict_wrap=True))
    assert isinstance(wrapper, type(source))
    assert isinstance(wrapper, QuantModule)
    with torch.no_grad():
        expected = source(x.clone())
        off = wrapper(x.clone())
        torch.testing.assert_close(off, expected, rtol=1e-5, atol=1e-6)
        wrapper.mode = Mode.CALIBRATE
        assert torch.equal(wrapper(x.clone()), off)


@pytest.mark.parametrize("name", LAYERS)
def test_every_declared_point_is_reached(name):
    source, x = layer(name)
    wrapper = prepare(source, PTQConfig())
    calibrate(wrapper, [x])
    assert all(point.observer.seen > 0 for point in wrapper.points.values())


@pytest.mark.parametrize("name", LAYERS)
def test_sixteen_bits_are_close_and_four_are_not(name):
    source, x = layer(name)
    with torch.no_grad():
        expected = source(x.clone())
        span = float(expected.max() - expected.min())
        errors = {}
        for bits in (4, 8, 16):
            spec = affine(f"uint{bits}")
            wrapper = prepare(source, PTQConfig(activation=spec, weight=spec))
            calibrate(wrapper, [x.clone()])
            errors[bits] = float((convert(wrapper)(x.clone()) - expected).abs().max()) / span
    assert errors[16] < 1e-3
    assert errors[8] < 0.1
    assert errors[16] < errors[8] < errors[4]


@pytest.mark.parametrize("name", LAYERS)
def test_it_exports_with_every_point_in_the_graph(name):
    source, x = layer(name)
    wrapper = prepare(source, PTQConfig())
    calibrate(wrapper, [x.clone()])
    quantized = convert(wrapper)
    with torch.no_grad():
        program = torch.export.export(quantized, (x.clone(),))
        nodes = [node for node in program.graph.nodes if "fake_quantize" in str(node.target)]
        assert len(nodes) == len(quantized.points)
        torch.testing.assert_close(program.module()(x.clone()), quantized(x.clone()))


@pytest.mark.parametrize("name", ["silu", "layer norm", "llama rms norm", "gelu", "linear"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(name, dtype):
    source, x = layer(name)
    source, x = source.to(dtype), x.to(dtype)
    wrapper = prepare(source, PTQConfig())
    with torch.no_grad():
        torch.testing.assert_close(wrapper(x), source(x))
        calibrate(wrapper, [x])
        output = convert(wrapper)(x)
    assert output.dtype == dtype


def test_point_names():
    names = {name: list(prepare(layer(name)[0], PTQConfig()).points) for name in LAYERS}
    assert sorted(names["linear"]) == ["act_in", "act_out", "weight"]
    assert sorted(names["conv3d"]) == ["act_in", "act_out", "weight"]
    assert sorted(names["embedding"]) == ["act_out", "weight"]
    assert sorted(names["rms norm"]) == ["act_in", "act_out", "weight"]
    assert sorted(names["rms norm without weight"]) == ["act_in", "act_out"]
    assert sorted(names["llama rms norm"]) == ["act_in", "act_out", "weight"]
    assert names["layer norm"] == [
        "act_in", "mean", "centred", "square", "variance", "eps", "rsqrt", "normalised", "weight",
        "bias", "scaled", "act_out",
    ]  # fmt: skip
    assert names["gelu"] == ["act_in", "act_out"]
    assert names["silu"] == ["act_in", "sigmoid", "mul", "act_out"]


@pytest.mark.parametrize("name", [name for name in LAYERS if "in place" not in name])
def test_the_input_is_not_written_into(name):
    source, x = layer(name)
    wrapper = prepare(source, PTQConfig())
    calibrate(wrapper, [x.clone()])
    before = x.clone()
    with torch.no_grad():
        convert(wrapper)(x)
    assert torch.equal(x, before)
