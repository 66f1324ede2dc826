"""What a side that is not run under hooks says of itself unless it says otherwise."""

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import nn

import tracer
from tracer.errors import NothingComparedError, UsageError
from tracer.execution.hooks import Call, Phase
from tracer.execution.standin import StandIn


class Source:
    """Reports one call, of a module that doubles."""

    def note(self, call: Call, phase: Phase) -> None:
        return None

    def events(self) -> Iterator[tuple[Call, Phase]]:
        call = Call("doubled", 0, nn.Identity(), {"input": torch.ones(3)}, (), None, None)
        yield call, Phase.START
        call.output = torch.full((3,), 2.0)
        yield call, Phase.END

    def counts(self) -> Mapping[str, int]:
        return {"doubled": 1}


class Silent(StandIn):
    """Takes no inputs and computes nothing."""

    computes = False

    def __init__(self) -> None:
        super().__init__()
        self.doubled = nn.Identity()

    def event_source(self) -> Source:
        return Source()


class Part(Silent):
    """Says that it does not report what the model itself returns."""

    @property
    def unavailable(self) -> frozenset[str]:
        return frozenset({""})


class Doubling(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.doubled = nn.Identity()
        self.doubled.forward = self.multiplied

    def multiplied(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return self.factor * input

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.doubled(x)


def test_what_it_says_by_default() -> None:
    side = Silent()
    assert (side.label, side.dtype, side.unavailable) == ("Silent", None, frozenset())
    assert side.inputs_are_whole
    assert side.inputs() is None
    assert side.why_not_run_again("reference") == ""
    assert Source().counts() == {"doubled": 1}


@pytest.mark.parametrize(("factor", "agrees"), [(2.0, True), (3.0, False)])
def test_whatever_reports_its_calls_is_compared(factor: float, agrees: bool) -> None:
    comparison = tracer.compare(Part(), Doubling(factor), torch.ones(3), confirm=False)
    assert comparison.verdict.agrees is agrees
    (row,) = [row for row in comparison.rows if row.is_output]
    assert (row.module, row.agrees) == ("doubled", agrees)


def test_what_a_model_returns_is_not_reported_and_nothing_says_so() -> None:
    with pytest.raises(NothingComparedError, match="one side called its root module where"):
        tracer.compare(Silent(), Doubling(2.0), torch.ones(3), confirm=False)


def test_training_is_not_for_it() -> None:
    with pytest.raises(UsageError, match="train=True: Silent is a recording"):
        tracer.compare(Silent(), Doubling(2.0), torch.ones(3), train=True)
