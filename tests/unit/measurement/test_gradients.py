"""The gradients of one call on both sides, paired and compared."""

import copy

import pytest
import torch
from torch import nn

from tests.builders.training import IDS, Net, WrongBackward
from tracer.execution.backward import Trained
from tracer.execution.hooks import Call
from tracer.execution.session import Session
from tracer.measurement.arguments import CallPair
from tracer.measurement.gradients import (
    CannotDifferentiateError,
    TrainedPair,
    gradient_rows,
    outputs_together,
    shared_parameters,
)
from tracer.tensors.roles import DEFAULT_ROLES
from tracer.tensors.tolerance import Tolerance
from tracer.tensors.value_path import OUTPUT


def pair_of(reference: nn.Module, candidate: nn.Module, **arguments: object) -> TrainedPair:
    sides = [
        Trained(side, model, {id(m): n for n, m in model.named_modules()}, {}, arguments, ())
        for side, model in (("reference", reference), ("candidate", candidate))
    ]
    return TrainedPair(("", 0), *sides, {OUTPUT: OUTPUT})


def rows(reference: nn.Module, candidate: nn.Module) -> dict[str, float]:
    session = Session(reference, candidate, IDS, None, "*")
    parameters = shared_parameters(session.pairing, "")
    found = gradient_rows(
        pair_of(reference, candidate, **IDS), parameters, Tolerance(), DEFAULT_ROLES
    )
    return {f"{row.module}.{row.value.argument}": row.error for row in found if not row.agrees}


def test_what_differs() -> None:
    assert rows(Net().eval(), Net().eval()) == {}
    differing = rows(Net().eval(), Net(WrongBackward).eval())
    assert differing.keys() >= {"embed.weight", "layers.0.up.weight", "layers.1.up.weight"}
    assert not differing.keys() & {"head.weight", "layers.1.down.weight", "layers.2.up.weight"}


def test_parameters_that_both_train_and_that_hold_the_same() -> None:
    reference, candidate = Net(), Net()
    pairing = Session(reference, candidate, IDS, None, "*").pairing
    assert len(shared_parameters(pairing, "")) == 17
    assert [p.module for p in shared_parameters(pairing, "layers.1")] == [
        *["layers.1.up"] * 2, *["layers.1.down"] * 2
    ]  # fmt: skip
    assert shared_parameters(pairing, "layer") == []
    candidate.head.weight.requires_grad_(False)
    with torch.no_grad():
        candidate.embed.weight.mul_(2.0)
    names = {(p.module, p.name) for p in shared_parameters(pairing, "")}
    assert len(names) == 16  # the embedding holds something else; the head is still the same
    frozen = [p for p in shared_parameters(pairing, "") if p.is_frozen]
    assert [(p.module, p.name) for p in frozen] == [("head", "weight")]
    assert ("embed", "weight") not in names


def test_a_tied_parameter_counts_once() -> None:
    reference = Net()
    reference.head.weight = reference.embed.weight
    candidate = copy.deepcopy(reference)
    pairing = Session(reference, candidate, IDS, None, "*").pairing
    assert len(shared_parameters(pairing, "")) == 16


@pytest.mark.parametrize(("reference", "candidate", "together"), [
    (torch.ones(2, 3), torch.ones(2, 3), {"output": "output"}),
    (torch.ones(2, 3), (torch.ones(6, 1), None), {"output": "output.0"}),
    ({"a": torch.ones(2), "n": torch.ones(2).long()}, {"a": torch.ones(2)},
     {"output.a": "output.a"}),
    ((torch.ones(2), torch.ones(3)), {"a": torch.ones(2), "b": torch.ones(3)},
     {"output.0": "output.a", "output.1": "output.b"}),
    ((torch.ones(2), torch.ones(3)), torch.ones(2), {}),
    (torch.ones(2), torch.ones(3), {}),
    ({"past_key_values": (torch.ones(2),), "x": torch.ones(1)}, torch.ones(1),
     {"output.x": "output"}),
])  # fmt: skip
def test_outputs_that_belong_together(
    reference: object, candidate: object, together: dict[str, str]
) -> None:
    calls = [
        Call("", 0, nn.Identity(), {}, (), None, None, output=output)
        for output in (reference, candidate)
    ]
    assert outputs_together(CallPair(*calls)) == together


class Raises(nn.Module):
    def forward(self, input):  # noqa: A002
        raise ValueError("no")


def test_which_side_raises() -> None:
    right = nn.Identity()
    for side, models in (("reference", (Raises(), right)), ("candidate", (right, Raises()))):
        with pytest.raises(CannotDifferentiateError, match="ValueError: no") as raised:
            gradient_rows(pair_of(*models, input=torch.ones(2)), [], Tolerance(), DEFAULT_ROLES)
        assert raised.value.side == side


class Loss(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return (x * x).sum() * self.factor / self.factor, x.detach()


def test_a_loss_is_differentiated_as_it_is() -> None:
    x = torch.randn(3, generator=torch.Generator().manual_seed(0))
    outputs = {OUTPUT.inner("0"): OUTPUT.inner("0")}
    pair = pair_of(Loss(1.0), Loss(3.0), x=x)
    pair = TrainedPair(pair.key, pair.reference, pair.candidate, outputs)
    (row,) = gradient_rows(pair, [], Tolerance(), DEFAULT_ROLES)
    assert row.agrees
    assert row.difference is not None
    assert row.difference.reference_max == pytest.approx(float((2 * x).max()))
