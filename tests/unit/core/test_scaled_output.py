"""A factor that is folded into the parameters of a layer."""

import pytest
import torch

from tests.builders.layers import X, layer, linear
from wrappers import PTQConfig, calibrate, convert, prepare
from wrappers.layers.linear import QuantLinear


def test_a_folded_scale_is_declared_and_leaves_the_float_model_alone():
    source, wrapper = linear()
    before = source.weight.detach().clone()
    wrapper.fold_output_scale(0.25)
    assert torch.equal(source.weight, before)
    torch.testing.assert_close(wrapper(X), source(X) * 0.25)
    torch.testing.assert_close(wrapper.to_reference_output(wrapper(X)), source(X))
    assert wrapper.weight is not source.weight
    assert isinstance(wrapper, QuantLinear)
    _, wrapper = linear()
    output = wrapper(X)
    assert wrapper.to_reference_output(output) is output


@pytest.mark.parametrize("name", ["linear", "linear without bias", "llama rms norm"])
@pytest.mark.parametrize("trained", [True, False])
def test_a_factor_is_folded_into_parameters_of_its_own(name, trained):
    source, x = layer(name)
    source.requires_grad_(trained)
    before = {name: p.clone() for name, p in source.named_parameters()}
    wrapper = prepare(source, PTQConfig())
    untouched = wrapper(x)
    assert wrapper.output_scale == 1.0
    assert wrapper.to_reference_output(untouched) is untouched
    wrapper.fold_output_scale(0.3)
    torch.testing.assert_close(wrapper(x), 0.3 * source(x))
    wrapper.fold_output_scale(-2.0)
    assert wrapper.output_scale == pytest.approx(-0.6)
    torch.testing.assert_close(wrapper(x), -0.6 * source(x))
    torch.testing.assert_close(wrapper.to_reference_output(wrapper(x)), source(x))
    own = dict(wrapper.named_parameters())
    assert list(own) == list(before)
    for key, parameter in source.named_parameters():
        assert torch.equal(parameter, before[key])
        assert own[key] is not parameter
        assert own[key].requires_grad == trained and own[key].is_leaf


def test_a_folded_factor_is_quantised_along_and_read_back():
    source, x = layer("linear")
    wrapper = prepare(source, PTQConfig())
    wrapper.fold_output_scale(0.125)
    calibrate(wrapper, [x])
    plain = prepare(source, PTQConfig())
    calibrate(plain, [x])
    # A power of two leaves every code as it is.
    found = convert(wrapper)
    torch.testing.assert_close(found.to_reference_output(found(x)), convert(plain)(x))
    scales = found.points["weight"].qparams.scale, plain.points["weight"].qparams.scale
    torch.testing.assert_close(scales[0], scales[1] * 0.125)
