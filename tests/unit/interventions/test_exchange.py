"""A module is given what another one holds, and back."""

import pytest
import torch
from torch import nn

from tracer.interventions.exchange import attribute_at, exchange, plain_attributes


class Holder(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), value))
        self.register_buffer("steps", torch.full((1,), value))
        self.tables = {"sine": torch.full((3,), value)}


@pytest.mark.parametrize("path", ["weight", "steps", "tables.sine"])
def test_given_and_put_back(path: str) -> None:
    candidate, reference = Holder(1.0), Holder(2.0)

    def value() -> float:
        held = candidate.tables["sine"] if "." in path else getattr(candidate, path)
        return float(held.detach()[0])

    undo = exchange(candidate, reference, path)
    assert undo is not None
    assert value() == 2.0
    undo()
    assert value() == 1.0


def test_what_cannot_be() -> None:
    candidate, reference = Holder(1.0), Holder(2.0)
    assert exchange(candidate, reference, "none") is None
    reference.weight = nn.Parameter(torch.zeros(5))
    assert exchange(candidate, reference, "weight") is None


def test_attributes_by_path() -> None:
    holder = Holder(1.0)
    assert plain_attributes(holder).keys() >= {"tables"}
    assert torch.equal(attribute_at(holder, "tables.sine"), torch.ones(3))
    assert attribute_at(holder, "tables.cosine") is None
