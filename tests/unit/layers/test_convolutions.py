"""Convolutions: a quantised one is torch's own with quantised operands, whatever its padding."""

import pytest
import torch
from torch import nn

from tests.builders.in_float64 import fake_quantize_64
from wrappers import PTQConfig, calibrate, convert, prepare


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_equals_an_independent_computation(mode):
    torch.manual_seed(0)
    source = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)
    x = torch.randn(2, 3, 6, 6)
    wrapper = prepare(source, PTQConfig())
    calibrate(wrapper, [x])
    points = convert(wrapper).points
    assert points["weight"].qparams.axis == 0
    exact = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode).double()
    with torch.no_grad():
        exact.weight.copy_(fake_quantize_64(source.weight.double(), points["weight"]))
        exact.bias.copy_(source.bias)
        output = exact(fake_quantize_64(x.double(), points["act_in"]))
        expected = fake_quantize_64(output, points["act_out"])
        difference = (wrapper(x).double() - expected).abs()
    step = float(points["act_out"].qparams.scale)
    assert difference.max() < 1.01 * step
    assert (difference > step / 2).double().mean() < 0.01
