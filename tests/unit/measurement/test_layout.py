"""Leaves belong together whatever they are nested in; shapes are read back."""

from dataclasses import dataclass

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast

from tracer.measurement.layout import Form, align, in_form_of

A, B = torch.arange(6.0).view(2, 3), torch.arange(8.0).view(2, 4)


@dataclass
class Both:
    first: torch.Tensor
    second: torch.Tensor


@pytest.mark.parametrize(
    ("reference", "candidate", "names"),
    [
        (A, A, {}),
        (A, (A,), {"output": "output.0"}),
        ((A, None), A, {"output.0": "output"}),
        (A, BaseModelOutput(last_hidden_state=A), {"output": "output.last_hidden_state"}),
        ({"logits": A}, (A,), {"output.logits": "output.0"}),
        (
            CausalLMOutputWithPast(logits=A, past_key_values=(B, B)),
            A,
            {"output.logits": "output"},
        ),
        (
            CausalLMOutputWithPast(logits=A, past_key_values=(B, B)),
            (A, (B, B)),
            {
                "output.logits": "output.0",
                "output.past_key_values.0": "output.1.0",
                "output.past_key_values.1": "output.1.1",
            },
        ),
        (Both(A, B), (A, B), {"output.first": "output.0", "output.second": "output.1"}),
        ({"a": A, "b": B}, {"a": A}, {}),
        ((A, B), (A, None), {}),
        ((A, B), B, {}),
        (None, A, {}),
        (A, None, {}),
    ],
)
def test_leaves_that_belong_together(reference, candidate, names) -> None:
    aligned = align(reference, candidate, "output")
    assert aligned.names == names
    assert all(path in aligned.candidate for path in names)


def test_what_is_left_over_stays() -> None:
    aligned = align((A, B), {"x": A}, "output")
    assert aligned.names == {"output.0": "output.x"}
    assert "output.1" in aligned.reference
    assert "output.1" not in aligned.candidate


X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("candidate", "form"),
    [
        (X.flatten(0, 1), Form.RESHAPED),
        (X[:1].squeeze(0), None),
        (X.flatten(), Form.RESHAPED),
        (X.permute(2, 0, 1), Form.PERMUTED),
        (X.transpose(0, 1), Form.PERMUTED),
        (X, None),
        (X[..., :3], None),
        (torch.tensor(1.0), None),
    ],
)
def test_another_shape(candidate, form) -> None:
    found = in_form_of(X, candidate)
    assert (found and found[1]) == form
    if found is not None:
        assert found[0].shape == X.shape


def test_a_batch_of_one_that_was_dropped() -> None:
    found = in_form_of(X[:1], X[0])
    assert found is not None
    assert torch.equal(found[0], X[:1])
