"""Numbers that calls return beside tensors."""

import math

import pytest
import torch

from tracer.measurement.plain_values import as_tensors, equal, is_number, summary
from tracer.tensors.value_path import OUTPUT


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (1, 1, True),
        (1.0, 1.0 + 1e-9, True),
        (1.0, 1, True),
        (1.0, 1.001, False),
        (math.nan, math.nan, True),
        ("a", "b", False),
        (None, None, True),
    ],
)
def test_equal(left: object, right: object, expected: bool) -> None:
    assert equal(left, right) is expected


@pytest.mark.parametrize(
    ("number", "dtype"),
    [(3, torch.int64), (True, torch.bool), (0.1, torch.float64), (1j, torch.complex128)],
)
def test_numbers_as_tensors(number: complex, dtype: torch.dtype) -> None:
    assert is_number(number)
    pair = as_tensors(number, number)
    assert pair is not None
    assert (pair[0].dtype, pair[0].item()) == (dtype, number)


def test_what_a_tensor_does_not_hold() -> None:
    assert not is_number(2**63)
    assert not is_number("1")


def test_a_summary() -> None:
    assert summary({}) == "nothing"
    assert summary({OUTPUT: torch.zeros(2)}) == "output (float32 [2], all 0)"


def test_a_number_for_a_tensor_of_several_is_none() -> None:
    assert as_tensors(torch.ones(2, 3), 1.0) is None
    assert as_tensors(1.0, torch.ones(0)) is None
    pair = as_tensors(torch.ones(1, 1), 1.0)
    assert pair is not None
    assert pair[1].shape == (1, 1)
