"""Tensors that were edited, replaced or moved are found, and put back."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tracer.execution.kept_tensors import KeptNumbers, KeptPlaces, KeptTensor

Edit = Callable[[torch.Tensor], object]
EDITS: dict[str, Edit] = {
    "in place": lambda t: t.add_(1),
    "past the counter": lambda t: t.data.add_(1),
    "to NaN": lambda t: t.fill_(math.nan),
    "to other values elsewhere": lambda t: setattr(t, "data", t + 1),
    "to the same values elsewhere": lambda t: setattr(t, "data", t.clone()),
    "to another shape": lambda t: setattr(t, "data", torch.ones(3)),
    "to another dtype": lambda t: setattr(t, "data", t.double()),
    "to need gradients": lambda t: t.requires_grad_(),
}


def kept_alone(tensor: torch.Tensor) -> KeptTensor:
    return KeptTensor.of(tensor, copied=True)


def kept_with_others(tensor: torch.Tensor) -> KeptNumbers:
    assert KeptNumbers.takes(tensor)
    (kept,) = KeptNumbers.of([torch.tensor(5.0), tensor, torch.tensor(math.nan)])
    return kept


@pytest.mark.parametrize("keep", [kept_alone, kept_with_others])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_what_was_done_to_a_number(keep: Callable[..., KeptTensor], edit: Edit) -> None:
    tensor = torch.tensor(2.0)
    place = tensor.data_ptr()
    kept = keep(tensor)
    assert kept.holds(by_version=True)
    edit(tensor)
    assert not kept.holds(by_version=False)
    kept.put_back()
    assert (tensor.data_ptr(), tensor.dtype, tensor.shape) == (place, torch.float32, ())
    assert tensor.item() == 2.0
    assert not tensor.requires_grad


def of_every_kind() -> list[torch.Tensor]:
    """Tensors of which some know `is_set_to`."""
    numbers = torch.arange(6.0).reshape(2, 3)
    with torch.inference_mode():
        inferred = torch.ones(2, 3)
    return [
        nn.Parameter(numbers.clone()),
        nn.Parameter(numbers.to("meta")),
        inferred,
        numbers.to_sparse(),
        nn.Parameter(numbers.clone().mT, requires_grad=False),
    ]


@pytest.mark.parametrize("tensors", [of_every_kind()[::4], of_every_kind()])
@pytest.mark.parametrize(
    "edit",
    [
        lambda t: setattr(t, "data", t.data.clone()),
        lambda t: setattr(t, "data", t.data[:1]),
        lambda t: setattr(t, "data", t.data.half()),
        lambda t: t.requires_grad_(not t.requires_grad),
    ],
    ids=["elsewhere", "a part", "another dtype", "gradients"],
)
def test_places(tensors: list[torch.Tensor], edit: Edit) -> None:
    assert all(map(KeptPlaces.takes, tensors))
    kept = KeptPlaces.of(tensors)
    assert kept.holds(by_version=True)
    kept.put_back()
    for tensor in (tensors[0], tensors[-1]):
        before = tensor.data_ptr(), tensor.dtype, tensor.stride(), tensor.requires_grad
        edit(tensor)
        assert not kept.holds(by_version=True)
        kept.put_back()
        assert kept.holds(by_version=True)
        now = tensor.data_ptr(), tensor.dtype, tensor.stride(), tensor.requires_grad
        assert now == before


def test_the_same_memory_read_otherwise() -> None:
    tensor = torch.ones(2)
    kept = KeptPlaces.of([tensor])
    tensor.data = tensor.data.view(torch.int32)
    assert not kept.holds(by_version=True)
    kept.put_back()
    assert tensor.tolist() == [1.0, 1.0]


def test_edits_of_what_is_not_copied_are_counted() -> None:
    tensor = torch.ones(2)
    kept = KeptPlaces.of([tensor])
    tensor.add_(1)
    assert not kept.holds(by_version=False)
    kept.put_back()
    assert tensor.tolist() == [2, 2]


def test_by_dtype() -> None:
    tensors = [torch.tensor(1), torch.tensor(2.0), torch.tensor(3), torch.tensor(True)]
    kept = KeptNumbers.of(tensors)
    assert [k.values.tolist() for k in kept] == [[1, 3], [2.0], [True]]
    for tensor in tensors:
        tensor.zero_()
    assert not any(k.holds(by_version=True) for k in kept)
    for each in kept:
        each.put_back()
    assert [t.item() for t in tensors] == [1, 2.0, 3, True]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(1),
        torch.tensor(1.0, requires_grad=True),
        torch.tensor(1.0, device="meta"),
        nn.Parameter(torch.tensor(1.0), requires_grad=False),
    ],
)
def test_what_is_kept_alone(tensor: torch.Tensor) -> None:
    assert not KeptNumbers.takes(tensor)
    kept = KeptTensor.of(tensor, copied=False)
    assert kept.holds(by_version=False)
    kept.put_back()


def test_of_inference_mode() -> None:
    with torch.inference_mode():
        tensor = torch.tensor(1.0)
    assert not KeptNumbers.takes(tensor)
    kept = KeptTensor.of(tensor, copied=True)
    with torch.inference_mode():
        tensor.add_(1)
    assert not kept.holds(by_version=False)
    kept.put_back()
    assert tensor.item() == 1.0


@pytest.mark.parametrize("keep", [kept_alone, kept_with_others])
def test_zero_has_its_sign_again(keep: Callable[..., KeptTensor]) -> None:
    tensor = torch.tensor(0.0)
    kept = keep(tensor)
    tensor.neg_()
    kept.put_back()
    assert not tensor.signbit()


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
@pytest.mark.parametrize("dtype", [torch.complex32, torch.bits8, torch.float4_e2m1fn_x2])
def test_numbers_that_cannot_be_compared(dtype: torch.dtype) -> None:
    tensor = torch.zeros((), dtype=dtype)
    (kept,) = KeptNumbers.of([tensor])
    assert kept.holds(by_version=True)
    tensor.data = torch.zeros((2,), dtype=dtype)
    kept.put_back()
    assert tensor.shape == ()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("shape", [(), (3,)])
def test_quantised_tensors(shape: tuple[int, ...]) -> None:
    tensor = torch.quantize_per_tensor(torch.ones(shape), 0.1, 0, torch.qint8)
    assert not KeptNumbers.takes(tensor)
    kept = KeptTensor.of(tensor, copied=True)
    assert kept.holds(by_version=False)
    tensor.copy_(torch.zeros(shape))
    assert not kept.holds(by_version=False)
    kept.put_back()
    assert tensor.dequantize().sum() == torch.ones(shape).sum()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors() -> None:
    tensor = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    assert not KeptNumbers.takes(tensor)
    kept = KeptTensor.of(tensor, copied=True)
    kept.put_back()
