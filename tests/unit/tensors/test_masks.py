"""Masks: what they let through, whatever form says it, and how they are put into words."""

import math

import pytest
import torch

from tracer.tensors.masks import describe_mask, visible_pair, visible_positions


def causal(size: int) -> torch.Tensor:
    return torch.ones(size, size, dtype=torch.bool).tril()


def additive(visible: torch.Tensor, fill: float) -> torch.Tensor:
    return torch.zeros(visible.shape).masked_fill(~visible, fill)


@pytest.mark.parametrize(
    "fill", [-math.inf, torch.finfo(torch.float32).min, -1e4, -120.0, -40.0, -30.0]
)
def test_additive_masks_hide_at_their_fill_value(fill: float) -> None:
    visible = causal(4)[None, None]
    assert torch.equal(visible_positions(additive(visible, fill)), visible)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_additive_masks_of_other_dtypes(dtype: torch.dtype) -> None:
    visible = causal(4)[None, None]
    mask = torch.zeros(visible.shape, dtype=dtype)
    mask = mask.masked_fill(~visible, torch.finfo(dtype).min)
    assert torch.equal(visible_positions(mask), visible)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.int8])
def test_zeros_and_ones_of_any_integer(dtype: torch.dtype) -> None:
    mask = torch.tensor([[1, 1, 0]], dtype=dtype)
    assert visible_positions(mask).tolist() == [[True, True, False]]


def test_floats_of_zero_and_one() -> None:
    assert visible_positions(torch.tensor([[1.0, 0.0]])).tolist() == [[True, False]]
    assert visible_positions(torch.tensor([[[[1.0, 0.0]]]])) is None
    assert bool(visible_positions(torch.zeros(1, 1, 2, 2)).all())
    mask = torch.tensor([[[[0.0, -240.0, -120.0]]]])
    assert visible_positions(mask).tolist() == [[[[True, False, False]]]]


@pytest.mark.parametrize("weak", [-1.0, -10.0, -29.9, 0.5, math.nan, math.inf])
def test_values_that_neither_show_nor_hide_have_no_reading(weak: float) -> None:
    assert visible_positions(torch.tensor([[[[0.0, weak, -math.inf]]]])) is None


def test_what_has_no_reading() -> None:
    distance = -torch.arange(40.0).repeat(40, 1)[None, None]
    assert visible_positions(distance) is None
    assert visible_positions(torch.tensor([[0, 1, 2]])) is None
    assert visible_positions(torch.tensor([[0, -1]])) is None
    assert visible_positions(torch.zeros(2, 2, dtype=torch.complex64)) is None


def test_one_mask_for_all_heads_means_the_same_as_one_for_each() -> None:
    visible = causal(3)
    few = additive(visible[None, None], -120.0)
    pair = visible_pair(few, additive(visible.expand(2, 4, 3, 3), -math.inf))
    assert pair is not None
    assert pair[0].shape == pair[1].shape == (2, 4, 3, 3)
    assert torch.equal(*pair)


@pytest.mark.parametrize(
    "shapes", [((2, 3), (1, 1, 2, 3)), ((1, 3), (1, 4)), ((2, 1, 3, 3), (3, 1, 3, 3))]
)
def test_masks_of_other_rank_or_length_are_no_pair(shapes):
    assert visible_pair(*(torch.ones(s, dtype=torch.bool) for s in shapes)) is None


def test_one_unreadable_mask_makes_no_pair() -> None:
    readable = torch.zeros(1, 1, 2, 2)
    assert visible_pair(readable, readable - 5.0) is None
    assert visible_pair(readable - 5.0, readable) is None


@pytest.mark.parametrize(("mask", "words"), [
    (additive(causal(3)[None, None], -120.0), "additive mask, causal"),
    (torch.ones(2, 3, dtype=torch.int64), "mask, hides nothing"),
    (torch.tensor([[1, 0], [1, 1]]), "mask, hides 1 of 4 positions"),
    (torch.zeros(1, 1, 2, 3), "additive mask, hides nothing"),
    (torch.tensor([[[[0.0, -5.0]]]]), "from -5 to 0"),
    (None, "None"),
    (torch.ones(3), "float32 [3], all 1"),
])  # fmt: skip
def test_masks_in_words(mask: object, words: str) -> None:
    assert describe_mask(mask).endswith(words)


def test_a_causal_mask_of_a_query_that_follows_a_past() -> None:
    mask = torch.ones(2, 5, dtype=torch.bool).tril(3)[None, None]
    assert describe_mask(mask).endswith("causal")
