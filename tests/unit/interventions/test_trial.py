"""Trials: one of the reference's values, or parameters, instead of the candidate's."""

import copy

import pytest
import torch
from torch import nn

from tracer.execution.session import Session
from tracer.interventions.experiment import Experiment, Run
from tracer.interventions.forcing import Forcing
from tracer.interventions.trial import Replacements, Trial
from tracer.tensors.tolerance import Tolerance

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.shift = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x) + self.shift)


@pytest.fixture
def models() -> tuple[Net, Net]:
    torch.manual_seed(0)
    reference = Net().eval()
    return reference, copy.deepcopy(reference)


def tried(models, replacements, watch=None, forced=False):
    experiment = Experiment(Session(*models, X, None, "*"), Tolerance())
    trial = Trial(replacements, watch, experiment.modules[0])
    try:
        return trial, experiment.must_rerun(trial, *([Forcing()] if forced else []))
    finally:
        trial.restore()


def agreeing(run: Run) -> dict[str, bool]:
    return {row.module: row.agrees for row in run.rows if row.is_output}


def test_nothing_is_replaced(models) -> None:
    models[1].shift = 0.5
    trial, run = tried(models, Replacements())
    assert not trial.applied
    assert agreeing(run) == {"first": True, "second": False, "": False}


@pytest.mark.parametrize("replacements", [
    Replacements(arguments={("second", 0): "input"}), Replacements(handed=("", "input")),
    Replacements(output=("second", 0)),
])  # fmt: skip
def test_a_value_is_replaced(models, replacements: Replacements) -> None:
    models[1].shift = 0.5
    trial, run = tried(models, replacements)
    assert trial.applied
    assert agreeing(run) == {"first": True, "second": True, "": True}


def test_parameters_are_lent_for_the_call(models) -> None:
    with torch.no_grad():
        models[1].first.bias += 1.0
    before = models[1].first.bias
    names = ("bias", "nothing")
    trial, run = tried(models, Replacements(parameters=(("first", 0), names)))
    assert trial.applied
    assert all(agreeing(run).values())
    assert models[1].first.bias is before


def test_an_argument_is_spared(models) -> None:
    class Edits(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            output = super().forward(input)
            input.zero_()
            return output

    models[1].first.__class__ = Edits
    session = Session(*models, torch.Tensor(X), None, "*")
    trial = Trial(Replacements(spared=(("first", 0), ("input",))), None, {})
    run = Experiment(session, Tolerance()).must_rerun(trial)
    assert trial.applied
    assert run.records["first", 0].edited == ("input",)


def test_the_watched_value_is_fitted_as_it_was(models) -> None:
    with torch.no_grad():
        for parameter in models[1].first.parameters():
            parameter *= 2.0
    _, run = tried(models, Replacements())
    watch = next(row for row in run.rows if not row.agrees)
    trial, after = tried(models, Replacements(output=("first", 0)), watch)
    assert "scaled by 2" in str(trial.mistakes[0])
    assert after.row(watch).agrees


def test_the_rest_may_be_forced(models) -> None:
    models[1].shift = 0.5
    with torch.no_grad():
        models[1].second.bias += 1.0
    trial, run = tried(models, Replacements(arguments={("second", 0): "input"}), forced=True)
    assert trial.applied
    assert agreeing(run) == {"first": True, "second": False, "": True}


class Declared(nn.Linear):
    def to_reference_output(self, output: torch.Tensor) -> torch.Tensor:
        return output[:]


def test_an_argument_is_fitted_before_there_is_an_output(models) -> None:
    _, candidate = models
    declared = Declared(6, 6)
    declared.load_state_dict(candidate.second.state_dict())
    candidate.second = declared
    candidate.shift = 0.5
    free = Experiment(Session(*models, X, None, "*"), Tolerance()).rerun()
    row = next(r for r in free.rows if r.module == "second" and not r.is_output)
    assert not row.agrees
    trial, run = tried(models, Replacements(), row)
    assert run.row(row) is not None
    assert trial.mistakes[0].residual < 1e-6  # the known mistake of something added
