"""Which pairs of tensors were compared, as long as both live unchanged."""

import torch

from tracer.measurement.compared_pairs import ComparedPairs
from tracer.measurement.remarks import Remark, RemarkKind
from tracer.measurement.rows import Row
from tracer.tensors.value_path import OUTPUT

ROW = Row.of_form(1, ("a", 0), OUTPUT, Remark(RemarkKind.SHAPES, "[1]", "[2]"))


def test_a_pair_is_known_until_one_of_it_is_edited() -> None:
    pairs = ComparedPairs()
    r, c = torch.ones(2), torch.ones(2)
    assert pairs.row(r, c) is None
    pairs.enter(r, c, ROW)
    assert pairs.row(r, c) is ROW
    assert pairs.row(c, r) is None
    assert pairs.row(r, torch.ones(2)) is None
    c.add_(1)
    assert pairs.row(r, c) is None


def test_no_tensor_is_kept_alive() -> None:
    pairs = ComparedPairs()
    for _ in range(50):  # the addresses of dead ones are used again
        r, c = torch.ones(2), torch.ones(2)
        assert pairs.row(r, c) is None
        pairs.enter(r, c, ROW)


def test_what_does_not_say_when_it_changes_is_not_known() -> None:
    pairs = ComparedPairs()
    with torch.inference_mode():
        r, c = torch.ones(2), torch.ones(2)
    pairs.enter(r, c, ROW)
    assert pairs.row(r, c) is None
