"""The life cycle of a wrapper, its points, and what happens to them on copies and moves."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.builders.layers import X, linear, quantized_linear
from wrappers import (
    Mode,
    PTQConfig,
    affine,
    calibrate,
    convert,
    iter_points,
    iter_wrappers,
    microscaling,
    no_quantization,
    prepare,
)
from wrappers.core.module import QuantModule, shallow_copy
from wrappers.errors import (
    ConfigError,
    ModeError,
    ObserverError,
    PointError,
    QParamsError,
    UnseenObserverError,
    WrapError,
)

# --- wrapping


def test_a_wrapper_is_the_float_class_with_its_parameters():
    source, wrapper = linear()
    assert isinstance(wrapper, nn.Linear)
    assert isinstance(wrapper, QuantModule)
    assert wrapper.weight is source.weight
    assert wrapper.bias is source.bias
    assert (wrapper.in_features, wrapper.out_features) == (6, 4)
    assert list(wrapper.state_dict()) == [*source.state_dict(), "_extra_state"]


def test_the_containers_are_its_own_and_the_hooks_stay_behind():
    source = nn.Linear(6, 4)
    source.register_forward_hook(lambda *_: pytest.fail("a hook of the float model ran"))
    source.register_forward_pre_hook(lambda *_: pytest.fail("a hook of the float model ran"))
    source.register_buffer("steps", torch.zeros(1), persistent=False)
    wrapper = prepare(source, PTQConfig())
    wrapper(X)
    wrapper.register_buffer("more", torch.zeros(1))
    wrapper.weight = nn.Parameter(torch.zeros(4, 6))
    assert "more" not in dict(source.named_buffers())
    assert source.weight.any()
    assert "steps" not in wrapper.state_dict()
    wrapper.register_forward_hook(lambda *_: None)
    assert len(source._forward_hooks) == 1


@pytest.mark.parametrize("training", [True, False])
def test_training_or_not_is_taken_along(training):
    source = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train(training)
    wrapped = prepare(source, PTQConfig())
    assert [module.training for module in wrapped.modules()] == [training] * 3
    wrapped.train(not training)
    assert source.training is training


def test_children_and_forwards_that_are_replaced():
    source = nn.Sequential(nn.Linear(2, 2))
    source[0].forward = lambda x: x
    with pytest.raises(WrapError, match=r"^0 \(Linear\) has its forward replaced"):
        prepare(source, PTQConfig())
    source = nn.Sequential(nn.Linear(2, 2))
    source.register_module("extra", None)
    copied = shallow_copy(source, nn.Sequential, PTQConfig(), lambda child, _: child)
    assert copied._modules["extra"] is None
    assert copied[0] is source[0]


# --- points


def test_points_of_a_model_by_name():
    model = prepare(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), PTQConfig())
    assert [(module, name) for module, name, _ in iter_points(model)] == [
        ("0", "weight"), ("0", "act_in"), ("0", "act_out"), ("1", "act_in"), ("1", "act_out"),
    ]  # fmt: skip
    assert [name for name, _ in iter_wrappers(model)] == ["0", "1"]


class Broken(QuantModule, nn.ReLU):
    """Names a point in its forward that it does not have, or declares one twice."""

    twice = False

    def _setup(self, config):
        self._add_point("act_in")
        if self.twice:
            self._add_point("act_in")

    def forward(self, x):
        return self.quantize(x, "act_out")


def wrap_nothing(module, _):
    return module


def test_points_that_are_declared_wrong(monkeypatch):
    wrapper = Broken.from_float(nn.ReLU(), PTQConfig(), wrap_nothing)
    with pytest.raises(PointError, match="Broken has no point 'act_out'; it has act_in"):
        wrapper(X)
    monkeypatch.setattr(Broken, "twice", True)
    with pytest.raises(PointError, match="declares the point 'act_in' twice"):
        Broken.from_float(nn.ReLU(), PTQConfig(), wrap_nothing)
    config = PTQConfig(activation=affine("uint8", qscheme="per_channel_asymmetric"))
    with pytest.raises(ConfigError, match=r"^0: the point 'act_in' has no axis of channels"):
        prepare(nn.Sequential(nn.ReLU()), config)


def test_points_by_name_and_their_channels():
    _, wrapper = quantized_linear()
    assert wrapper.points["weight"].qparams.axis == 0
    assert wrapper.points["weight"].qparams.scale.shape == (4,)
    assert wrapper.points["act_in"].qparams.axis is None
    source, wrapper = linear()
    assert wrapper.mode is Mode.NO_QUANT
    assert torch.equal(wrapper(X), source(X))
    wrapper.mode = Mode.CALIBRATE
    assert torch.equal(wrapper(X), source(X))


# --- modes


def test_quantised_is_what_torch_computes_from_the_ranges_seen():
    source, wrapper = linear()
    calibrate(wrapper, [X[:3], X[3:]])
    quantized = convert(wrapper)

    def fake_quantize(x, low, high):
        scale = (max(high, 0) - min(low, 0)) / 255
        zero_point = min(max(round(-min(low, 0) / scale), 0), 255)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)

    with torch.no_grad():
        x = fake_quantize(X, float(X.min()), float(X.max()))
        weight = torch.stack(
            [fake_quantize(row, float(row.min()), float(row.max())) for row in source.weight]
        )
        output = source(X)
        expected = fake_quantize(
            F.linear(x, weight, source.bias), float(output.min()), float(output.max())
        )
        torch.testing.assert_close(quantized(X), expected)


def test_quantising_off_and_on_again_never_writes_into_the_input():
    source, wrapper = quantized_linear()
    x = X.clone()
    with torch.no_grad():
        first = wrapper(x)
        wrapper.mode = Mode.NO_QUANT
        assert torch.equal(wrapper(x), source(X))
        wrapper.mode = Mode.QUANT
        assert torch.equal(wrapper(x), first)
    assert torch.equal(x, X)
    with pytest.raises(ModeError, match="expected a Mode"):
        wrapper.mode = "quant"


def test_calibrating_again_forgets():
    _, wrapper = linear()
    wrapper.mode = Mode.CALIBRATE
    wrapper(X * 100)
    wrapper.mode = Mode.CALIBRATE
    wrapper(X)
    wrapper.mode = Mode.QUANT
    _, fresh = linear()
    calibrate(fresh, [X])
    assert wrapper.points["act_in"].qparams.scale == convert(fresh).points["act_in"].qparams.scale


def test_weights_are_observed_first_and_need_no_calibration():
    _, wrapper = linear()
    wrapper.mode = Mode.CALIBRATE
    assert wrapper.points["weight"].observer.seen == 24
    assert wrapper.points["act_in"].observer.seen == 0
    source, wrapper = linear(activation=no_quantization())
    quantized = convert(wrapper)
    weight = quantized.points["weight"].quantizer.fake_quantize(source.weight.detach())
    with torch.no_grad():
        assert torch.equal(quantized(X), F.linear(X, weight, source.bias))


def test_freezing_an_unseen_observer_names_module_and_point_and_changes_nothing():
    model = prepare(nn.Sequential(nn.Linear(6, 4)), PTQConfig())
    layer = model[0]
    layer.mode = Mode.CALIBRATE
    with pytest.raises(
        UnseenObserverError, match=r"the point 'act_in' of 0 cannot be frozen: it saw no data"
    ):
        layer.mode = Mode.QUANT
    assert layer.mode is Mode.CALIBRATE
    assert all(point.quantizer is None for _, _, point in iter_points(model))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_damaged_parameter_is_an_error(value):
    source = nn.Sequential(nn.Linear(6, 4))
    with torch.no_grad():
        source[0].weight[1, 2] = value
    wrapped = prepare(source, PTQConfig())
    with pytest.raises(ObserverError, match=r"'weight' of 0 holds 1 NaN or infinite values"):
        calibrate(wrapped, [X])


def test_what_does_not_fit_a_point_is_refused():
    wrapped = prepare(nn.ReLU(), PTQConfig())
    with pytest.raises(TypeError, match="floating-point"):
        calibrate(wrapped, [torch.arange(3)])
    _, wrapper = quantized_linear()
    wrapper.points["weight"].load_qparams(torch.ones(3))
    with pytest.raises(QParamsError, match=r"3 scales along dimension 0 do not fit .*\(4, 6\)"):
        wrapper(X)
    with pytest.raises(ConfigError, match=r"^0: uint8 cannot be per_tensor_symmetric"):
        prepare(
            nn.Sequential(nn.ReLU()),
            PTQConfig(overrides={"0.act_in": {"qscheme": "per_tensor_symmetric"}}),
        )


# --- parameters in quantised mode


def test_gradients_and_inference_tensors():
    source, wrapper = quantized_linear()
    with torch.no_grad():
        wrapper(X)
    wrapper(X).sum().backward()
    assert source.weight.grad is not None
    assert source.weight.grad.any()
    with torch.inference_mode():
        wrapper = prepare(nn.Linear(6, 4), PTQConfig())
        calibrate(wrapper, [X])
        quantized = convert(wrapper)
        assert torch.equal(quantized(X), quantized(X))


# --- copies, moves, files


def test_deep_copies_and_pickles_compute_the_same_and_are_apart():
    _, wrapper = quantized_linear()
    with torch.no_grad():
        expected = wrapper(X)
        for twin in (copy.deepcopy(wrapper), pickle.loads(pickle.dumps(wrapper))):
            assert torch.equal(twin(X), expected)
            twin.weight.zero_()
            assert not torch.equal(twin(X), expected)
        assert torch.equal(wrapper(X), expected)


def test_a_state_dict_carries_the_qparams_through_a_file():
    source, quantized = quantized_linear()
    quantized.points["act_in"].load_qparams(0.125, 100)
    file = io.BytesIO()
    torch.save(quantized.state_dict(), file)
    file.seek(0)
    fresh = prepare(copy.deepcopy(source), PTQConfig())
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.mode is Mode.NO_QUANT
    assert fresh.points["act_in"].locked
    with torch.no_grad():
        assert torch.equal(convert(fresh)(X), quantized(X))


def test_a_state_of_another_config_or_variant_is_refused():
    _, quantized = quantized_linear()
    _, other = linear(activation=affine("int16"))
    with pytest.raises(QParamsError, match="prepare the model with the config"):
        other.load_state_dict(quantized.state_dict())
    _, fresh = linear()
    del fresh.points["act_in"]
    with pytest.raises(PointError, match=r"points act_in, which the root .* does not have"):
        fresh.load_state_dict(quantized.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scales_stay_float32_when_the_model_changes_its_dtype(dtype):
    _, wrapper = quantized_linear()
    scale = wrapper.points["act_in"].qparams.scale.clone()
    with torch.no_grad():
        expected = wrapper(X)
        wrapper.to(dtype)
        output = wrapper(X.to(dtype))
    assert wrapper.points["act_in"].qparams.scale.dtype == torch.float32
    assert torch.equal(wrapper.points["act_in"].qparams.scale, scale)
    assert output.dtype == dtype
    step = float(wrapper.points["act_out"].qparams.scale)
    torch.testing.assert_close(output.to(torch.float32), expected, atol=2.1 * step, rtol=0.01)


def test_moving_to_the_meta_device_keeps_the_numbers():
    _, wrapper = quantized_linear()
    scale = float(wrapper.points["act_in"].qparams.scale)
    wrapper.to("meta")
    assert wrapper.weight.device.type == "meta"
    assert float(wrapper.points["act_in"].qparams.scale) == scale


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_moving_to_a_gpu():
    _, wrapper = quantized_linear()
    with torch.no_grad():
        expected = wrapper(X)
        output = wrapper.to("cuda")(X.to("cuda")).cpu()
    step = float(wrapper.points["act_out"].qparams.scale)
    torch.testing.assert_close(output, expected, atol=1.1 * step, rtol=0)


# --- switches


def test_the_points_that_quantise_are_the_switches():
    _, wrapper = linear(
        weight=affine("uint4"),
        activation=affine("int16"),
        overrides={"act_in": no_quantization(), "act_out": microscaling()},
    )
    assert wrapper.ablatable_points() == {}
    calibrate(wrapper, [X])
    assert wrapper.ablatable_points() == {}
    convert(wrapper)
    assert wrapper.ablatable_points() == {"weight": "uint4 weight", "act_out": "mxint8 activation"}


def test_a_point_that_is_switched_off_is_left_out():
    source, wrapper = quantized_linear(weight=affine("uint4"), activation=affine("int16"))
    before = wrapper(X)
    weight, act_in, act_out = (point.quantizer.fake_quantize for point in wrapper.points.values())
    with wrapper.disabled("weight"):
        assert torch.equal(wrapper(X), act_out(F.linear(act_in(X), source.weight, source.bias)))
        with wrapper.disabled("act_in"), wrapper.disabled("act_out"):
            assert torch.equal(wrapper(X), source(X))
        with wrapper.disabled("weight"):
            pass
        assert wrapper.points["weight"].off  # as it was before the inner one
    assert torch.equal(wrapper(X), before)
    assert torch.equal(before, act_out(F.linear(act_in(X), weight(source.weight), source.bias)))


def test_a_switch_is_put_back_after_an_error_and_one_that_there_is_not_is_named():
    _, wrapper = quantized_linear()
    before = wrapper(X)
    with pytest.raises(RuntimeError), wrapper.disabled("weight"):
        wrapper(X[:, :2])
    assert torch.equal(wrapper(X), before)
    missing = pytest.raises(PointError, match="has no point 'wight'; it has weight, act_in")
    with missing, wrapper.disabled("wight"):
        pass
