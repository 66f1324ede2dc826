"""Rounding of cached states against a computation value by value, and what it never does twice."""

import math

import numpy as np
import pytest
import torch

from wrappers.core.quantizers import quantizer_from_state
from wrappers.errors import ConfigError, TensorError
from wrappers.numerics.windowed import WindowedQuantizer

EACH_BITS = pytest.mark.parametrize("bits", [2, 4, 8])
EACH_ALONG = pytest.mark.parametrize("along", ["tokens", "channels"])


def states(length, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels = torch.logspace(-2, 1, width)
    return torch.randn(2, 3, length, width, generator=generator) * channels + channels


def by_hand(values, bits):
    """Values that share a scale, rounded one by one."""
    minimum = float(np.float16(min(values)))
    step = float(np.float16(max((max(values) - minimum) / (2**bits - 1), 2**-24)))
    codes = [min(max(round((value - minimum) / step), 0), 2**bits - 1) for value in values]
    return [code * step + minimum for code in codes]


@EACH_BITS
@EACH_ALONG
def test_old_tokens_are_rounded_as_by_hand_and_the_latest_stay(bits, along):
    x = states(15)
    found = WindowedQuantizer(bits, along, group=4, residual=5).fake_quantize(x)
    assert torch.equal(found[:, :, 8:], x[:, :, 8:])
    expected = x[:, :, :8].clone()
    for part in (*expected[:, :, :4].unbind(), *expected[:, :, 4:8].unbind()):
        for head in part:
            for shared in head.T if along == "tokens" else head:
                shared.copy_(torch.tensor(by_hand(shared.tolist(), bits)))
    torch.testing.assert_close(found[:, :, :8], expected, rtol=1e-6, atol=1e-7)
    error, scale = (found - x).abs().amax(), x.abs().max() / 2**bits
    assert 0 < error < 2 * scale


def test_keys_with_large_channels_want_a_scale_for_each_of_them():
    x = states(64)

    def errors(along):
        found = WindowedQuantizer(4, along, residual=0).fake_quantize(x)
        return ((found - x) ** 2).mean(dim=(0, 1, 2))

    assert errors("tokens")[0] < 0.01 * errors("channels")[0]


def test_how_many_are_rounded():
    quantizer = WindowedQuantizer(group=4, residual=5)
    lengths = [0, 5, 8, 9, 12, 13, 100]
    assert [quantizer.rounded_length(n) for n in lengths] == [0, 0, 0, 4, 4, 8, 92]
    assert quantizer.rounded_length(torch.tensor(lengths)).tolist() == [0, 0, 0, 4, 4, 8, 92]
    x = states(8)
    assert quantizer.fake_quantize(x) is x


@EACH_BITS
@pytest.mark.parametrize("width", [1, 3, 8])
def test_codes_are_packed_and_come_back(bits, width):
    quantizer = WindowedQuantizer(bits, "tokens", group=4, residual=0)
    codes = torch.randint(0, 2**bits, (2, 3, 8, width)).float()
    codes[..., :4:3, :], codes[..., 4::3, :] = 0.0, 2.0**bits - 1  # both ends in each group
    codes[..., 1, :], codes[..., 5, :] = 2.0**bits - 1, 0.0
    made = quantizer.encode(codes)
    assert torch.equal(quantizer.decode(made, width, torch.float32), codes)
    assert made.packed.shape == (2, 3, 2, 4, math.ceil(width * bits / 8))


@EACH_ALONG
def test_constants_large_values_and_half_precision(along):
    quantizer = WindowedQuantizer(8, along, group=4, residual=0)
    assert torch.equal(
        quantizer.fake_quantize(torch.full((1, 1, 4, 8), 0.5)), torch.full((1, 1, 4, 8), 0.5)
    )
    assert not quantizer.fake_quantize(torch.zeros(1, 1, 4, 8)).any()
    assert torch.isfinite(quantizer.fake_quantize(states(4) * 1e6)).all()
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        x = states(4).to(dtype)
        found = quantizer.fake_quantize(x)
        assert found.dtype == dtype and (found - x).abs().max() < 0.2


def test_a_state_there_and_back_and_what_cannot_be():
    quantizer = WindowedQuantizer(4, "channels", 8, 16)
    assert quantizer_from_state(quantizer.state()) == quantizer
    assert not quantizer.saturated(states(4)).any()
    for wrong in ({"bits": 3}, {"along": "heads"}, {"group": 0}, {"residual": -1}, {"group": 2.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            WindowedQuantizer(**wrong)
    with pytest.raises(TensorError, match=r"found torch\.int64"):
        quantizer.fake_quantize(torch.ones(1, 1, 40, 2, dtype=torch.int64))
