"""GPTQ against a plain solution of the same problem in float64, and on a small Llama."""

import itertools

import pytest
import torch
from torch import nn

import wrappers
from wrappers import PTQConfig, affine, algorithms
from wrappers.algorithms import GPTQ
from wrappers.core.point import QuantPoint
from wrappers.errors import CalibrationWarning, ConfigError, ModelInputError, WrapError
from wrappers.numerics.dtypes import DType, QScheme

INPUTS, OUTPUTS = 12, 5


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(INPUTS, INPUTS, generator=generator, dtype=torch.float64)
    x = torch.randn(64, INPUTS, generator=generator, dtype=torch.float64) @ mixed
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator, dtype=torch.float64)
    return weight, x.T @ x / len(x)


def weight_point(spec):
    return QuantPoint("weight", spec, role="weight", parameter="weight", channel_axis=0)


def by_least_squares(weight, hessian, order, ranges, damping=0.01):
    """Rounds column after column; those left are set to what is best for the outputs, anew each
    time from the original weight."""
    hessian = hessian + damping * hessian.diagonal().mean() * torch.eye(INPUTS, dtype=torch.float64)
    rounded = torch.zeros_like(weight)
    for done, column in enumerate(order):
        fixed, free = order[:done], order[done:]
        off = rounded[:, fixed] - weight[:, fixed]
        shift = torch.linalg.solve(hessian[free][:, free], hessian[free][:, fixed] @ off.T)
        best = weight.clone()
        best[:, free] = weight[:, free] - shift.T
        scale, zero = ranges(best, done, column)
        codes = (torch.round(best[:, column] / scale) + zero).clamp(0, 15)
        rounded[:, column] = (codes - zero) * scale
    return rounded


def range_of(weight):
    """Scale and zero point of uint4, per row."""
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    scale = ((high - low) / 15).float().double()
    return scale, torch.round(-low / scale).clamp(0, 15)


def ordered(hessian, act_order):
    by_size = sorted(range(INPUTS), key=lambda i: -float(hessian[i, i]))
    return by_size if act_order else list(range(INPUTS))


@pytest.mark.parametrize(("act_order", "block"), [*itertools.product([True, False], [5, 128])])
class TestAgainstLeastSquares:
    def test_one_range_for_a_row(self, act_order, block, monkeypatch):
        monkeypatch.setattr("wrappers.algorithms.gptq.BLOCK", block)
        weight, hessian = problem()
        point = weight_point(affine("uint4"))
        found = GPTQ(act_order=act_order, ranges="minmax").rounded(weight, hessian, point)
        whole = range_of(weight)
        expected = by_least_squares(weight, hessian, ordered(hessian, act_order), lambda *_: whole)
        torch.testing.assert_close(found, expected)
        assert torch.equal(point.qparams.scale.double(), whole[0])
        torch.testing.assert_close(point.quantizer.fake_quantize(found.float()), found.float())

    @pytest.mark.parametrize("static", [True, False])
    def test_ranges_by_group(self, act_order, block, static, monkeypatch):
        monkeypatch.setattr("wrappers.algorithms.gptq.BLOCK", block)
        weight, hessian = problem()
        point = weight_point(affine("uint4"))
        options = GPTQ(act_order=act_order, group_size=4, static_groups=static, ranges="minmax")
        found = options.rounded(weight, hessian, point)
        order = ordered(hessian, act_order)
        kept = {}

        def ranges(best, done, column):
            if static:
                first = column // 4 * 4
                return range_of(weight[:, first : first + 4])
            if done % 4 == 0:
                kept["range"] = range_of(best[:, order[done : done + 4]])
            return kept["range"]

        expected = by_least_squares(weight, hessian, order, ranges)
        torch.testing.assert_close(found, expected)
        assert point.quantizer.scale.shape == (OUTPUTS, 3)
        torch.testing.assert_close(point.quantizer.fake_quantize(found.float()), found.float())


@pytest.mark.parametrize("ranges", ["mse", "weighted_mse"])
@pytest.mark.parametrize("spec", [affine("int4", qscheme="per_channel_symmetric"), affine(
    "int3", qscheme="per_tensor_symmetric",
), affine("uint3")])  # fmt: skip
def test_shrunk_ranges_have_no_larger_error(spec, ranges):
    weight, hessian = problem(1)
    weight[0, 0] = 6.0
    importance = hessian.diagonal() if ranges == "weighted_mse" else torch.ones(INPUTS)
    errors = []
    for chosen in ("minmax", ranges):
        point = weight_point(spec)
        GPTQ(ranges=chosen).rounded(weight, hessian, point)
        rounded = point.quantizer.fake_quantize(weight.float()).double()
        errors.append((importance * (rounded - weight) ** 2).sum(1))
    assert errors[1].sum() < errors[0].sum()


