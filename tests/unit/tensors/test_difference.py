"""Difference: each statistic against float64, exact merging, and the tensors that break things."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.errors import ShapeMismatchError, UsageError
from tracer.tensors.difference import CHUNK, Difference, _of_any
from tracer.tensors.tolerance import Tolerance

FILLS = (torch.finfo(torch.bfloat16).min, -1e30, 1e30, -1e9, 1e9, -1e4, 1e3)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)
UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
COMPLEX = (torch.complex64, torch.complex128)
EXACT_FIELDS = (
    "elements", "count", "min_abs", "max_abs", "reference_min", "reference_max",
    "reference_nonfinite", "candidate_nonfinite", "mismatched", "peak_index",
)  # fmt: skip
SUM_FIELDS = ("sum_abs", "sum_square", "reference_square", "candidate_square", "product")


def drawn(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    if dtype.is_complex:
        real = torch.randn(*shape, 2, dtype=torch.float64, generator=generator)
        return torch.view_as_complex(real).to(dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
    low = 0 if dtype in UNSIGNED else -100
    return torch.randint(low, 120, shape, generator=generator).to(dtype)


def float64(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's values as NumPy's float64 or complex128, by another way than the code's."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    values = tensor.flatten().tolist()
    return np.array(values, dtype=np.complex128 if tensor.is_complex() else np.float64)


def check(difference, reference, candidate, rel=1e-12):
    """Holds every statistic of finite tensors against NumPy in float64."""
    r, c = float64(reference), float64(candidate)
    d = np.abs(r - c)
    parts = np.concatenate([r.real, r.imag]) if np.iscomplexobj(r) else r
    scale = float(d.max())
    assert difference.elements == difference.count == r.size
    assert difference.mean == pytest.approx(d.mean(), rel=rel, abs=rel * scale)
    assert difference.min == pytest.approx(d.min(), rel=rel, abs=rel * scale)
    assert difference.max == pytest.approx(d.max(), rel=rel)
    assert difference.stddev == pytest.approx(d.std(), rel=rel, abs=max(rel, 3e-8) * scale)
    interval = parts.max() - parts.min()
    assert difference.interval == pytest.approx(interval, rel=rel)
    if interval:
        assert difference.peir == pytest.approx(d.max() / interval, rel=2 * rel)
    square, noise = float((np.abs(r) ** 2).sum()), float((d**2).sum())
    assert difference.relative_l2 == pytest.approx(math.sqrt(noise / square), rel=2 * rel)
    assert difference.sqnr == pytest.approx(
        10 * math.log10(square / noise) if noise else math.inf, abs=max(1e-9, 10 * rel)
    )
    norm = math.sqrt(square * float((np.abs(c) ** 2).sum()))
    product = float((r * c.conj()).real.sum())
    assert difference.cosine == pytest.approx(product / norm if norm else 0.0, abs=max(rel, 1e-12))
    assert d[difference.peak_index] == pytest.approx(d.max(), rel=rel)
    relative = max(interval, float(np.abs(parts).max()))
    assert difference.relative_peak == pytest.approx(d.max() / relative, rel=2 * rel)
    assert difference.reference_nonfinite == difference.candidate_nonfinite == 0


def exactly_equal(left: Difference, right: Difference, rel: float = 1e-12) -> None:
    for name in EXACT_FIELDS:
        assert getattr(left, name) == getattr(right, name), name
    for name in SUM_FIELDS:
        size = max(right.reference_square, right.candidate_square, right.sum_abs)
        got, expected = getattr(left, name), getattr(right, name)
        assert got == pytest.approx(expected, rel=rel, abs=rel * size), name


# float32 arithmetic inside a chunk: a few units in the last place of float32.
@pytest.mark.parametrize(("dtype", "rel"), [
    *((d, 1e-12) for d in (torch.float64, *INTEGERS, *UNSIGNED, torch.bool, *COMPLEX)),
    *((d, 2e-6) for d in (torch.float32, torch.bfloat16, torch.float16)),
])  # fmt: skip
def test_every_statistic_equals_a_float64_computation(dtype: torch.dtype, rel: float) -> None:
    reference, candidate = drawn(dtype, (7, 31, 3), 1), drawn(dtype, (7, 31, 3), 2)
    difference = Difference.of(reference, candidate)
    check(difference, reference, candidate, rel)
    if not (dtype.is_floating_point or dtype.is_complex):
        assert difference.mismatched == int((float64(reference) != float64(candidate)).sum())
    else:
        assert difference.mismatched == 0


@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64])
def test_a_small_error_has_all_its_digits(dtype: torch.dtype) -> None:
    reference = drawn(dtype, (50, 50))
    candidate = (reference * (1 + 4 * torch.finfo(dtype).eps)).to(dtype)
    check(Difference.of(reference, candidate), reference, candidate, 2e-6)


@pytest.mark.parametrize("left", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("right", [torch.float16, torch.uint8, torch.bool, torch.complex64])
def test_dtypes_may_differ(left: torch.dtype, right: torch.dtype) -> None:
    reference, candidate = drawn(left, (40, 5), 1), drawn(right, (40, 5), 2)
    check(Difference.of(reference, candidate), reference, candidate, 2e-6)
    check(Difference.of(candidate, reference), candidate, reference, 2e-6)


@pytest.mark.parametrize("left", [*INTEGERS, *UNSIGNED, torch.bool])
@pytest.mark.parametrize("right", [torch.int64, torch.uint64, torch.uint32, torch.int8])
def test_integers_of_any_two_dtypes_compare(left: torch.dtype, right: torch.dtype) -> None:
    reference, candidate = drawn(left, (33,), 1), drawn(right, (33,), 2)
    difference = Difference.of(reference, candidate)
    check(difference, reference, candidate)
    assert difference.mismatched == int((float64(reference) != float64(candidate)).sum())


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 17])
def test_sizes_around_the_chunk(size: int) -> None:
    reference = drawn(torch.float32, (size,))
    candidate = reference.clone()
    candidate[-1] += 3.0
    candidate[0] += 1.0
    difference = Difference.of(reference, candidate)
    check(difference, reference, candidate, 5e-6)
    assert difference.peak_index == size - 1
    assert difference.min == (0.0 if size > 2 else pytest.approx(4.0))


BASE = drawn(torch.float32, (6, 10, 8, 4))
FORMS = {
    "transposed": lambda: BASE.transpose(0, 2), "sliced": lambda: BASE[:, ::3, 1:],
    "every other row": lambda: BASE[::2],
    "expanded": lambda: BASE[:1, :1].expand(6, 10, 8, 4),
    "expanded scalar": lambda: torch.tensor(3.5).expand(4, 5),
    "channels last": lambda: BASE.to(memory_format=torch.channels_last),
    "0-d": lambda: BASE.sum(), "one element": lambda: BASE[0, 0, 0, :1],
    "negative view": lambda: torch.view_as_complex(drawn(torch.float32, (5, 2))).conj().imag,
    "conjugate view": lambda: torch.view_as_complex(drawn(torch.float32, (5, 2))).conj(),
    "sparse": lambda: BASE[0, 0].relu().to_sparse(),
    "sparse rows": lambda: BASE[0, 0].relu().to_sparse_csr(),
    "requires grad": lambda: BASE.clone().requires_grad_() * 2,
    "parameter": lambda: torch.nn.Parameter(BASE[0].clone()),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_tensors(form: str) -> None:
    reference = FORMS[form]()
    dense = reference.detach()
    dense = (dense.to_dense() if dense.layout != torch.strided else dense).clone()
    candidate = (dense + drawn(dense.dtype, dense.shape, 3)).contiguous()
    check(Difference.of(reference, candidate), dense, candidate, 2e-6)
    check(Difference.of(candidate, reference), candidate, dense, 2e-6)
    equal = Difference.of(reference, dense)
    assert (equal.max, equal.peir, equal.sqnr) == (0.0, 0.0, math.inf)


def test_inference_tensors_and_mode() -> None:
    with torch.inference_mode():
        reference, candidate = drawn(torch.float32, (9,), 1), drawn(torch.float32, (9,), 2)
    check(Difference.of(reference, candidate), reference, candidate, 2e-6)
    reference, candidate = drawn(torch.float32, (9,), 1), drawn(torch.float32, (9,), 2)
    with torch.inference_mode():
        assert Difference.of(reference, candidate) == Difference.of(reference, candidate)


@pytest.mark.parametrize("shape", [(3, 2 * CHUNK + 5), (2 * CHUNK + 5, 3), (2, 3, CHUNK)])
def test_large_tensors_that_are_not_contiguous(shape: tuple[int, ...]) -> None:
    reference = drawn(torch.float32, shape).transpose(0, 1)
    candidate = reference.contiguous().clone()
    index = tuple(size - 2 for size in reference.shape)
    candidate[index] += 9.0
    difference = Difference.of(reference, candidate)
    assert difference.elements == reference.numel()
    assert difference.max == pytest.approx(9.0, rel=1e-6)
    flat = torch.arange(reference.numel()).reshape(reference.shape)[index].item()
    assert difference.peak_index == flat
    assert difference.mean == pytest.approx(9.0 / reference.numel(), rel=1e-6)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.complex64, torch.bool])
def test_empty_tensors(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    difference = Difference.of(torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype))
    assert difference == Difference()
    assert difference.mean == difference.max == difference.stddev == difference.peir == 0.0
    assert (difference.sqnr, difference.cosine, difference.peak_index) == (math.inf, 1.0, -1)
    assert Tolerance().agrees(difference, dtype, dtype)


@pytest.mark.parametrize(
    "shapes", [((3, 1), (3, 4)), ((4,), (1, 4)), ((), (1,)), ((2, 0), (0, 2)), ((2, 3), (3, 2))]
)
def test_shapes_that_differ_raise_and_never_broadcast(shapes):
    with pytest.raises(ShapeMismatchError, match="never broadcasts") as caught:
        Difference.of(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
    assert str(shapes[0]) in str(caught.value)
    assert str(shapes[1]) in str(caught.value)


def test_tensors_without_values_are_refused() -> None:
    with pytest.raises(UsageError, match="meta device"):
        Difference.of(torch.zeros(3), torch.zeros(3, device="meta"))


def test_nonfinite_elements_are_counted_and_leave_no_trace_elsewhere() -> None:
    nan, inf = math.nan, math.inf
    reference = torch.tensor([1.0, nan, inf, -inf, inf, 2.0, nan, 5.0, inf])
    candidate = torch.tensor([1.5, nan, inf, inf, 1.0, nan, 3.0, 5.0, -inf])
    difference = Difference.of(reference, candidate)
    assert (difference.elements, difference.count) == (9, 2)
    assert (difference.reference_nonfinite, difference.candidate_nonfinite) == (6, 5)
    # -inf/inf, inf/1, 2/nan, nan/3 and inf/-inf; NaN equals NaN and inf equals inf.
    assert difference.mismatched == 5
    assert (difference.mean, difference.max, difference.min) == (0.25, 0.5, 0.0)
    assert (difference.interval, difference.peak_index) == (4.0, 0)
    assert difference.cosine == pytest.approx(26.5 / math.sqrt(26 * 27.25))
    assert not Tolerance(1e9).agrees(difference, torch.float32, torch.float32)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [*FLOATS, *COMPLEX])
def test_nothing_finite_at_all(value: float, dtype: torch.dtype) -> None:
    tensor = torch.full((4,), value, dtype=dtype)
    difference = Difference.of(tensor, tensor.clone())
    assert (difference.count, difference.mismatched, difference.peak_index) == (0, 0, -1)
    assert difference.mean == difference.max == difference.stddev == difference.peir == 0.0
    assert Tolerance().agrees(difference, dtype, dtype)
    other = Difference.of(tensor, torch.zeros(4, dtype=dtype))
    assert other.mismatched == 4
    assert not Tolerance().agrees(other, dtype, dtype)


@pytest.mark.parametrize("dtype", UNSIGNED)
def test_unsigned_integers_never_wrap(dtype: torch.dtype) -> None:
    reference = torch.tensor([0, 1, 200], dtype=dtype)
    difference = Difference.of(reference, torch.tensor([1, 0, 255], dtype=dtype))
    assert (difference.max, difference.mean, difference.mismatched) == (55.0, 19.0, 3)


def test_extremes_of_integers() -> None:
    low, high = -(2**63), 2**63 - 1
    reference = torch.tensor([high, high, low, high], dtype=torch.int64)
    candidate = torch.tensor([high - 1, low, low + 3, high], dtype=torch.int64)
    difference = Difference.of(reference, candidate)
    assert (difference.max, difference.peak_index, difference.mismatched) == (2.0**64, 1, 3)
    assert Difference.of(reference[[0, 2]], candidate[[0, 2]]).sum_abs == 4.0
    assert Difference.of(reference[:1], candidate[:1]).max == 1.0
    reference = torch.tensor([2**64 - 1, 2**63, 0], dtype=torch.uint64)
    candidate = torch.tensor([2**64 - 2, 2**63 + 1, 2**64 - 1], dtype=torch.uint64)
    difference = Difference.of(reference, candidate)
    assert (difference.min, difference.max, difference.mismatched) == (1.0, 2.0**64, 3)
    signed = Difference.of(reference[1:2], torch.tensor([-1]))
    assert (signed.max, signed.mismatched) == (2.0**63 + 1, 1)
    difference = Difference.of(torch.tensor([2**60 + 1]), torch.tensor([2**60]))
    assert (difference.max, difference.mismatched) == (1.0, 1)


def test_a_constant_reference_has_peir_zero_or_infinity() -> None:
    constant = torch.full((5,), 2.0)
    assert Difference.of(constant, constant.clone()).peir == 0.0
    missed = Difference.of(constant, constant + 1e-3)
    assert missed.peir == math.inf
    assert missed.relative_peak == pytest.approx(5e-4, rel=1e-3)
    zero = Difference.of(torch.zeros(5), torch.full((5,), 1e-30))
    assert (zero.peir, zero.relative_peak) == (math.inf, math.inf)
    assert (zero.sqnr, zero.cosine) == (-math.inf, 0.0)
    assert zero.relative_l2 == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_offset_has_hardly_any_stddev(dtype: torch.dtype) -> None:
    reference = drawn(dtype, (300_000,))
    difference = Difference.of(reference, reference + 0.5)
    assert difference.mean == pytest.approx(0.5, rel=1e-7)
    assert difference.stddev < 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-17, 1e-14, 1e15, 1e17, 1e30])
def test_tiny_and_huge_magnitudes(dtype: torch.dtype, scale: float) -> None:
    reference = (drawn(torch.float64, (4000,), 1) * scale).to(dtype)
    candidate = (drawn(torch.float64, (4000,), 2) * scale).to(dtype)
    check(Difference.of(reference, candidate), reference, candidate, 2e-6)
    check(Difference.of(reference, reference * 1.25), reference, reference * 1.25, 2e-6)


def test_the_extremes_of_float16() -> None:
    largest = torch.finfo(torch.float16).max
    reference = torch.tensor([largest, -largest, 0.0, 1.0], dtype=torch.float16)
    difference = Difference.of(reference, -reference)
    assert (difference.max, difference.peir) == (2 * largest, 1.0)
    assert difference.cosine == -1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_extremes_of_float32_range(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    reference = torch.tensor([largest, -largest, 1.0], dtype=dtype)
    check(Difference.of(reference, -reference), reference, -reference)


def test_values_beyond_float64() -> None:
    reference = torch.tensor([1e200, -1e200, 3e199], dtype=torch.float64)
    difference = Difference.of(reference, reference * 0.5)
    assert difference.peir == pytest.approx(0.25)
    assert difference.mean == pytest.approx(115e198 / 3 * 3 / 3, rel=1e-9)
    assert difference.stddev == math.inf
    assert math.isnan(difference.sqnr)
    assert math.isnan(difference.cosine)
    assert math.isnan(difference.relative_l2)
    assert not Tolerance().agrees(difference, torch.float64, torch.float64)
    largest = torch.finfo(torch.float64).max
    reference = torch.tensor([largest, -largest, largest / 4], dtype=torch.float64)
    candidate = torch.tensor([largest, -largest, -largest / 4], dtype=torch.float64)
    difference = Difference.of(reference, candidate)
    assert difference.peir == pytest.approx(0.25)
    assert difference.relative_peak == pytest.approx(0.25)


@pytest.mark.parametrize("factor", [1e-3, 1e-8, 1e-20, 1e-36, 1e3, 1e8])
def test_cosine_of_vectors_of_very_different_length(factor: float) -> None:
    reference = drawn(torch.float32, (3000,))
    assert Difference.of(reference, reference * factor).cosine == pytest.approx(1.0, abs=1e-6)
    assert Difference.of(reference, reference * -factor).cosine == pytest.approx(-1.0, abs=1e-6)
    other = drawn(torch.float32, (3000,), 9)
    expected = torch.nn.functional.cosine_similarity(reference.double(), other.double(), dim=0)
    assert Difference.of(reference, other * factor).cosine == pytest.approx(
        expected.item(), abs=2e-6
    )


def test_zero_vectors() -> None:
    zero, one = torch.zeros(4), torch.ones(4)
    assert Difference.of(zero, zero.clone()).cosine == 1.0
    assert Difference.of(zero, one).cosine == 0.0
    assert Difference.of(one, zero).cosine == 0.0
    assert (Difference.of(one, zero).sqnr, Difference.of(zero, -zero).max) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_the_path_of_devices_equals_the_path_of_the_cpu(dtype: torch.dtype) -> None:
    reference, candidate = drawn(dtype, (700,), 1), drawn(dtype, (700,), 2)
    exactly_equal(Difference.of(reference, candidate), _of_any(reference, candidate), rel=2e-6)
    small = reference.clone()
    small[17] = candidate[17]
    exactly_equal(Difference.of(reference, small), _of_any(reference, small), rel=2e-6)


def test_what_is_frozen() -> None:
    reference, candidate = drawn(torch.float32, (64,), 1), drawn(torch.float32, (64,), 2)
    copies = reference.clone(), candidate.clone()
    Difference.of(reference, candidate)
    assert torch.equal(reference, copies[0])
    assert torch.equal(candidate, copies[1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        Difference().count = 3  # type: ignore[misc]


ANY_FLOAT = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-30, 3e38, 1.0]),
)


@st.composite
def pairs_of_lists(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    size = draw(st.integers(1, 40))
    lists = st.lists(ANY_FLOAT, min_size=size, max_size=size)
    return draw(lists), draw(lists)


@pytest.mark.covers
@settings(deadline=None, max_examples=150)
@given(pairs_of_lists(), st.data())
def test_any_split_merges_to_the_whole(pair, data):
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    reference, candidate = (torch.tensor(values, dtype=dtype) for values in pair)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(reference)), max_size=4)))
    merged = Difference()
    for start, stop in zip([0, *cuts], [*cuts, len(reference)], strict=True):
        merged = merged.merge(Difference.of(reference[start:stop], candidate[start:stop]))
    exactly_equal(merged, Difference.of(reference, candidate), rel=2e-6)


@settings(deadline=None, max_examples=60)
@given(pairs_of_lists())
def test_the_order_of_merging_does_not_matter(pair: tuple[list[float], list[float]]) -> None:
    reference, candidate = (torch.tensor(values, dtype=torch.float64) for values in pair)
    a, b, c = (
        Difference.of(r, k)
        for r, k in zip(reference.tensor_split(3), candidate.tensor_split(3), strict=True)
    )
    exactly_equal(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert a.merge(Difference()) == Difference().merge(a) == a


@settings(deadline=None, max_examples=150)
@given(pairs_of_lists())
def test_nonfinite_rules_hold_for_any_values(pair: tuple[list[float], list[float]]) -> None:
    reference, candidate = (torch.tensor(values, dtype=torch.float32) for values in pair)
    r, c = reference.double().numpy(), candidate.double().numpy()
    finite = np.isfinite(r) & np.isfinite(c)
    same = (r == c) | (np.isnan(r) & np.isnan(c))
    difference = Difference.of(reference, candidate)
    assert difference.count == finite.sum()
    assert difference.mismatched == (~finite & ~same).sum()
    assert difference.reference_nonfinite == (~np.isfinite(r)).sum()
    assert difference.candidate_nonfinite == (~np.isfinite(c)).sum()
    if finite.any():
        d = np.abs(r[finite] - c[finite])
        assert difference.max == pytest.approx(d.max(), rel=1e-6)
        assert difference.mean == pytest.approx(d.mean(), rel=1e-6, abs=1e-6 * d.max())
        assert difference.reference_max == r[finite].max()
        at_peak = abs(r[difference.peak_index] - c[difference.peak_index])
        assert at_peak == pytest.approx(d.max(), rel=1e-6)
    for value in (difference.stddev, difference.peir, difference.cosine, difference.relative_l2):
        assert not math.isnan(value)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 500), st.floats(1e-6, 1e3), st.integers(0, 99))
def test_scaling_both_sides_leaves_the_ratios(size: int, factor: float, seed: int) -> None:
    reference = drawn(torch.float64, (size + 1,), seed)
    candidate = drawn(torch.float64, (size + 1,), seed + 100)
    before = Difference.of(reference, candidate)
    after = Difference.of(reference * factor, candidate * factor)
    assert after.peir == pytest.approx(before.peir, rel=1e-9)
    assert after.sqnr == pytest.approx(before.sqnr, abs=1e-8)
    assert after.cosine == pytest.approx(before.cosine, abs=1e-9)
    assert after.stddev == pytest.approx(before.stddev * factor, rel=1e-6)


@pytest.mark.covers
@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_fill_on_both_sides_hides_nothing(data: st.DataObject) -> None:
    count = data.draw(st.integers(8, 3000))
    fills = data.draw(st.lists(st.sampled_from(FILLS), min_size=1, max_size=3))
    filled = data.draw(st.integers(1, count - 4))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    reference = torch.randn(count, generator=generator).to(dtype)
    noise = 1e-7 * torch.randn(count, generator=generator)
    places = torch.randperm(count, generator=generator)[:filled]
    wrong, right = -3 * reference, (reference + noise).to(dtype)
    values = torch.tensor(fills, dtype=dtype)[torch.arange(filled) % len(fills)]
    for tensor in (reference, wrong, right):
        tensor[places] = values
    tolerance = Tolerance(1e-5 if dtype is torch.float64 else None)
    assert not tolerance.agrees(Difference.of(reference, wrong), dtype, dtype)
    assert tolerance.agrees(Difference.of(reference, right), dtype, dtype)
    coarse = right.bfloat16().float()  # which makes another number of the fill as well
    assert Tolerance().agrees(Difference.of(reference, coarse), dtype, torch.bfloat16)


def test_what_is_left_of_two_filled_tensors_adds_up() -> None:
    reference = torch.tensor([[1.0, 2.0, -1e9], [3.0, 4.0, 5.0]])
    candidate = reference + torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 1.0]])
    parts = [Difference.of(r, c) for r, c in zip(reference, candidate, strict=True)]
    merged = parts[0].merge(parts[1])
    assert (merged.interval, merged.peir, parts[1].rest) == (4.0, 0.25, None)
    assert merged == Difference.of(reference, candidate)
