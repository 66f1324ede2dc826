"""The compiled pass and that of NumPy, against float64."""

import sys

import numpy as np
import pytest
import torch

from tracer.tensors import difference, kernels
from tracer.tensors.difference import Difference
from tracer.tensors.kernels import Chooser, by_numpy, compiled


@pytest.fixture(scope="module")
def one_pass() -> kernels.Pass:
    pytest.importorskip("numba", reason="the extra fast is not installed")
    found = compiled()
    assert found is not None
    return found


def pair(elements: int, *, error: float = 1e-3) -> tuple[kernels.Array, kernels.Array]:
    random = np.random.default_rng(elements)
    r = random.standard_normal(elements).astype(np.float32)
    return r, (r + error * random.standard_normal(elements)).astype(np.float32)


@pytest.mark.parametrize("elements", [1, 7, 1023, 1024, 1025, 100_003])
@pytest.mark.parametrize("error", [0.0, 1e-6, 3.0])
def test_both_passes(one_pass: kernels.Pass, elements: int, error: float):
    r, c = pair(elements, error=error)
    wide, other = r.astype(np.float64), c.astype(np.float64)
    d = np.abs(np.subtract(r, c)).astype(np.float64)  # float32 holds each of them
    for sums in (one_pass(r, c), by_numpy(r, c)):
        assert sums is not None
        found = sums.sum_abs, sums.sum_square, sums.reference_square, sums.candidate_square
        expected = d.sum(), (d * d).sum(), (wide * wide).sum(), (other * other).sum()
        assert found == pytest.approx(expected, rel=3e-6)
        assert (sums.min_abs, sums.max_abs) == (d.min(), d.max())
        assert (sums.reference_min, sums.reference_max) == (r.min(), r.max())
        assert sums.peak == d.argmax()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5, 1023, 1024, 4_000])
def test_what_is_not_finite_is_seen(one_pass: kernels.Pass, place: int, value: float):
    r, c = pair(4_001)
    bad = r.copy()
    bad[place] = value
    for own in (one_pass, by_numpy):
        assert own(bad, c) is None
        assert own(r, bad) is None
        assert own(bad, bad) is None


def halves(values: kernels.Array) -> tuple[kernels.Array, kernels.Array]:
    """Values rounded to bfloat16: their bits, and themselves in float32."""
    rounded = torch.from_numpy(values).bfloat16()
    return rounded.view(torch.uint16).numpy(), rounded.float().numpy()


@pytest.mark.parametrize("elements", [1, 1023, 1024, 1025, 100_003])
def test_bits_of_bfloat16_are_its_values(one_pass: kernels.Pass, elements: int):
    (r_bits, r), (c_bits, c) = map(halves, pair(elements, error=0.1))
    assert one_pass(r_bits, c_bits) == one_pass(r, c)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1023, 1024, 4_000])
def test_bits_that_are_not_finite_are_seen(one_pass: kernels.Pass, place: int, value: float):
    r, c = pair(4_001)
    bad = r.copy()
    bad[place] = value
    assert one_pass(halves(bad)[0], halves(c)[0]) is None
    assert one_pass(halves(r)[0], halves(bad)[0]) is None


def test_what_is_compiled_for_a_block_says_the_same_in_python():
    r, c = pair(50)
    distances = np.empty(50, np.float32)
    d = np.abs(r - c)
    sums = kernels._sums(r, c, distances)
    assert distances.tolist() == d.tolist()
    assert sums == pytest.approx((d.sum(), (d * d).sum(), (r * r).sum(), (c * c).sum()), rel=1e-5)
    found = kernels._extremes(d.view(np.int32), r.view(np.int32))
    keys = [found[0], found[1], *map(kernels._from_key, found[2:])]
    ends = np.array(keys, np.int32).view(np.float32)
    assert ends.tolist() == [d.max(), d.min(), r.min(), r.max()]
    assert kernels._first(d, d[7]) == 7
    assert kernels._first(d, -1.0) == -1
    bits, values = halves(r)
    wide = np.empty(50, np.int32)
    kernels._widen(bits, wide)
    assert wide.view(np.float32).tolist() == values.tolist()


def test_zeros_of_either_sign(one_pass: kernels.Pass):
    r, c = np.array([0.0, -0.0], np.float32), np.array([-0.0, 0.0], np.float32)
    assert one_pass(r, c) == by_numpy(r, c)


class TestChoice:
    def test_once_it_pays(self, one_pass: kernels.Pass, monkeypatch):
        made = []
        monkeypatch.setattr(kernels, "compiled", lambda: made.append(1) or one_pass)
        chooser = Chooser()
        assert chooser.chosen(kernels.WORTH_LOADING - 1) is by_numpy
        assert made == []
        assert chooser.chosen(kernels.LARGE) is one_pass
        assert chooser.chosen(kernels.LARGE) is one_pass
        assert made == [1]

    def test_small_pairs_never_change_their_digits(self, one_pass: kernels.Pass):
        chooser = Chooser()
        chooser.chosen(kernels.WORTH_LOADING)
        assert chooser.chosen(kernels.LARGE - 1) is by_numpy

    def test_without_numba(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "numba", None)
        chooser = Chooser()
        assert chooser.chosen(kernels.WORTH_LOADING) is by_numpy

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_a_difference_is_the_same(self, one_pass: kernels.Pass, monkeypatch, dtype):
        r = torch.randn(3, 90_000, generator=torch.Generator().manual_seed(0)).to(dtype)
        c = (r.float() * 1.01).to(dtype)
        expected = Difference.of(r, c)
        chooser = Chooser()
        chooser.chosen(kernels.WORTH_LOADING)
        monkeypatch.setattr(difference, "_CHOOSER", chooser)
        found = Difference.of(r, c)
        for name in ("mean", "min", "max", "stddev", "peir", "sqnr", "cosine", "relative_l2"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5)
        assert found.peak_index == expected.peak_index
