"""What a comparison is of: classes, dtypes, weights and inputs, and how far others are off."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import tracer
from tests.builders.llama import tiny
from tracer.comparison.identity import Content, Identity
from tracer.execution.stepping import Stepping
from tracer.reports.json import plain_values


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def identity(reference: nn.Module, inputs: object, candidate: nn.Module | None = None) -> Identity:
    candidate = copy.deepcopy(reference) if candidate is None else candidate
    found = tracer.compare(reference, candidate, inputs, confirm=False).identity
    assert found is not None
    return found


def test_classes_dtypes_modes_and_inputs() -> None:
    found = identity(net(), torch.ones(2, 6), net().to(torch.bfloat16))
    assert (found.reference.model, found.reference.dtype) == ("Sequential", "float32")
    assert (found.candidate.dtype, found.candidate.training) == ("bfloat16", False)
    assert found.inputs is not None
    assert [(path, c.form) for path, c in found.inputs.items()] == [("0", "float32 [2, 6]")]
    assert found.settings == {}
    assert found.reference.weights is not None
    assert found.reference.weights.shape == (6 * 6 + 6 + 6 * 3 + 3,)
    assert found.candidate.weights is None  # they may change


def test_weights_of_another_seed_and_in_the_last_bit() -> None:
    model, moved = net(), net()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(1.0 + torch.finfo(torch.float32).eps)
    same, near, other = (Content.of_parameters(each) for each in (net(), moved, net(1)))
    here = Content.of_parameters(model)
    assert here is not None and same is not None and near is not None and other is not None
    assert here.distance(same) == 0.0
    assert 0.0 < here.distance(near) < 1e-6
    flat = [
        torch.cat([p.detach().flatten() for p in m.parameters()]).double() for m in (model, net(1))
    ]
    expected = float((flat[0] - flat[1]).norm() / flat[0].norm())
    assert expected / 2.2 < here.distance(other) < expected * 1.7


def test_without_weights_and_on_the_meta_device() -> None:
    assert Content.of_parameters(nn.Identity()) is None
    assert Content.of_parameters(nn.Linear(2, 2, device="meta")) is None


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_one_integer_among_many(dtype: torch.dtype) -> None:
    first = torch.zeros(50_000, dtype=dtype)
    second = first.clone()
    second[31_337] = 1
    assert Content.of(first).distance(Content.of(second)) > 0.0
    assert Content.of(first).distance(Content.of(first.clone())) == 0.0


def test_complex_and_large_inputs_are_sampled() -> None:
    torch.manual_seed(0)
    for values in (torch.randn(200_000), torch.randn(300, dtype=torch.complex64)):
        here = Content.of(values)
        assert here.distance(Content.of(values * 1.1)) == pytest.approx(0.1, rel=0.6)
        assert here.is_inexact


def test_steps_and_the_models_inside() -> None:
    model = tiny()
    inputs = {"input_ids": torch.arange(1, 7)[None]}
    found = identity(Stepping(model, steps=2), inputs, Stepping(copy.deepcopy(model), steps=2))
    assert (found.reference.model, found.reference.steps) == ("LlamaForCausalLM", 2)


def test_a_recording(tmp_path) -> None:
    model, x = net(), torch.ones(2, 6)
    tracer.record(model, x, tmp_path / "a.trace")
    trace = tracer.open_trace(tmp_path / "a.trace")
    found = tracer.compare(trace, model).identity
    assert found is not None
    assert found.reference.model == "Sequential"
    assert found.reference.recording == trace.header["checksum"]
    assert found.reference.weights is None


def test_it_is_read_from_a_report_as_it_was() -> None:
    found = identity(net(), torch.ones(2, 6))
    found = dataclasses.replace(found, settings={"candidate": "port.py:build"})
    assert Identity.read(plain_values(found)) == found
