"""wrapq: its observers are points, and what they did not see is named."""

import pytest
import torch
from torch.nn.functional import linear

import tracer
from tests.builders.quantised import INPUTS, small, wrapped
from tracer.adapters.quantised.lookup import adapter_of, adapters, is_quantized
from tracer.adapters.quantised.silent import SilentKind, silent_mistakes

pytest.importorskip("tico", reason="needs the extra export")

pytestmark = pytest.mark.filterwarnings("default")  # of tico's own

DOWN = "wrapped.model.wrapped.layers.0.wrapped.mlp.wrapped.down_proj"


@pytest.fixture(scope="module")
def model():
    return wrapped()


def fake_quantized(x, scale, zero_point, low=0, high=255):
    return ((x / scale).round() + zero_point).clamp(low, high).sub(zero_point) * scale


def test_a_right_model_has_nothing_wrong_and_its_points_are_observers_that_saw_data(model):
    assert is_quantized(model)
    assert silent_mistakes(model) is None
    points = adapter_of(model.get_submodule(DOWN)).ablatable_points()
    assert points == {
        "weight": "uint8 weight",
        "act_in": "uint8 activation",
        "act_out": "uint8 activation",
    }
    attention = adapter_of(model.get_submodule(DOWN.replace("mlp.wrapped.down_proj", "self_attn")))
    assert "softmax" in attention.ablatable_points()
    assert "past_key" not in attention.ablatable_points()
    assert DOWN in dict(adapters(model))
    assert f"{DOWN}.wrapped" not in dict(adapters(model))


def test_each_point_off_is_computed_without_it(model):
    own = model.get_submodule(DOWN)
    adapter, inner = adapter_of(own), own.wrapped
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    weight = inner.module.weight
    quantized = fake_quantized(
        weight, inner.obs_weight._cached_scale[:, None], inner.obs_weight._cached_zp[:, None]
    )
    inputs = fake_quantized(x, inner.obs_act_in._cached_scale, inner.obs_act_in._cached_zp)
    with torch.no_grad():
        before = own(x)
        with adapter.disabled("act_out"):
            torch.testing.assert_close(own(x), linear(inputs, quantized))
            with adapter.disabled("weight"):
                torch.testing.assert_close(own(x), linear(inputs, weight))
            with adapter.disabled("act_in"):
                torch.testing.assert_close(own(x), linear(x, quantized))
        assert torch.equal(own(x), before)


def test_against_itself_without_fake_quantisation_each_error_has_its_point(model):
    from tico.quantization.wrapq.control import FakeQuantState

    reference = wrapped()
    FakeQuantState(reference).set_all(False)
    assert not is_quantized(reference)
    inputs = {**INPUTS, "return_dict": True}
    isolation = tracer.compare(
        reference, model, inputs, confirm=False, isolate="*down_proj"
    ).isolation
    (worst,) = isolation.modules
    assert {cause.point for cause in worst.causes} <= {"weight", "act_in", "act_out"}
    assert worst.causes[0].after < worst.causes[0].before


def observer_of(model, name):
    return getattr(model.get_submodule(DOWN).wrapped, f"obs_{name}")


PLANTED = {
    "one": (lambda o: o._cached_scale.fill_(1.0), SilentKind.SCALE_OF_ONE),
    "zero": (lambda o: o._cached_scale.zero_(), SilentKind.SCALE_NOT_POSITIVE),
    "nan": (lambda o: o._cached_scale.fill_(torch.nan), SilentKind.SCALE_NOT_FINITE),
    "zero point": (lambda o: o._cached_zp.fill_(300), SilentKind.ZERO_POINT_OUTSIDE),
    "no data": (lambda o: o.reset() or o.compute_qparams(), SilentKind.UNFILLED),
}


@pytest.mark.parametrize("name", PLANTED)
def test_each_planted_mistake_is_found_and_no_other(name):
    change, kind = PLANTED[name]
    model = wrapped()
    change(observer_of(model, "act_in"))
    (mistake,) = silent_mistakes(model).found
    assert (mistake.kind, mistake.module) == (kind, DOWN)
    assert mistake.tensor.startswith("act_in")


def test_equal_scales_of_a_weight_are_one_for_the_whole_tensor():
    model = wrapped()
    scale = observer_of(model, "weight")._cached_scale
    scale.fill_(scale.max().item())
    (mistake,) = silent_mistakes(model).found
    assert (mistake.kind, mistake.expected) == (SilentKind.PER_TENSOR, "32 scales")


def test_a_model_that_is_not_quantised_yet_has_no_points():
    from tico.quantization import prepare
    from tico.quantization.config.ptq import PTQConfig

    assert not is_quantized(prepare(small(), PTQConfig(strict_wrap=False)))
