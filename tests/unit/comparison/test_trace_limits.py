"""What recordings mean for a verdict and its coverage, as data."""

import pytest
import torch
from torch import nn

import tracer
from tracer.comparison.trace_limits import (
    TraceLimit,
    TraceLimitKind,
    check_asked,
    is_recorded,
    with_recordings,
)
from tracer.errors import UsageError

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
NOTHING = {
    "isolate": False, "what_if": False, "noise_floor": False, "zoom": False, "debugger": False,
}  # fmt: skip


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh()).eval()


@pytest.fixture
def recorded(tmp_path):
    def record(values: str) -> tracer.Recorded:
        tracer.record(model(), X, tmp_path / "a.trace", values=values)
        return tracer.open_trace(tmp_path / "a.trace")

    return record


@pytest.mark.parametrize(("values", "seed", "kinds"), [
    ("all", 0, []), ("all", 1, [TraceLimitKind.OTHER_PARAMETERS]), ("outputs", 0, []),
    ("outputs", 1, [TraceLimitKind.OTHER_PARAMETERS, TraceLimitKind.OUTPUTS]),
    ("fingerprints", 0, [TraceLimitKind.FINGERPRINTS]),
])  # fmt: skip
def test_what_a_recording_lacks(recorded, values, seed, kinds):
    verdict = tracer.compare(recorded(values), model(seed)).verdict
    limits = [each for each in verdict.beside if isinstance(each, TraceLimit)]
    assert [limit.kind for limit in limits] == kinds
    assert bool(verdict.why_not_tried) == (values != "all")
    for limit in limits:
        assert tracer.explain(limit) in verdict.explanation
        if limit.kind is TraceLimitKind.OTHER_PARAMETERS:
            assert (limit.parameters, limit.checked) == (("0.weight", "0.bias"), 2)


def test_models_that_run_have_none():
    verdict = tracer.compare(model(), model(1), X).verdict
    assert with_recordings(verdict, model(), model(1)) is verdict


@pytest.mark.parametrize(("side", "asked", "message"), [
    ("reference", "isolate", "isolate: the recording of the reference holds"),
    ("reference", "what_if", "what_if runs the reference's modules"),
    ("reference", "noise_floor", "noise_floor runs the reference's modules"),
    ("reference", "zoom", "zoom looks at the operations of both models"),
    ("candidate", "zoom", "zoom looks at the operations of both models"),
    ("candidate", "debugger", "the debugger stands in the candidate's code"),
])  # fmt: skip
def test_what_needs_a_model_is_refused(recorded, side, asked, message):
    trace = recorded("outputs")
    sides = (trace, model()) if side == "reference" else (model(), trace)
    assert is_recorded(*sides)
    check_asked(*sides, **NOTHING)
    with pytest.raises(UsageError, match=message):
        check_asked(*sides, **NOTHING | {asked: True})