def test_columns_without_inputs_are_rounded_to_the_nearest():
    weight, hessian = problem()
    hessian[3], hessian[:, 3] = 0, 0
    point = weight_point(affine("uint4"))
    found = GPTQ().rounded(weight, hessian, point)
    nearest = point.quantizer.fake_quantize(weight.float()).double()
    torch.testing.assert_close(found[:, 3], nearest[:, 3])


def output_error(model, rounded, x):
    with torch.no_grad():
        return float((rounded(x) - model(x)).pow(2).mean())


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.gate, self.seldom = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(4, 2)
        self.last = nn.Linear(16, 8)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)) * self.gate(x))


def batches():
    generator = torch.Generator().manual_seed(2)
    mixed = torch.randn(8, 8, generator=generator)
    return [torch.randn(20, 8, generator=generator) @ mixed for _ in range(3)]


@pytest.mark.parametrize("match_float", [True, False])
def test_a_model_is_nearer_to_the_float_model_than_by_rounding(match_float):
    model, data = TwoLayers(), batches()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    config = PTQConfig(
        weight=affine("uint3"),
        activation=affine("int16"),
        overrides={"seldom.*": wrappers.no_quantization(), "last.weight": {"dtype": "uint2"}},
    )
    stage = GPTQ(match_float=match_float)
    found = algorithms.quantize(model, config, data, [stage])
    plain = algorithms.quantize(model, config, data)
    x = torch.cat(data)
    assert output_error(model, found, x) < output_error(model, plain, x)
    assert found.last.points["weight"].kind == "uint2"
    assert found.first.points["weight"].locked and not found.first.points["act_in"].locked
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert [name for name, _ in found.named_modules()] == [n for n, _ in model.named_modules()]
    again = algorithms.quantize(model, config, data)
    again.load_state_dict(found.state_dict())
    assert torch.equal(again(x), found(x))


def test_groups_are_saved_moved_and_loaded():
    model, data = TwoLayers(), batches()
    config = PTQConfig(weight=affine("uint3"), overrides={"seldom.*": wrappers.no_quantization()})
    found = algorithms.quantize(model, config, data, [GPTQ(group_size=4)])
    assert len(found.first.points["weight"].summary()["scale"][0]) == 2
    again = algorithms.quantize(model, config, data)
    again.load_state_dict(found.state_dict())
    assert torch.equal(again.to("cpu")(data[0]), found(data[0]))
    assert found.first.points["weight"].device == torch.device("cpu")
    with pytest.raises(wrappers.core.point.QParamsError, match="by group need a per-channel"):
        found.first.points["act_in"].load_qparams(torch.ones(2, 2), columns=torch.tensor([0, 1]))


def test_what_cannot_be():
    model, data = TwoLayers(), batches()
    for field, value in (("group_size", 0), ("damping", 0), ("ranges", "best")):
        with pytest.raises(ConfigError, match=field):
            GPTQ(**{field: value})
    with pytest.raises(
        WrapError, match="no linear layer of TwoLayers has a weight point of integers"
    ):
        GPTQ()(model, PTQConfig(weight=wrappers.no_quantization()), data)
    with pytest.raises(ModelInputError, match="with at least one in it, found none"):
        GPTQ()(model, PTQConfig(), [])
    with pytest.raises(ModelInputError, match="found a generator"):
        GPTQ()(model, PTQConfig(), (x for x in data))
    with pytest.warns(CalibrationWarning, match="no input reached seldom"):
        GPTQ()(model, PTQConfig(), data)


def test_schemes_of_one_scale():
    assert weight_point(affine("int4", qscheme="per_tensor_asymmetric")).observer.qscheme is (
        QScheme.PER_TENSOR_ASYMMETRIC
    )
    weight, hessian = problem()
    point = weight_point(affine("int4", qscheme="per_tensor_asymmetric"))
    found = GPTQ().rounded(weight, hessian, point)
    assert point.qparams.scale.dim() == 0
    assert point.qparams.dtype == DType.parse("int4")
    torch.testing.assert_close(point.quantizer.fake_quantize(found.float()), found.float())
