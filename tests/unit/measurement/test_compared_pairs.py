"""Which pairs of tensors were compared, as long as both live unchanged."""

import torch

from tracer.measurement.compared_pairs import ComparedPairs, Remembered
from tracer.measurement.remarks import Remark, RemarkKind
from tracer.measurement.rows import Row
from tracer.tensors.value_path import OUTPUT

ROW = Row.of_form(1, ("a", 0), OUTPUT, Remark(RemarkKind.SHAPES, "[1]", "[2]"))


def entered(pairs: ComparedPairs, r: torch.Tensor, c: torch.Tensor) -> None:
    pairs.enter(r, c).row = ROW


def row(pairs: ComparedPairs, r: torch.Tensor, c: torch.Tensor) -> Row | None:
    found = pairs.find(r, c)
    return None if found is None else found.row


def test_a_pair_is_known_until_one_of_it_is_edited() -> None:
    pairs = ComparedPairs()
    r, c = torch.ones(2), torch.ones(2)
    assert row(pairs, r, c) is None
    entered(pairs, r, c)
    assert row(pairs, r, c) is ROW
    assert row(pairs, c, r) is None
    assert row(pairs, r, torch.ones(2)) is None
    c.add_(1)
    assert row(pairs, r, c) is None


def test_no_tensor_is_kept_alive() -> None:
    pairs = ComparedPairs()
    for _ in range(50):  # the addresses of dead ones are used again
        r, c = torch.ones(2), torch.ones(2)
        assert row(pairs, r, c) is None
        entered(pairs, r, c)


def test_what_does_not_say_when_it_changes_is_not_known() -> None:
    pairs = ComparedPairs()
    with torch.inference_mode():
        r, c = torch.ones(2), torch.ones(2)
    entered(pairs, r, c)
    assert row(pairs, r, c) is None


def test_a_function_is_asked_once_of_a_tensor_as_long_as_it_is_as_it_was() -> None:
    asked = []
    size = Remembered(lambda value: asked.append(value) or torch.is_tensor(value))
    x = torch.ones(2)
    assert [size(x), size(x), size(None), size(None)] == [True, True, False, False]
    assert len(asked) == 3
    x.add_(1)
    assert size(x)
    assert len(asked) == 4
    asked.clear()
    for _ in range(50):
        size(torch.ones(2))
    assert len(asked) == 50
    with torch.inference_mode():
        x = torch.ones(2)
    assert size(x) == size(x)
    assert len(asked) == 52
