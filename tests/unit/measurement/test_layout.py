"""Tensors belong together whatever they are nested in; shapes are read back."""

from dataclasses import dataclass

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast

from tracer.measurement.layout import Form, in_shape_of, nested_otherwise

A, B = torch.arange(6.0).view(2, 3), torch.arange(8.0).view(2, 4)


@dataclass
class Both:
    first: torch.Tensor
    second: torch.Tensor


@pytest.mark.parametrize(
    ("reference", "candidate", "names"),
    [
        (A, A, {}),
        (A, (A,), {"": "0"}),
        ((A, None), A, {"0": ""}),
        (A, BaseModelOutput(last_hidden_state=A), {"": "last_hidden_state"}),
        ({"logits": A}, (A,), {"logits": "0"}),
        (CausalLMOutputWithPast(logits=A, past_key_values=(B, B)), A, {"logits": ""}),
        (
            CausalLMOutputWithPast(logits=A, past_key_values=(B, B)),
            (A, (B, B)),
            {"logits": "0", "past_key_values.0": "1.0", "past_key_values.1": "1.1"},
        ),
        (Both(A, B), (A, B), {"first": "0", "second": "1"}),
        ((A, B), {"x": A}, {"0": "x"}),
        ({"a": A, "b": B}, {"a": A}, {}),
        ((A, B), (A, None), {}),
        ((A, B), B, {}),
        (None, A, {}),
        (A, None, {}),
    ],
)
def test_tensors_that_belong_together(reference, candidate, names) -> None:
    assert nested_otherwise(reference, candidate) == names


X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("candidate", "form"),
    [
        (X.flatten(0, 1), Form.RESHAPED),
        (X.flatten(), Form.RESHAPED),
        (X.permute(2, 0, 1), Form.PERMUTED),
        (X.transpose(0, 1), Form.PERMUTED),
        (X[:1].squeeze(0), None),
        (X, None),
        (X[..., :3], None),
        (torch.tensor(1.0), None),
    ],
)
def test_another_shape(candidate, form) -> None:
    found = in_shape_of(X, candidate)
    assert (found and found[1]) == form
    if found is not None:
        assert torch.equal(found[0], X)


def test_a_batch_of_one_that_was_dropped() -> None:
    found = in_shape_of(X[:1], X[0])
    assert found is not None
    assert torch.equal(found[0], X[:1])


def test_an_order_that_cannot_be_told() -> None:
    cube = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(1))
    assert in_shape_of(cube, cube.permute(2, 0, 1) + 1e-6) is None
    found = in_shape_of(cube, cube.permute(2, 0, 1))  # but by the very same values
    assert found is not None
    assert torch.equal(found[0], cube)
