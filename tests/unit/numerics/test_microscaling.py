"""Microscaling against torch's float8 casts and a scalar computation after the specification."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wrappers.errors import TensorError
from wrappers.numerics.microscaling import ELEMENT_FORMATS, MXQuantizer, microscale


def numbers_of(element):
    """Every non-negative number of a format, from its definition bit by bit."""
    if element == "int8":
        return [code / 64 for code in range(128)]
    layouts = {  # exponent bits, mantissa bits, bias, codes at the top that are no numbers
        "fp8_e4m3": (4, 3, 7, 1),
        "fp8_e5m2": (5, 2, 15, 4),
        "fp6_e2m3": (2, 3, 1, 0),
        "fp6_e3m2": (3, 2, 3, 0),
        "fp4_e2m1": (2, 1, 1, 0),
    }
    exponent_bits, mantissa_bits, bias, reserved = layouts[element]
    values = []
    for code in range(2 ** (exponent_bits + mantissa_bits) - reserved):
        exponent, mantissa = divmod(code, 2**mantissa_bits)
        if exponent == 0:
            values.append(mantissa / 2**mantissa_bits * 2.0 ** (1 - bias))
        else:
            values.append((1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias))
    return values


def by_hand(block, element):
    """The block after the specification, value by value, by nearest number of the format."""
    numbers = numbers_of(element)
    largest = max(abs(value) for value in block)
    if largest == 0:
        return [0.0] * len(block)
    max_exponent = math.frexp(numbers[-1])[1] - 1
    scale = 2.0 ** max(-127, min(127, math.frexp(largest)[1] - 1 - max_exponent))
    result = []
    for value in block:
        target = min(abs(value) / scale, numbers[-1])
        # Half to even: of two as near, the one with the even code.
        nearest = min(range(len(numbers)), key=lambda code: (abs(numbers[code] - target), code % 2))
        result.append(math.copysign(numbers[nearest] * scale, value))
    return result


@settings(deadline=None, max_examples=60)
@given(
    block=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8),
    element=st.sampled_from(list(ELEMENT_FORMATS)),
)
def test_a_block_is_what_the_specification_says(block, element):
    found = microscale(torch.tensor(block), element, block_size=8)
    assert found.tolist() == by_hand(block, element)


@pytest.mark.parametrize("element", ELEMENT_FORMATS)
def test_every_number_of_a_format_is_kept(element):
    numbers = torch.tensor(numbers_of(element))
    both = torch.cat((numbers, -numbers)) * 2.0**-5
    assert torch.equal(microscale(both, element, block_size=len(both)), both)


@pytest.mark.parametrize(
    ("element", "dtype"), [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)]
)
def test_eight_bit_floats_round_as_torch_does(element, dtype):
    largest = torch.finfo(dtype).max
    x = (torch.randn(5000) * largest / 10).clamp(-largest, largest)
    x[0] = largest  # so that the shared scale is 1
    assert torch.equal(microscale(x, element, block_size=len(x)), x.to(dtype).to(torch.float32))


def test_blocks_do_not_touch_each_other_and_the_last_may_be_short():
    x = torch.randn(3, 70)
    found = microscale(x, "int8", block_size=32)
    for start in (0, 32, 64):
        part = x[:, start : start + 32]
        assert torch.equal(found[:, start : start + 32], microscale(part, "int8", block_size=32))


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_blocks_run_along_the_axis(axis):
    x = torch.randn(8, 6, 4)
    found = microscale(x, "fp4_e2m1", block_size=4, axis=axis)
    along = microscale(x.movedim(axis, -1).contiguous(), "fp4_e2m1", block_size=4)
    assert torch.equal(found, along.movedim(-1, axis))


def test_what_is_not_finite_and_the_ends_of_float32():
    x = torch.tensor([math.nan, math.inf, -math.inf, 1.0, 0.3])
    found = microscale(x, "fp4_e2m1", block_size=5)
    alone = microscale(x[3:], "fp4_e2m1", block_size=2)
    assert math.isnan(found[0])
    assert found[1:3].tolist() == [1.5, -1.5]  # 6 times the scale of 1/4
    assert torch.equal(found[3:], alone)
    limit = torch.finfo(torch.float32)
    x = torch.tensor([limit.max, -limit.max, limit.smallest_normal, 1e-45])
    found = microscale(x, "fp8_e4m3", block_size=1)
    assert torch.isfinite(found).all()
    assert found[0] == 1.75 * 2.0**127  # the largest mantissa of the format
    assert found[2] == x[2]
    assert found[3] == 0  # below the least number times the least scale


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_dtype_stays(dtype):
    x = torch.randn(64).to(dtype)
    found = microscale(x, "int8")
    assert found.dtype == dtype
    assert torch.equal(found, microscale(x.to(torch.float64), "int8").to(dtype))


def test_shapes_and_inputs_that_are_left_alone():
    assert microscale(torch.empty(0, 4), "int8").shape == (0, 4)
    assert microscale(torch.tensor(3.0), "int8").item() == 3.0
    with pytest.raises(TensorError, match="no dimension 2"):
        microscale(torch.randn(3, 4), "int8", axis=2)
    with pytest.raises(TensorError, match="floating-point"):
        microscale(torch.arange(4), "int8")
    x = torch.randn(40)
    before = x.clone()
    found = MXQuantizer("fp6_e3m2", block_size=8).fake_quantize(x, may_overwrite=True)
    assert torch.equal(x, before)
    assert torch.equal(found, microscale(x, "fp6_e3m2", block_size=8))
