"""What models return is compared whatever it is, or counted; without it there is no verdict."""

import collections
import copy
import datetime
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import tracer
from tracer.comparison.result import Comparison

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self, returned: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.returned = returned

    def forward(self, x: torch.Tensor) -> object:
        return self.returned(self.a(x))


class Box:
    def __init__(self, content: object) -> None:
        self.content = content


class Slots:
    __slots__ = ("content",)

    def __init__(self, content: object) -> None:
        self.content = content


def compared(
    reference: Callable[[torch.Tensor], object], candidate: Callable[[torch.Tensor], object]
) -> Comparison:
    model = Model(reference)
    other = copy.deepcopy(model)
    other.returned = candidate
    return tracer.compare(model, other, X, confirm=False)


def boxed(value: object, depth: int) -> object:
    return value if not depth else Box(boxed(value, depth - 1))


# Each makes a value of an activation and a factor: with 1 what the reference returns.
KINDS: dict[str, Callable[[torch.Tensor, int], object]] = {
    "array": lambda h, k: h.numpy() * k,
    "array of strings": lambda h, k: np.array(["a" * k]),
    "array of objects": lambda h, k: np.array([None, k], dtype=object),
    "NumPy scalar": lambda h, k: np.float32(k),
    "number": lambda h, k: k,
    "huge integer": lambda h, k: 2**70 * k,
    "text": lambda h, k: "a" * k,
    "bytes": lambda h, k: b"a" * k,
    "set of numbers": lambda h, k: {k, 9},
    "set of strings": lambda h, k: {"a" * k, "b"},
    "slots": lambda h, k: Slots(h * k),
    "object with a number": lambda h, k: Box(k),
    "objects, 8 deep": lambda h, k: boxed(h * k, 8),
    "deque": lambda h, k: collections.deque([h * k]),
    "dictionary view": lambda h, k: {"a": h * k}.values(),
    "distribution": lambda h, k: torch.distributions.Normal(h * k, 1.0),
    "size": lambda h, k: torch.Size([k]),
    "dtype": lambda h, k: torch.float32 if k == 1 else torch.int8,
    "date": lambda h, k: datetime.date(2020, 1, k),
    "tensor of one number": lambda h, k: torch.tensor(2.0) if k == 1 else 5.0,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beside", [False, True])
def test_values_of_any_kind_are_compared(kind: str, beside: bool) -> None:
    def returned(factor: int) -> Callable[[torch.Tensor], object]:
        make = KINDS[kind]
        return lambda h: (h, make(h, factor)) if beside else make(h, factor)

    same = compared(returned(1), returned(1))
    assert same.verdict.agrees
    assert same.coverage.not_comparable == 0
    assert not compared(returned(1), returned(3)).verdict.agrees


@pytest.mark.parametrize(
    "make",
    [
        lambda h: (part for part in [h]),
        lambda h: h.to("meta"),
        lambda h: lambda: h,
        lambda h: {h},
    ],
    ids=["generator", "meta", "function", "set of tensors"],
)
def test_what_cannot_be_compared_is_counted(make: Callable[[torch.Tensor], object]) -> None:
    beside = compared(lambda h: (h, make(h)), lambda h: (h, make(h)))
    assert (beside.verdict.agrees, beside.coverage.not_comparable) == (True, 1)
    assert str(beside.coverage).endswith("1 values not comparable")
    with pytest.raises(tracer.NothingComparedError, match="no verdict") as caught:
        compared(make, make)
    assert caught.value.comparison is not None
    assert not caught.value.comparison.verdict.agrees


def test_a_generator_is_left_to_the_caller() -> None:
    parts = (part for part in [1, 2])
    compared(lambda h: (h, parts), lambda h: (h, parts))
    assert list(parts) == [1, 2]


@pytest.mark.parametrize(
    ("reference", "candidate", "missing"),
    [
        (lambda h: {"a": h, "b": h.sum()}, lambda h: {"a": h}, ("output.b",)),
        (lambda h: (h, h * 2), lambda h: (h,), ("output.1",)),
        (lambda h: (h, h * 2), lambda h: (h, None), ("output.1",)),
        (lambda h: (h, 3), lambda h: (h,), ("output.1",)),
        (lambda h: [h, [h * 2, h * 3]], lambda h: [h, []], ("output.1.0", "output.1.1")),
    ],
)
def test_what_the_candidate_does_not_return(
    reference: Callable[[torch.Tensor], object],
    candidate: Callable[[torch.Tensor], object],
    missing: tuple[str, ...],
) -> None:
    found = compared(reference, candidate)
    assert not found.verdict.agrees
    assert found.coverage.missing_outputs == missing
    assert f"the candidate does not return {missing[0]}" in str(found.coverage)
    assert "candidate nothing" in found.verdict.explanation or "None" in found.verdict.explanation


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (lambda h: (h,), lambda h: (h, h * 5)),
        (lambda h: {"logits": h, "past_key_values": [h]}, lambda h: {"logits": h}),
        (lambda h: (h, torch.float32), lambda h: (h, torch.bfloat16)),
    ],
    ids=["more", "no cache", "another precision"],
)
def test_other_forms_agree_and_are_said(
    reference: Callable[[torch.Tensor], object], candidate: Callable[[torch.Tensor], object]
) -> None:
    found = compared(reference, candidate)
    assert found.verdict.agrees
    assert found.form_differences


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda h: h * float("nan"), "no element of the models' outputs is finite"),
        (lambda h: h[:0], "the models' outputs are empty"),
        (lambda h: None, "the models' outputs are empty"),
    ],
)
def test_no_verdict_without_a_value(make: Callable[[torch.Tensor], object], words: str) -> None:
    with pytest.raises(tracer.NothingComparedError, match=words):
        compared(make, make)


def test_outputs_that_are_not_asked_for() -> None:
    model = Model(lambda h: h * float("nan"))
    assert tracer.compare(model, copy.deepcopy(model), X, include="a").verdict.agrees
