"""Rope: both forms equal transformers' rotation bit for bit, and each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from wrappers.attention.rope import (
    negate_and_swap,
    negate_and_swap_observed,
    negate_first_half,
    rotate,
    swap,
)

POINTS = ["x1", "x2", "cat", "cos", "sin", "rot"]


def unchanged(x, point, *, may_overwrite=False):
    return x


def tables(length, head_dim, dtype):
    angle = torch.randn(1, length, head_dim // 2, dtype=torch.float64)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 6),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.integers(0, 1000),
)  # fmt: skip
def test_both_forms_equal_transformers(heads, length, half, dtype, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, heads, length, 2 * half).to(dtype)
    cos, sin = tables(length, 2 * half, dtype)
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin)
    cos, sin = cos[:, None], sin[:, None]
    assert torch.equal(rotate(x, cos, sin, negate_and_swap, unchanged), expected)
    assert torch.equal(rotate(x, cos, negate_first_half(sin), swap, unchanged), expected)


def test_what_rotations_keep():
    x = torch.randn(1, 3, 4)
    zero, one = torch.zeros(1, 3, 4), torch.ones(1, 3, 4)
    assert torch.equal(rotate(x, one, zero, negate_and_swap, unchanged), x)
    quarter = rotate(x, zero, one, negate_and_swap, unchanged)
    assert torch.equal(quarter, torch.cat((-x[..., 2:], x[..., :2]), dim=-1))
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    cos, sin = tables(7, 8, torch.float64)
    rotated = rotate(x, cos[:, None], sin[:, None], negate_and_swap, unchanged)
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    sin = torch.randn(1, 3, 6)
    negated = negate_first_half(sin)
    assert torch.equal(negated[..., :3], -sin[..., :3])
    assert torch.equal(negated[..., 3:], sin[..., 3:])
    assert torch.equal(negate_first_half(negated), sin)


@pytest.mark.parametrize(
    ("rotate_half", "table"), [(negate_and_swap, lambda sin: sin), (swap, negate_first_half)]
)
def test_every_point_is_reached_once_in_order_and_its_result_is_used(rotate_half, table):
    x, cos, sin = torch.randn(1, 2, 4), torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    reached = []

    def record(value, point, *, may_overwrite=False):
        reached.append((point, value))
        return value.double() * 0 + 1 if point == "rot" else value

    rotated = rotate(x, cos, table(sin), rotate_half, record)
    assert [point for point, _ in reached] == POINTS
    assert torch.equal(rotated, torch.ones(1, 2, 4, dtype=torch.float64))
    values = dict(reached)
    assert torch.equal(values["x1"], x[..., :2])
    assert torch.equal(values["x2"], x[..., 2:])
    assert torch.equal(values["cos"], x * cos)
    assert torch.equal(values["sin"] + values["cos"], values["rot"])


def test_the_negated_half_can_have_a_point_of_its_own():
    x, cos, sin = torch.randn(1, 2, 4), torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    reached = {}

    def record(value, point, *, may_overwrite=False):
        reached[point] = value
        return value

    rotated = rotate(x, cos, sin, negate_and_swap_observed(record), record)
    assert list(reached) == ["x1", "x2", "neg", "cat", "cos", "sin", "rot"]
    assert torch.equal(reached["neg"], -x[..., 2:])
    assert torch.equal(rotated, rotate(x, cos, sin, negate_and_swap, unchanged))

    def flat(value, point, *, may_overwrite=False):
        return torch.ones_like(value) if point == "neg" else value

    flattened = rotate(x, cos, sin, negate_and_swap_observed(flat), unchanged)
    expected = x * cos + torch.cat((torch.ones(1, 2, 2), x[..., :2]), dim=-1) * sin
    assert torch.equal(flattened, expected)
