"""A request becomes models and inputs."""

import pytest
import torch

from tests.builders.small_net import Net, X, recorded
from tracer.cli.requests import CompareRequest, RecordRequest
from tracer.cli.resolve import resolve, resolve_model
from tracer.errors import UsageError


def test_a_model_and_its_candidate() -> None:
    sides = resolve(CompareRequest(model="random-llama", candidate="bfloat16", sequence_length=4))
    assert sides.names == ("random-llama (LlamaForCausalLM, float32, cpu)", "bfloat16")
    assert sides.candidate.dtype is torch.bfloat16
    assert sides.inputs is not None
    assert sides.inputs["input_ids"].shape == (1, 4)
    assert not sides.quantized


def test_one_model() -> None:
    subject = resolve_model(RecordRequest(model="random-llama", out="x", batch=2, steps=1))
    assert type(subject.model).__name__ == "Stepping"
    assert "a prefill, and 1 decode steps" in subject.notes[-1]


def test_a_glob_that_matches_nothing() -> None:
    with pytest.raises(UsageError, match=r"--focus 'layers' matches none of the \d+ modules"):
        resolve(CompareRequest(model="random-llama", candidate="bfloat16", focus=("layers",)))


def test_a_trace_that_is_compared_in_python(tmp_path) -> None:
    path = tmp_path / "a.trace"
    recorded(Net(), X, path)
    request = CompareRequest(model="random-llama", reference=str(path), candidate="itself")
    with pytest.raises(UsageError, match="recorded with other inputs than tensors by name"):
        resolve(request)
