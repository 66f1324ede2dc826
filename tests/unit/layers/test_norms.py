"""Norms: the steps of a layer norm, by hand."""

import torch

from tests.builders.layers import by_torch, layer
from wrappers import PTQConfig, calibrate, convert, prepare
from wrappers.layers.norms import QuantLayerNorm


def test_layer_norm_step_by_step():
    """The twelve points, by hand: each range is that of the float step."""
    source, x = layer("layer norm")
    wrapper = prepare(source, PTQConfig())
    assert isinstance(wrapper, QuantLayerNorm)

    def steps(quantize):
        a = quantize("act_in", x)
        mean = quantize("mean", a.mean(-1, keepdim=True))
        centred = quantize("centred", a - mean)
        variance = quantize("variance", quantize("square", centred**2).mean(-1, keepdim=True))
        eps = quantize("eps", torch.tensor(source.eps))
        rsqrt = quantize("rsqrt", 1 / torch.sqrt(variance + eps))
        normalised = quantize("normalised", centred * rsqrt)
        scaled = quantize("scaled", normalised * quantize("weight", source.weight))
        return quantize("act_out", scaled + quantize("bias", source.bias))

    ranges = {}

    def observe(name, value):
        ranges[name] = (float(value.min()), float(value.max()))
        return value

    with torch.no_grad():
        steps(observe)
        expected = steps(lambda name, value: by_torch(value, *ranges[name]))
        calibrate(wrapper, [x])
        found = convert(wrapper)(x)
    step = float(wrapper.points["act_out"].qparams.scale)
    # One code may tip over where torch's square root and its own rsqrt differ in the last place.
    assert ((found - expected).abs() < 1.01 * step).all()
    assert ((found - expected).abs() < 1e-5).float().mean() > 0.95
