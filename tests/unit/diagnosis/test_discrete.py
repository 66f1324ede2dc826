"""Near ties: a choice that rounding turns over is none of its module's mistakes."""

import pytest
import torch
from torch import nn

import tracer
from tracer.diagnosis.discrete import NearTie


class Gate(nn.Module):
    """Scores of 4 experts by a weight, of which the best is taken."""

    def __init__(self, *, worst: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))
        self.worst = worst

    def forward(self, x):
        scores = x @ self.weight
        return scores, scores.topk(1, largest=not self.worst).indices


class Steps(nn.Module):
    """Rounds to whole numbers, and so gives values that are far apart for close ones."""

    def forward(self, x):
        return torch.round(x * 2), x


class Model(nn.Module):
    """What is chosen is used; the input is moved a little before it, as rounding does."""

    def __init__(self, choosing: nn.Module, shift: float = 0.0) -> None:
        super().__init__()
        self.before = nn.Identity()
        self.choosing = choosing
        self.after = nn.Identity()
        self.shift = torch.tensor([shift, 0.0, 0.0, -shift])

    def forward(self, x):
        scores, chosen = self.choosing(self.before(x + self.shift))
        return self.after(chosen.float() + scores[..., :1])


def tied() -> torch.Tensor:
    x = torch.arange(24.0).reshape(6, 4)
    x[3] = torch.tensor([1.0, 2.0, 3.0, 3.0000019])
    x[4] = torch.tensor([-0.75, 0.2, 9.0, 0.3])
    x[4, 0] = -0.749999
    return x


@pytest.mark.parametrize(
    ("choosing", "rows", "chosen"),
    [(Gate, ((3,),), ((3,), (2,))), (Steps, ((4,),), None)],
)
def test_a_choice_turned_over_by_rounding_is_no_origin(choosing, rows, chosen) -> None:
    shift = 4e-6 if choosing is Gate else -4e-6
    result = tracer.compare(Model(choosing()), Model(choosing(), shift), tied())
    ties = [each for each in result.verdict.beside if isinstance(each, NearTie)]
    assert result.verdict.agrees
    assert [(tie.module, tie.rows, tie.positions, tie.chosen) for tie in ties] == [
        ("choosing", rows, 6, chosen)
    ]
    assert 0.0 < ties[0].margin < 1e-5
    assert "turned over by rounding" in result.verdict.explanation


def test_another_choice_is_an_origin() -> None:
    result = tracer.compare(Model(Gate()), Model(Gate(worst=True), 4e-6), tied())
    assert not result.verdict.agrees
    assert result.verdict.origin.module == "choosing"
    assert "rounding" not in result.verdict.explanation


class Rounding(nn.Module):
    """Fake-quantises by a scale of its own."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return torch.fake_quantize_per_tensor_affine(x, self.scale, 0, -128, 127)


@pytest.mark.parametrize("scale", [0.04, 0.5])
def test_another_scale_is_no_near_tie(scale: float) -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Identity(), Rounding(each), nn.Identity()) for each in (0.05, scale)]
    verdict = tracer.compare(*models, torch.randn(4, 8)).verdict
    assert (verdict.agrees, verdict.origin.module) == (False, "1")
    assert not any(isinstance(found, NearTie) for found in verdict.beside)
