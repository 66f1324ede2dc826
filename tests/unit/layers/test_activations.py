"""Activations: the steps of a SiLU, functions in place, and those without a wrapper."""

import pytest
import torch
from torch import nn
from transformers import activations

from tests.builders.layers import by_torch, layer
from wrappers import Mode, PTQConfig, calibrate, convert, prepare
from wrappers.layers.activations import Activation


def test_silu_step_by_step():
    source, x = layer("silu")
    wrapper = prepare(source, PTQConfig())
    calibrate(wrapper, [x])
    a = by_torch(x, float(x.min()), float(x.max()))
    exact = torch.sigmoid(x)
    sigmoid = by_torch(torch.sigmoid(a), float(exact.min()), float(exact.max()))
    product = x * exact
    expected = by_torch(a * sigmoid, float(product.min()), float(product.max()))
    torch.testing.assert_close(convert(wrapper)(x), expected)


@pytest.mark.parametrize("name", ["relu in place", "silu in place"])
def test_in_place_functions_write_into_their_input(name):
    source, x = layer(name)
    wrapper = prepare(source, PTQConfig())
    calibrate(wrapper, [x.clone()])
    for mode in (Mode.NO_QUANT, Mode.QUANT):
        wrapper.mode = mode
        own = x.clone()
        assert wrapper(own) is own
        torch.testing.assert_close(own, source(x.clone()), atol=0.05, rtol=0)


def test_activations_without_a_wrapper_stay_float():
    model = prepare(nn.Sequential(activations.MishActivation(), nn.ReLU()), PTQConfig())
    assert type(model[0]) is activations.MishActivation
    assert isinstance(model[1], Activation)
