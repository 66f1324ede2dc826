"""Values and their distances without loss."""

import pytest
import torch

from tracer.tensors.exact import distance_of, is_inexact, to_float64


def test_what_is_rounded() -> None:
    assert is_inexact(torch.bfloat16)
    assert is_inexact(torch.complex64)
    assert not is_inexact(torch.int8)
    assert not is_inexact(torch.bool)


def test_complex_values_stay_complex() -> None:
    assert to_float64(torch.ones(2, dtype=torch.float16)).dtype == torch.float64
    assert to_float64(torch.ones(2, dtype=torch.complex64)).dtype == torch.complex128


@pytest.mark.parametrize(("r", "c", "distance"), [
    (2**62 + 1, 2**62, 1.0),  # equal in float64
    (2**63 - 1, -(2**63), 2.0**64),  # overflows int64
    (5, 5, 0.0),
])  # fmt: skip
def test_wide_integers(r: int, c: int, distance: float) -> None:
    found, unequal = distance_of(torch.tensor([r]), torch.tensor([c]))
    assert found.tolist() == [distance]
    assert unequal.tolist() == [r != c]


def test_the_largest_unsigned() -> None:
    r = torch.tensor([2**64 - 1], dtype=torch.uint64)
    c = torch.tensor([2**64 - 2], dtype=torch.uint64)
    found, unequal = distance_of(r, c)
    assert (found.item(), unequal.item()) == (1.0, True)


def test_floats() -> None:
    found, unequal = distance_of(torch.tensor([1.0, 2.0]), torch.tensor([1.0, -2.0]))
    assert (found.tolist(), unequal.tolist()) == ([0.0, 4.0], [False, True])
