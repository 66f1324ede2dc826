"""Quantization points: what is kept of a parameter, and scales that are loaded."""

import pytest
import torch
from torch import nn

from wrappers import PTQConfig, affine, calibrate, convert, no_quantization, prepare
from wrappers.errors import ModeError, QParamsError


def linear(**fields):
    """A float linear layer of 6 to 4 and its wrapper."""
    torch.manual_seed(0)
    source = nn.Linear(6, 4)
    return source, prepare(source, PTQConfig(**fields))


def quantized_linear(**fields):
    source, wrapper = linear(**fields)
    calibrate(wrapper, [torch.randn(32, 6)])
    return source, convert(wrapper)


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def test_a_parameter_is_quantised_once_until_it_changes():
    _, wrapper = quantized_linear()
    point = wrapper.points["weight"]
    with torch.no_grad():
        first = wrapper.quantize(wrapper.weight, "weight")
        assert wrapper.quantize(wrapper.weight, "weight") is first
        wrapper.weight.mul_(0.5)
        second = wrapper.quantize(wrapper.weight, "weight")
        assert torch.equal(second, point.quantizer.fake_quantize(wrapper.weight))
        assert not torch.equal(second, first)
        wrapper.weight = nn.Parameter(torch.zeros(4, 6))
        assert not wrapper.quantize(wrapper.weight, "weight").any()
        wrapper.weight.data = torch.ones(4, 6)
        assert wrapper.quantize(wrapper.weight, "weight").any()


def test_another_quantiser_is_noticed():
    _, wrapper = quantized_linear()
    with torch.no_grad():
        wrapper(X)
        wrapper.points["weight"].load_qparams(torch.full((4,), 1000.0))
        assert not wrapper.quantize(wrapper.weight, "weight").any()


def test_a_point_reset_by_hand_says_so():
    _, wrapper = quantized_linear()
    wrapper.points["act_in"].reset()
    with pytest.raises(ModeError, match="'act_in' has no quantisation parameters yet"):
        wrapper(X)


def test_loaded_qparams_are_locked():
    _, wrapper = linear()
    wrapper.points["act_in"].load_qparams(0.25, 128)
    wrapper.points["weight"].load_qparams(torch.full((4,), 0.5), torch.tensor([1, 2, 3, 4]))
    calibrate(wrapper, [X])
    convert(wrapper)
    assert wrapper.points["act_in"].qparams.scale == 0.25
    assert wrapper.points["act_in"].qparams.zero_point == 128
    assert wrapper.points["weight"].qparams.zero_point.tolist() == [1, 2, 3, 4]
    assert wrapper.points["act_in"].locked
    assert not wrapper.points["act_out"].locked


def test_one_zero_point_does_for_all_channels():
    _, wrapper = linear()
    wrapper.points["weight"].load_qparams(torch.ones(4))
    assert wrapper.points["weight"].qparams.zero_point.tolist() == [0, 0, 0, 0]


def test_loaded_qparams_must_fit():
    _, wrapper = linear(activation=affine("int8"), overrides={"act_out": no_quantization()})
    with pytest.raises(QParamsError, match="expected 0-d"):
        wrapper.points["act_in"].load_qparams(torch.ones(3))
    with pytest.raises(QParamsError, match=r"expected \[channels\]"):
        wrapper.points["weight"].load_qparams(1.0)
    with pytest.raises(QParamsError, match="has zero point 0"):
        wrapper.points["act_in"].load_qparams(1.0, 3)
    with pytest.raises(QParamsError, match="no scale and zero point"):
        wrapper.points["act_out"].load_qparams(1.0)
    assert not wrapper.points["act_in"].locked
