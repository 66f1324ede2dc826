"""Quantization points: what is kept of a parameter, and scales that are loaded."""

import pytest
import torch
from torch import nn

from tests.builders.layers import X, linear, quantized_linear
from wrappers import PTQConfig, affine, calibrate, convert, no_quantization, prepare
from wrappers.errors import ConfigError, ModeError, QParamsError


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
        point.load_qparams(torch.full((4,), 1000.0))  # another quantiser is noticed, too
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
    wrapper.points["weight"].load_qparams(torch.ones(4))  # one zero point does for all channels
    assert wrapper.points["weight"].qparams.zero_point.tolist() == [0, 0, 0, 0]


def test_a_scheme_for_the_whole_model_falls_back_where_a_parameter_has_no_channels():
    spec = affine("int4", qscheme="per_channel_symmetric")
    for config in (PTQConfig(weight=spec), PTQConfig(overrides={"*:weight": spec})):
        norm = prepare(nn.RMSNorm(6), config).points["weight"].summary()
        assert norm["qscheme"] == "per_tensor_symmetric"
        assert (
            norm["qscheme_note"]
            == "per_channel_symmetric asked for, and it has no axis of channels"
        )
        assert prepare(nn.Linear(6, 4), config).points["weight"].summary()["qscheme_note"] is None
    with pytest.raises(ConfigError, match="'weight' has no axis of channels"):
        prepare(nn.RMSNorm(6), PTQConfig(overrides={"weight": spec}))


@pytest.mark.parametrize(("point", "qparams", "said"), [
    ("act_in", (torch.ones(3),), "expected 0-d"), ("weight", (1.0,), r"expected \[channels\]"),
    ("act_in", (1.0, 3), "has zero point 0"), ("act_out", (1.0,), "no scale and zero point"),
])  # fmt: skip
def test_loaded_qparams_must_fit(point, qparams, said):
    _, wrapper = linear(activation=affine("int8"), overrides={"act_out": no_quantization()})
    with pytest.raises(QParamsError, match=said):
        wrapper.points[point].load_qparams(*qparams)
    assert not wrapper.points[point].locked
