"""FP8 against torch's own cast, and NVFP4 against a slow computation from its numbers."""

import bisect
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.unit.numerics.test_microscaling import numbers_of
from wrappers import PTQConfig, affine, calibrate, convert, prepare
from wrappers.errors import ConfigError, QParamsError, TensorError
from wrappers.numerics.dtypes import FP8_E4M3, FP8_E5M2, NVFP4, QScheme, default_qscheme
from wrappers.numerics.floats import FloatQParams, float_qparams

CASTS = {FP8_E4M3: torch.float8_e4m3fn, FP8_E5M2: torch.float8_e5m2}
EACH_FP8 = pytest.mark.parametrize("dtype", CASTS, ids=str)
PER_TENSOR = QScheme.PER_TENSOR_SYMMETRIC
ONE = torch.tensor(1.0)


def same(found, expected):
    return torch.equal(found.nan_to_num(nan=1e30), expected.nan_to_num(nan=1e30))


@EACH_FP8
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_every_pattern_of_16_bits_is_cast_as_torch_does(dtype, half):
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(half)
    expected = patterns.float().clamp(-dtype.largest, dtype.largest).to(CASTS[dtype])
    for x in (patterns, patterns.float()):
        assert same(FloatQParams(ONE, dtype).fake_quantize(x), expected.to(x.dtype))


@EACH_FP8
def test_every_number_is_kept_and_every_middle_goes_to_the_even_one(dtype):
    numbers = torch.arange(256).to(torch.uint8).view(CASTS[dtype]).float()
    numbers = numbers[torch.isfinite(numbers)].unique()
    scale = torch.tensor(0.375)
    qparams = FloatQParams(scale, dtype)
    assert torch.equal(qparams.fake_quantize(numbers * scale), numbers * scale)
    middles = (numbers[1:] + numbers[:-1]) / 2
    codes = numbers_of(str(dtype))
    found = qparams.fake_quantize(middles * scale) / scale
    for middle, number in zip(middles.tolist(), found.tolist(), strict=True):
        assert codes.index(abs(number)) % 2 == 0, middle


@EACH_FP8
def test_what_saturates_is_what_rounding_would_take_beyond_the_largest(dtype):
    step = numbers_of(str(dtype))[-1] - numbers_of(str(dtype))[-2]
    middle = dtype.largest + step / 2
    x = torch.tensor([dtype.largest, middle * 0.999, middle * 1.001, -2 * middle, 0.0, math.nan])
    qparams = FloatQParams(ONE, dtype)
    assert qparams.saturated(x).tolist() == [False, False, True, True, False, False]
    largest = dtype.largest
    assert qparams.fake_quantize(x).tolist()[:5] == [largest, largest, largest, -largest, 0.0]
    assert math.isnan(qparams.fake_quantize(x)[5])


def test_the_scale_is_the_largest_magnitude_over_the_largest_number():
    low, high = torch.tensor([-3.0, 0.0]), torch.tensor([1.0, 7.0])
    scheme = QScheme.PER_CHANNEL_SYMMETRIC
    qparams = float_qparams(low, high, FP8_E4M3, scheme, axis=1)
    assert torch.equal(qparams.scale, torch.tensor([3.0, 7.0]) / 448)
    x = torch.tensor([[-3.0, 7.0], [1.0, -0.3]])
    by_channel = [
        FloatQParams(scale, FP8_E4M3).fake_quantize(column)
        for scale, column in zip(qparams.scale, x.T, strict=True)
    ]
    assert torch.equal(qparams.fake_quantize(x), torch.stack(by_channel, dim=1))
    zero = float_qparams(torch.tensor(0.0), torch.tensor(0.0), FP8_E4M3, PER_TENSOR)
    assert zero.fake_quantize(torch.zeros(3)).tolist() == [0.0] * 3


def nearest(numbers, target):
    """The nearest of ascending numbers from 0 on, half to the even code, and the last beyond."""
    right = min(bisect.bisect_left(numbers, target), len(numbers) - 1)
    left = max(right - 1, 0)
    below, above = target - numbers[left], numbers[right] - target
    even = left if left % 2 == 0 else right
    return numbers[even if below == above else left if below < above else right]


