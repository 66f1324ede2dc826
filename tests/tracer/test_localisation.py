"""Planted mistakes are found: the right module, the right argument or kind, and confirmed."""

import copy

import pytest
import torch

import tracer
import wrappers
from benchmarks.mistakes import decode
from benchmarks.mistakes.models import right_side, static_llama
from tests.tracer.mistakes import (
    FLOAT,
    WRAPPED,
    Mistake,
    attention,
    layer,
    model,
)


@pytest.fixture(scope="module", params=["tiny-llama", "stories260K"])
def loaded(request: pytest.FixtureRequest) -> tracer.models.Loaded:
    name = request.param
    if name == "stories260K":
        name = request.getfixturevalue("shared_data") / name / "hf"
    return tracer.models.load(name, batch=3, sequence_length=24, padding="left", prompt=None)


def check(loaded: tracer.models.Loaded, candidate: torch.nn.Module, mistake: Mistake) -> None:
    verdict = tracer.compare(loaded.model, candidate, loaded.inputs).verdict
    assert not verdict.agrees
    assert verdict.origin is not None
    found = verdict.origin.argument or verdict.origin.kind
    assert (verdict.origin.module, found) == (mistake.module, mistake.found), verdict.explanation
    assert (verdict.origin.argument is None) == (verdict.origin.kind != "argument")
    assert verdict.confirmed, verdict.explanation
    for line in (verdict.origin.reference_line, verdict.origin.candidate_line):
        assert line is not None
        file, _, number = line.rpartition(":")
        assert file.endswith(".py")
        assert int(number) > 0


@pytest.mark.parametrize("mistake", FLOAT, ids=lambda mistake: mistake.name)
def test_float_model(loaded: tracer.models.Loaded, mistake: Mistake) -> None:
    candidate = copy.deepcopy(loaded.model)
    mistake.plant(candidate)
    check(loaded, candidate, mistake)


@pytest.mark.parametrize("variant", ["prefill", "prefill_reference"])
@pytest.mark.parametrize("mistake", WRAPPED, ids=lambda mistake: mistake.name)
def test_wrapped_model(loaded: tracer.models.Loaded, mistake: Mistake, variant: str) -> None:
    candidate = wrappers.prepare(loaded.model, wrappers.PTQConfig(variant=variant))
    mistake.plant(candidate)
    check(loaded, candidate, mistake)


def stepping(loaded: tracer.models.Loaded) -> tuple[decode.Generation, dict[str, torch.Tensor]]:
    """The float model as it generates, and its inputs."""
    model = decode.Generation(copy.deepcopy(loaded.model), steps=decode.STEPS)
    return model, dict(loaded.inputs)


def check_steps(
    reference: decode.Generation,
    candidate: decode.Generation,
    inputs: dict[str, torch.Tensor],
    mistake: Mistake,
) -> None:
    mistake.plant(candidate)
    verdict = tracer.compare(reference, candidate, inputs).verdict
    assert verdict.origin is not None
    found = verdict.origin.argument or verdict.origin.kind
    assert (verdict.origin.module, found) == (mistake.module, mistake.found), verdict.explanation
    assert verdict.confirmed, verdict.explanation


def ids(mistakes: list[Mistake]) -> list[str]:
    return [mistake.name for mistake in mistakes]


@pytest.mark.parametrize("mistake", decode.WRAPPED, ids=ids(decode.WRAPPED))
def test_wrapped_decode_steps(loaded: tracer.models.Loaded, mistake: Mistake) -> None:
    reference, inputs = stepping(loaded)
    check_steps(reference, decode.prefill_and_decode(reference), inputs, mistake)


@pytest.mark.parametrize("mistake", decode.OF_STEPS, ids=ids(decode.OF_STEPS))
@pytest.mark.parametrize("sided", [lambda source: source, right_side], ids=["left", "right"])
def test_decode_steps(loaded: tracer.models.Loaded, mistake: Mistake, sided) -> None:
    reference, inputs = sided(lambda: stepping(loaded))()
    check_steps(reference, copy.deepcopy(reference), inputs, mistake)


@pytest.mark.parametrize("mistake", decode.STATIC, ids=ids(decode.STATIC))
def test_static_cache(mistake: Mistake) -> None:
    reference, inputs = static_llama()
    check_steps(reference, copy.deepcopy(reference), inputs, mistake)


@pytest.mark.parametrize("plant", [attention(), layer(), model()])
def test_right_reimplementations_agree(loaded, plant) -> None:
    candidate = copy.deepcopy(loaded.model)
    plant(candidate)
    verdict = tracer.compare(loaded.model, candidate, {**loaded.inputs, "use_cache": False}).verdict
    assert verdict.agrees, verdict.explanation
    assert verdict.symptom is None
    assert verdict.origin is None
