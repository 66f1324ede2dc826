"""What is enqueued says what is measured at once, or that only the values tell."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tensors.test_difference import (
    COMPLEX,
    FLOATS,
    INTEGERS,
    SUM_FIELDS,
    UNSIGNED,
    drawn,
)
from tracer.errors import ShapeMismatchError, UsageError
from tracer.tensors import enqueued as module
from tracer.tensors.difference import Difference
from tracer.tensors.enqueued import Enqueued

EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
DTYPES = (*FLOATS, *INTEGERS, *UNSIGNED, *COMPLEX, *EIGHT_BITS, torch.bool)
LAID_OUT = {
    "as they are": lambda t: t,
    "transposed": lambda t: t.transpose(0, 1),
    "every other": lambda t: t[:, ::2],
    "expanded": lambda t: t[:1].expand(3, *t.shape[1:]),
}


def read(r: torch.Tensor, c: torch.Tensor) -> Difference | None:
    enqueued = Enqueued.of(r, c)
    return Difference.read(enqueued, enqueued.numbers.tolist())


def check_equal(found: Difference | None, expected: Difference, *dtypes: torch.dtype) -> None:
    """The digits that float32 keeps, where both are computed in it."""
    assert found is not None
    rel = 2e-6 if all(dtype in FLOATS[1:] for dtype in dtypes) else 1e-12
    size = max(expected.reference_square, expected.candidate_square, expected.sum_abs)
    for field in dataclasses.fields(Difference):
        values = getattr(found, field.name), getattr(expected, field.name)
        if field.name in SUM_FIELDS:
            assert values[0] == pytest.approx(values[1], rel=rel, abs=rel * size), field.name
        elif field.name in ("min_abs", "max_abs"):
            assert values[0] == pytest.approx(values[1], rel=rel, abs=rel), field.name
        elif field.name != "peak_index":
            assert values[0] == values[1], field.name


@settings(max_examples=150, deadline=None)
@given(
    left=st.sampled_from(DTYPES),
    right=st.sampled_from(DTYPES),
    shape=st.sampled_from([(), (1,), (4, 0), (7, 31), (64, 32), (3, 1025), (40, 100)]),
    laid_out=st.sampled_from(sorted(LAID_OUT)),
    is_near=st.booleans(),
    scale=st.sampled_from([1.0, 1e-3, 1e3]),
)
def test_it_says_the_same(left, right, shape, laid_out, is_near, scale) -> None:
    r, c = drawn(left, shape, 1), drawn(right, shape, 2)
    if is_near and left.is_floating_point:
        c = (r.float() * scale + 1e-2 * drawn(torch.float32, shape, 3)).to(right)
    if len(shape) == 2:
        r, c = LAID_OUT[laid_out](r), LAID_OUT[laid_out](c)
    found, expected = read(r, c), Difference.of(r, c)
    if found is not None:
        check_equal(found, expected, left, right)
        if expected.count:
            peak = (r.flatten().tolist()[found.peak_index], c.flatten().tolist()[found.peak_index])
            assert abs(peak[0] - peak[1]) == pytest.approx(found.max_abs, rel=2e-6)
    else:  # the squares of one side are lost beside the other's, or all differ alike
        assert left in FLOATS
        assert right in FLOATS


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [5, 4096])
def test_values_that_are_not_finite(dtype: torch.dtype, size: int) -> None:
    r = drawn(dtype, (size,))
    c = r.clone()
    r[0], c[0], r[1], c[2], r[3], c[3] = math.nan, math.nan, math.inf, math.nan, -math.inf, 1.0
    found, expected = read(r, c), Difference.of(r, c)
    if found is None:  # blocks do not count them
        assert size == 4096
        assert dtype != torch.float64
    else:
        check_equal(found, expected, torch.float64)
    assert (expected.mismatched, expected.reference_nonfinite) == (3, 3)


@pytest.mark.parametrize("size", [8, 5000])
def test_only_the_values_tell_of_fills(size: int) -> None:
    r = drawn(torch.float32, (size,))
    r[:2] = -1e9
    c = r.clone()
    c[3] += 1.0
    assert read(r, c) is None
    assert Difference.of(r, c).rest is not None
    check_equal(read(r, r), Difference.of(r, r), r.dtype)  # nothing can hide


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_squares_beyond_float32(scale: float) -> None:
    r = drawn(torch.float32, (2048,)) * scale
    assert read(r, 1.5 * r) is None


def test_pieces_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUICK_CHUNK", "EXACT_CHUNK"):
        monkeypatch.setattr(module, name, 3000)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int64):
        r, c = drawn(dtype, (10, 1001), 1), drawn(dtype, (10, 1001), 2)
        enqueued = Enqueued.of(r, c)
        assert len(enqueued.elements) > 3
        assert sum(enqueued.elements) == r.numel()
        check_equal(read(r, c), Difference.of(r, c), dtype)
        check_equal(read(r.T, c.T), Difference.of(r.T, c.T), dtype)


def test_a_large_tensor_keeps_its_digits() -> None:
    """A sum of float32 over all of it would not."""
    r = drawn(torch.float32, (1 << 21,)).abs() + 1.0
    c = r + 1e-3 * drawn(torch.float32, r.shape, 2)
    found = read(r, c)
    assert found is not None
    d = (r.double() - c.double()).abs()
    assert found.sum_abs == pytest.approx(d.sum().item(), rel=1e-7)
    assert found.sum_square == pytest.approx(d.square().sum().item(), rel=1e-7)
    assert found.reference_square == pytest.approx(r.double().square().sum().item(), rel=1e-7)


def test_what_has_no_values_to_compare() -> None:
    with pytest.raises(ShapeMismatchError, match="equal shapes"):
        Enqueued.of(torch.ones(2), torch.ones(3))
    with pytest.raises(UsageError, match="meta device"):
        Enqueued.of(torch.ones(2, device="meta"), torch.ones(2))