def nvfp4_by_hand(row, scale):
    """Blocks of 16, from the enumerated numbers of E2M1 and of E4M3."""
    elements, scales = numbers_of("fp4_e2m1"), numbers_of("fp8_e4m3")
    result = []
    for start in range(0, len(row), 16):
        block = row[start : start + 16]
        block_scale = nearest(scales, max(map(abs, block)) / 6 / scale) * scale
        for value in block:
            code = nearest(elements, abs(value) / block_scale) if block_scale else 0.0
            result.append(math.copysign(code * block_scale, value))
    return np.array(result, dtype=np.float32).tolist()


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_nvfp4_is_what_its_description_says(spread):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 37, generator=generator)
    x = x * torch.exp(spread * torch.randn(40, 37, generator=generator))
    qparams = float_qparams(x.min(), x.max(), NVFP4, PER_TENSOR)
    assert float(qparams.scale) == pytest.approx(float(x.abs().max()) / (448 * 6))
    found = qparams.fake_quantize(x)
    assert found.tolist() == [nvfp4_by_hand(row, float(qparams.scale)) for row in x.tolist()]
    wide = FloatQParams(qparams.scale / 8, NVFP4)  # calibrated on less: scales of blocks saturate
    by_hand = [nvfp4_by_hand(row, float(wide.scale)) for row in x.tolist()]
    assert wide.fake_quantize(x).tolist() == by_hand
    assert wide.saturated(x).any() and not qparams.saturated(x).any()


def test_a_block_far_below_the_others_becomes_zeros():
    x = torch.cat((torch.full((16,), 100.0), torch.full((16,), 1e-5)))
    found = float_qparams(x.min(), x.max(), NVFP4, PER_TENSOR).fake_quantize(x)
    assert torch.equal(found[:16], x[:16]) and not found[16:].any()


def test_every_product_of_a_scale_and_an_element_is_kept():
    for block_scale in numbers_of("fp8_e4m3")[1:]:
        block = torch.tensor(numbers_of("fp4_e2m1") * 2) * block_scale
        assert torch.equal(FloatQParams(ONE, NVFP4).fake_quantize(block), block)


@pytest.mark.parametrize("dtype", [FP8_E4M3, FP8_E5M2, NVFP4], ids=str)
def test_values_that_are_not_finite_empty_tensors_and_scalars(dtype):
    qparams = FloatQParams(torch.tensor(0.5), dtype)
    x = torch.tensor([1.0, math.inf, -math.inf, math.nan])
    found = qparams.fake_quantize(x)
    assert found[1] == -found[2] > 0 and torch.isfinite(found[1]) and math.isnan(found[3])
    assert qparams.fake_quantize(torch.empty(0, 3)).shape == (0, 3)
    assert qparams.fake_quantize(torch.tensor(1.0)).shape == ()
    with pytest.raises(TensorError, match=r"found torch\.int64"):
        qparams.fake_quantize(torch.arange(3))


def test_parameters_that_cannot_be():
    for scale in (0.0, math.nan, math.inf, -1.0):
        with pytest.raises(QParamsError, match="positive and finite"):
            FloatQParams(torch.tensor(scale), FP8_E4M3)
    with pytest.raises(QParamsError, match="expected 0-d"):
        FloatQParams(torch.ones(2), FP8_E4M3)
    with pytest.raises(QParamsError, match="2 scales along dimension 0 do not fit"):
        FloatQParams(torch.ones(2), FP8_E4M3, axis=0).fake_quantize(torch.zeros(3))
    with pytest.raises(QParamsError, match="finite and in order"):
        float_qparams(ONE, -ONE, FP8_E4M3, PER_TENSOR)
    with pytest.raises(ConfigError, match="fp8_e4m3 cannot be per_tensor_asymmetric"):
        affine("fp8_e4m3", qscheme="per_tensor_asymmetric")
    with pytest.raises(ConfigError, match="nvfp4 cannot be per_channel_symmetric"):
        affine("nvfp4", qscheme="per_channel_symmetric")


def test_weights_have_a_scale_for_each_channel_where_the_type_allows_it():
    assert default_qscheme(FP8_E5M2, channels=True) is QScheme.PER_CHANNEL_SYMMETRIC
    assert default_qscheme(FP8_E5M2) is default_qscheme(NVFP4, channels=True) is PER_TENSOR


@pytest.mark.parametrize("observer", ["minmax", "ema", "percentile"])
@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2", "nvfp4", "mxfp4"])
def test_a_quantised_layer_computes_with_rounded_operands(dtype, observer):
    options = {} if dtype == "mxfp4" else {"observer": observer}
    spec = affine(dtype, **options)
    linear, x = nn.Linear(32, 8), torch.randn(6, 32)
    wrapped = prepare(linear, PTQConfig(activation=spec, weight=spec))
    assert torch.equal(wrapped(x), linear(x))
    calibrate(wrapped, [x])
    quantized = convert(wrapped)
    points = {name: point.quantizer.fake_quantize for name, point in quantized.points.items()}
    product = nn.functional.linear(
        points["act_in"](x), points["weight"](linear.weight), linear.bias
    )
    with torch.no_grad():
        assert torch.equal(quantized(x), points["act_out"](product))
        again = prepare(linear, PTQConfig(activation=spec, weight=spec))
        again.load_state_dict(quantized.state_dict())
        assert torch.equal(convert(again)(x), quantized(x))
    assert quantized.points["weight"].kind == dtype
