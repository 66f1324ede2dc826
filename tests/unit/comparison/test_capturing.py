"""capture(): copies of what passes through some modules."""

import torch

from tests.builders.small_net import Net, X
from tracer.comparison.capturing import capture


def test_both_sides_by_value() -> None:
    torch.manual_seed(0)
    reference, candidate = Net(), Net()
    captured = capture(reference, candidate, X, include="last")
    assert [(c.module, c.call, str(c.value)) for c in captured] == [
        ("last", 0, "kwargs.input"),
        ("last", 0, "output"),
    ]
    taken, made = captured
    assert torch.equal(reference.last(taken.reference), made.reference)
    assert torch.equal(candidate.last(taken.candidate), made.candidate)
