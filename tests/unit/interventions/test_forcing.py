"""Forcing: a row is the error of its call alone, and the candidate goes on with right values."""

import copy

import pytest
import torch
from torch import nn

from tracer.execution.session import Session
from tracer.interventions.experiment import Experiment, Run
from tracer.interventions.forcing import Forcing, Replaced
from tracer.tensors.difference import Difference
from tracer.tensors.tolerance import Tolerance


class Net(nn.Module):
    """Two layers, and a sum in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.shift = 0.0

    def forward(self, x, attention_mask=None):
        hidden = torch.relu(self.first(x)) + self.shift
        return self.second(hidden)


class Doubled(nn.Linear):
    """Returns twice of what it says."""

    reference_output_scale = 2.0

    def forward(self, x):
        return 2.0 * super().forward(x)

    def to_reference_output(self, output):
        return output / 2.0


class Reversed(nn.Linear):
    """Returns its channels in an order of its own, which is no factor."""

    def forward(self, x):
        return super().forward(x).flip(-1)

    def to_reference_output(self, output):
        return output.flip(-1)


@pytest.fixture
def models() -> tuple[Net, Net]:
    torch.manual_seed(0)
    reference = Net().eval()
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate.first.weight[2] *= 1.5
        candidate.second.bias += 0.1
    return reference, candidate


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def forced(models, inputs, forcing: Forcing | None = None) -> Run:
    session = Session(*models, inputs, None, "*")
    experiment = Experiment(session, Tolerance(None, (torch.float32,)))
    return experiment.must_rerun(Forcing() if forcing is None else forcing)


def errors(run: Run) -> dict[str, float]:
    return {f"{row.module} {row.value}": row.peir for row in run.rows}


def test_each_row_is_the_error_of_its_own_call(models, x) -> None:
    reference, candidate = models
    found = errors(forced(models, x))
    hidden = torch.relu(reference.first(x))
    by_hand = Difference.of(reference.second(hidden), candidate.second(hidden)).peir
    assert found["second output"] == pytest.approx(by_hand, rel=1e-6)
    assert found["first output"] == Difference.of(reference.first(x), candidate.first(x)).peir
    assert found["second kwargs.input"] == 0.0


def test_what_a_parent_makes_in_its_own_lines_is_seen_where_it_hands_it_on(models, x) -> None:
    models[1].shift = 0.5
    found = errors(forced(models, x))
    hidden = torch.relu(models[0].first(x))
    assert found["second kwargs.input"] == Difference.of(hidden, hidden + 0.5).peir
    assert found["second output"] == errors(forced(models, x, Forcing(["second"])))["second output"]


def test_only_chosen_modules_are_forced(models, x) -> None:
    reference, candidate = models
    found = errors(forced(models, x, Forcing({"second"})))
    right, wrong = (torch.relu(model.first(x)) for model in models)
    assert found["second kwargs.input"] == Difference.of(right, wrong).peir
    by_hand = Difference.of(reference.second(right), candidate.second(right)).peir
    assert found["second output"] == pytest.approx(by_hand, rel=1e-6)


def test_errors_within_the_tolerance_go_on_unless_it_is_exact(models, x) -> None:
    reference, _ = models
    candidate = copy.deepcopy(reference)
    candidate.first.weight.data *= 1 + 1e-6
    loose = errors(forced((reference, candidate), x))
    exact = errors(forced((reference, candidate), x, Forcing(replaced=Replaced.INEXACT)))
    assert 0 < loose["first output"] < 1e-5
    assert loose["second output"] > 0
    assert exact["first output"] == loose["first output"]
    assert exact["second kwargs.input"] == exact["second output"] == 0.0


def test_a_declared_factor_is_put_back(models, x) -> None:
    models[1].first.__class__ = Doubled
    forcing = Forcing()
    found = errors(forced(models, x, forcing))
    hidden = torch.relu(models[0].first(x))
    # The candidate goes on with twice the reference's output, as it would if it were right.
    handed = Difference.of(hidden, 2.0 * hidden).peir
    assert found["second kwargs.input"] == pytest.approx(handed, rel=1e-6)
    assert forcing.unforced == set()


def test_what_cannot_be_put_in_place_is_told_and_goes_on(models, x) -> None:
    models[1].first.__class__ = Reversed
    forcing = Forcing()
    run = forced(models, x, forcing)
    assert ("first", 0) in forcing.unforced
    row = next(row for row in run.rows if row.module == "first" and row.is_output)
    assert forcing.goes_on(row)
    later = next(row for row in run.rows if row.module == "second" and row.is_output)
    assert not forcing.goes_on(later)


def test_masks_stay_as_the_candidate_has_them(models) -> None:
    seen = []

    def note(module, args, kwargs):
        seen.append(kwargs["attention_mask"])

    for model, value in zip(models, (1, 0), strict=True):
        model.register_forward_pre_hook(
            lambda m, a, k, value=value: (
                a,
                {**k, "attention_mask": torch.full((4, 6), value, dtype=torch.bool)},
            ),
            with_kwargs=True,
        )
    models[1].register_forward_pre_hook(note, with_kwargs=True)
    forced(models, {"x": torch.randn(4, 6)})
    assert not seen[0].any()
