"""Samples of values: which pairs are kept, and the histogram of all differences."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import tracer
from tracer.errors import UsageError
from tracer.tensors.samples import BINS, SAMPLES, Sampler


def pair(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(shape, generator=generator)
    return reference.to(dtype), (reference + 0.1 * torch.randn(shape, generator=generator)).to(
        dtype
    )


class TestPairs:
    def test_of_a_small_value_all(self):
        r, c = pair(4, 5)
        sample = Sampler(20).sample(r, c)
        assert sample.reference.tolist() == r.flatten().tolist()
        assert sample.candidate.tolist() == c.flatten().tolist()

    @pytest.mark.parametrize("layout", ["contiguous", "transposed"])
    def test_of_a_large_value_few_and_the_extremes(self, layout):
        r, c = pair(300, 70)
        if layout == "transposed":
            r, c = r.t(), c.t()
        sample = Sampler(SAMPLES).sample(r, c)
        assert SAMPLES - 20 < len(sample.reference) <= SAMPLES
        assert (sample.reference.min(), sample.reference.max()) == (r.min(), r.max())
        apart = np.abs(sample.reference.astype(float) - sample.candidate)
        assert apart.max() == pytest.approx((r.double() - c.double()).abs().max().item())
        known = set(zip(r.flatten().tolist(), c.flatten().tolist(), strict=True))
        assert set(zip(sample.reference.tolist(), sample.candidate.tolist(), strict=True)) <= known

    def test_the_same_in_every_run_without_random_numbers(self):
        r, c = pair(100, 100)
        torch.manual_seed(5)
        one = Sampler(SAMPLES).sample(r, c)
        torch.manual_seed(6)
        other = Sampler(SAMPLES).sample(r, c)
        assert one.reference.tolist() == other.reference.tolist()
        before = torch.get_rng_state()
        Sampler(8).sample(*pair(100))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
    def test_other_dtypes(self, dtype):
        r, c = pair(40, 40, dtype=dtype)
        sample = Sampler(16).sample(r, c)
        assert (sample.reference.dtype, sum(sample.counts)) == (np.float32, r.numel())

    def test_nothing_to_draw(self):
        nothing = torch.full((3,), math.nan)
        assert Sampler(8).sample(nothing, nothing) is None
        assert Sampler(8).sample(torch.zeros(0), torch.zeros(0)) is None
        wave = torch.ones(3, dtype=torch.complex64)
        assert Sampler(8).sample(wave, wave) is None

    @pytest.mark.parametrize("most", [2, -1])
    def test_too_few(self, most):
        with pytest.raises(UsageError, match="at least 3"):
            Sampler(most)


class TestHistogram:
    @pytest.mark.parametrize("shape", [(50,), (600, 700)])
    def test_counts_are_those_of_numpy(self, shape):
        r, c = pair(*shape)
        sample = Sampler(8).sample(r, c)
        d = (r.double() - c.double()).flatten().numpy()
        assert sample.reach == pytest.approx(np.abs(d).max())
        expected, _ = np.histogram(d / sample.reach, bins=BINS, range=(-1, 1))
        assert list(sample.counts) == expected.tolist()

    def test_equal_and_infinite_values(self):
        r, _ = pair(30)
        sample = Sampler(8).sample(r, r.clone())
        assert (sample.reach, sample.counts[BINS // 2]) == (0.0, 30)
        assert sum(sample.counts) == 30
        r = torch.tensor([0.0, 1.0, math.inf, math.nan])
        assert sum(Sampler(8).sample(r, torch.tensor([0.0, 0.5, 1.0, 1.0])).counts) == 2

    @pytest.mark.parametrize("scale", [1e-40, 1e30])
    def test_extreme_scales(self, scale):
        r, c = (value.double() * scale for value in pair(1000))
        counts = Sampler(8).sample(r, c).counts
        assert counts == Sampler(8).sample(*(value.double() for value in pair(1000))).counts


class TestCompare:
    def setup_method(self):
        torch.manual_seed(0)
        self.reference = nn.Sequential(nn.Linear(8, 16), nn.Identity(), nn.Linear(16, 4))
        self.candidate = nn.Sequential(nn.Linear(8, 16), nn.Identity(), nn.Linear(16, 4))
        self.inputs = torch.randn(5, 8)

    @pytest.mark.covers
    def test_outputs_have_samples_where_asked_for(self):
        rows = tracer.compare(self.reference, self.candidate, self.inputs, samples=64).rows
        with torch.no_grad():
            hidden = self.reference[0](self.inputs)
            other = self.candidate[0](self.inputs)
        first, same = (next(r for r in rows if r.module == name) for name in ("0", "1"))
        for row in (first, same):  # the identity's output is the value that was compared before
            pairs = set(zip(hidden.flatten().tolist(), other.flatten().tolist(), strict=True))
            got = zip(row.sample.reference.tolist(), row.sample.candidate.tolist(), strict=True)
            assert set(got) <= pairs
        assert all(len(row.sample.reference) <= 64 for row in rows if row.is_output)
        assert all(row.sample is None for row in rows if not row.is_output)

    def test_none_otherwise(self):
        rows = tracer.compare(self.reference, self.candidate, self.inputs).rows
        assert all(row.sample is None for row in rows)
        other = nn.Sequential(nn.Linear(8, 16), nn.Identity(), nn.Linear(16, 5))
        rows = tracer.compare(self.reference, other, self.inputs, samples=64).rows
        assert [row.sample is None for row in rows if row.module == "2"] == [True]
