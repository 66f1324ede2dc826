"""Counts of what rounding does at a point, against counts of the tensors themselves."""

import math

import pytest
import torch
from torch import nn

from wrappers import PTQConfig, affine, calibrate, convert, count_rounding, prepare, summary
from wrappers.core.quantizers import IdentityQuantizer
from wrappers.core.rounding import RoundingCounts
from wrappers.numerics.affine import AffineQParams
from wrappers.numerics.dtypes import FP8_E4M3, UINT8, DType
from wrappers.numerics.floats import FloatQParams
from wrappers.numerics.grouped import GroupedQParams

ONE = torch.tensor(1.0)


def shares(quantizer, *values):
    x, counts = torch.tensor(values), RoundingCounts()
    counts.add(x, quantizer.fake_quantize(x), quantizer)
    return counts.shares()


def test_of_a_float_type():
    found = shares(
        FloatQParams(ONE, FP8_E4M3), 0.0, -0.0, 1e-4, 1.0, 448.0, 1e4, math.inf, math.nan
    )
    assert found == {
        "values": 8, "zero": 3 / 8, "underflow": 1 / 8, "saturated": 2 / 8, "nonfinite": 2 / 8,
    }  # fmt: skip


def test_of_integers():
    qparams = AffineQParams(ONE, torch.tensor(10), UINT8)
    found = shares(qparams, -10.4, -10.6, 245.4, 246.0, 0.4, 0.0)
    assert (found["saturated"], found["zero"], found["underflow"]) == (2 / 6, 2 / 6, 1 / 6)
    channels = AffineQParams(torch.tensor([1.0, 2.0]), torch.zeros(2), DType.parse("int4"), 0)
    assert channels.saturated(torch.tensor([[7.4, 7.6], [7.6, 15.2]])).tolist() == [
        [False, True],
        [False, True],
    ]
    columns = torch.tensor([0, 1])
    groups = GroupedQParams(
        torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2), DType.parse("int4"), columns
    )
    assert groups.saturated(torch.tensor([[7.6, 7.6]])).tolist() == [[True, False]]
    assert not IdentityQuantizer().saturated(torch.ones(3)).any()


@pytest.mark.parametrize("dtype", ["uint8", "fp8_e5m2", "nvfp4", "mxfp4"])
def test_of_a_model_while_it_is_asked_for(dtype):
    spec = affine(dtype)
    model = nn.Sequential(nn.Linear(32, 8), nn.ReLU())
    x = torch.randn(50, 32)
    quantized = prepare(model, PTQConfig(activation=spec, weight=spec))
    calibrate(quantized, [x / 2])
    convert(quantized)
    with torch.no_grad():
        expected = quantized(x)
        assert all(point["rounding"] is None for point in summary(quantized).values())
        with count_rounding(quantized):
            for part in (x[:20], x[20:]):
                quantized(part)
        found = {path: point["rounding"] for path, point in summary(quantized).items()}
        assert torch.equal(quantized(x), expected)
    act_in = quantized[0].points["act_in"].quantizer
    result = act_in.fake_quantize(x)
    assert found["0.act_in"] == {
        "values": x.numel(),
        "zero": pytest.approx((result == 0).double().mean().item()),
        "underflow": pytest.approx(((result == 0) & (x != 0)).double().mean().item()),
        "saturated": pytest.approx(act_in.saturated(x).double().mean().item()),
        "nonfinite": 0.0,
    }
    assert found["0.weight"]["values"] == 2 * 32 * 8 and found["1.act_out"]["zero"] > 0.3
    assert summary(quantized)["0.act_in"]["rounding"] == found["0.act_in"]  # and none since


def test_points_that_change_nothing_are_told():
    layer = prepare(nn.Linear(4, 4), PTQConfig(activation=affine("uint8"), weight=affine("uint8")))
    x = torch.randn(8, 4)
    calibrate(layer, [x])
    convert(layer)
    assert layer.changing_points() == frozenset()  # nothing was counted
    with torch.no_grad(), layer.count_rounding():
        layer(layer.points["act_in"].quantizer.fake_quantize(x))  # on the grid
    assert layer.changing_points() == {"weight", "act_out"}
    with torch.no_grad(), layer.count_rounding():
        layer(x)
        layer(layer.points["act_in"].quantizer.fake_quantize(x))
    assert layer.changing_points() == {"act_in", "weight", "act_out"}
