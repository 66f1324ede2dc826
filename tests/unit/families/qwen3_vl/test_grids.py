"""Grids: the layout equals what transformers' own helpers and torch's interpolation give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers import vision_utils
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionRotaryEmbedding

from wrappers import PTQConfig
from wrappers.errors import ConfigError, ModelInputError
from wrappers.families.qwen3_vl.grids import (
    GridLayout,
    fixed_grids,
    given_grids,
    interpolated,
    rotation_tables,
    segment_lengths,
)


def transformers_corners(grid_thw, merge_size, side):
    """Indices and weights of the release that is installed, in its own layout."""
    if hasattr(vision_utils, "get_vision_interpolation_indices_and_weights"):
        return vision_utils.get_vision_interpolation_indices_and_weights(
            grid_thw, side, align_corners=True, spatial_merge_size=merge_size
        )
    return vision_utils.get_vision_bilinear_indices_and_weights(grid_thw, side, merge_size)


@st.composite
def merged_grids(draw):
    merge_size = draw(st.integers(1, 3))
    blocks = st.integers(1, 9)
    shapes = draw(st.lists(st.tuples(st.integers(1, 3), blocks, blocks), min_size=1, max_size=3))
    return [(t, h * merge_size, w * merge_size) for t, h, w in shapes], merge_size


@settings(deadline=None, max_examples=150)
@given(merged_grids(), st.sampled_from([1, 2, 5, 16, 48]))
def test_layout_equals_transformers_own(grids_and_merge_size, side):
    grids, merge_size = grids_and_merge_size
    grid_thw = torch.tensor(grids)
    layout = GridLayout.of(grids, merge_size=merge_size, side=side)
    corners, weights = transformers_corners(grid_thw, merge_size, side)
    for found, expected in (
        (layout.cu_seqlens, vision_utils.get_vision_cu_seqlens(grid_thw)),
        (layout.position_ids, vision_utils.get_vision_position_ids(grid_thw, merge_size)),
        (layout.corners, corners),
    ):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    assert layout.weights.dtype == weights.dtype
    # One unit in the last place of 1: early releases write one of the weights another way.
    torch.testing.assert_close(layout.weights, weights, rtol=0, atol=2**-24)


@settings(deadline=None, max_examples=60)
@given(merged_grids(), st.sampled_from([2, 5, 16]))
def test_interpolation_equals_torch_on_each_image(grids_and_merge_size, side):
    grids, merge = grids_and_merge_size
    table = nn.Embedding(side * side, 3)
    image = table.weight.detach().double().T.view(1, 3, side, side)
    expected = []
    for frames, height, width in grids:
        resized = functional.interpolate(
            image, size=(height, width), mode="bilinear", align_corners=True
        )
        blocks = resized.view(3, height // merge, merge, width // merge, merge)
        expected.append(blocks.permute(1, 3, 2, 4, 0).reshape(-1, 3).repeat(frames, 1))
    layout = GridLayout.of(grids, merge_size=merge, side=side)
    with torch.no_grad():
        found = interpolated(table, layout)
    torch.testing.assert_close(found.double(), torch.cat(expected), rtol=0, atol=2e-5)


def test_blocks_and_segments():
    layout = GridLayout.of([(1, 2, 4), (2, 2, 2)], merge_size=2, side=4)
    first = [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
    assert layout.position_ids.tolist() == first + 2 * first[:4]
    assert layout.cu_seqlens.tolist() == [0, 8, 12, 16]
    assert segment_lengths([(1, 4, 6), (3, 2, 2)]) == [24, 4, 4, 4]


def test_rotation_tables_hold_rows_then_columns_twice():
    inverse = torch.tensor([1.0, 0.25], dtype=torch.float64)
    rotary = Qwen3VLVisionRotaryEmbedding.__new__(Qwen3VLVisionRotaryEmbedding)
    nn.Module.__init__(rotary)
    rotary.inv_freq = inverse.float()
    rotary.attention_scaling = 1.0
    layout = GridLayout.of([(1, 2, 4)], merge_size=2, side=4)
    cos, sin = rotation_tables(rotary, torch.zeros(8, 1), layout)
    rows, columns = layout.position_ids.double().unbind(dim=1)
    angles = torch.cat((rows[:, None] * inverse, columns[:, None] * inverse), dim=1).repeat(1, 2)
    torch.testing.assert_close(cos.double(), angles.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sin.double(), angles.sin(), rtol=0, atol=1e-6)


def test_what_a_caller_computed_takes_the_place_of_the_layout_and_leaves_the_arguments():
    layout = GridLayout.of([(1, 2, 4)], merge_size=2, side=4)
    ends = torch.tensor([0, 4, 8], dtype=torch.int32)
    arguments = {"cu_seqlens": ends, "position_ids": None, "output_attentions": True}
    changed = layout.with_precomputed(arguments)
    assert changed.cu_seqlens is ends
    assert changed.position_ids is layout.position_ids
    assert arguments == {"output_attentions": True}


class TestFixedGrids:
    def test_lists_become_grids(self):
        config = PTQConfig(model_args={"grid_thw": [[1, 4, 6], [2, 2, 2]]})
        assert fixed_grids(config, 2) == ((1, 4, 6), (2, 2, 2))
        assert fixed_grids(PTQConfig(), 2) is None
        assert fixed_grids(PTQConfig(model_args={"grid_thw": None}), 2) is None

    @pytest.mark.parametrize("grids", [
        4, "1x4x6", [1, 4, 6], [[1, 4]], [[1, 4, 6, 1]], [[1, 4, 6.0]], [[1, 4, "6"]],
        [[True, 4, 6]], {"image": [[1, 4, 6]]},
    ])  # fmt: skip
    def test_something_else_is_refused(self, grids):
        with pytest.raises(ConfigError, match=r"expected \[\[time, height, width\], \.\.\.\]"):
            fixed_grids(PTQConfig(model_args={"grid_thw": grids}), 2)

    @pytest.mark.parametrize("grid", [[0, 4, 6], [1, 0, 6], [1, 4, -2], [1, 3, 6], [1, 4, 7]])
    def test_a_grid_that_cannot_be_merged_is_refused(self, grid):
        config = PTQConfig(model_args={"grid_thw": [[1, 4, 6], grid]})
        with pytest.raises(ConfigError, match="multiples of 2"):
            fixed_grids(config, 2)

    def test_no_grids_are_refused(self):
        with pytest.raises(ConfigError, match="empty"):
            fixed_grids(PTQConfig(model_args={"grid_thw": []}), 2)


class TestGivenGrids:
    def test_a_tensor_becomes_grids(self):
        assert given_grids(torch.tensor([[1, 4, 6], [2, 2, 2]]), 2) == ((1, 4, 6), (2, 2, 2))

    @pytest.mark.parametrize(
        "grid_thw",
        [torch.tensor([1, 4, 6]), torch.tensor([[1, 4]]), torch.tensor([[1.0, 4.0, 6.0]])],
    )
    def test_another_shape_or_type_is_refused(self, grid_thw):
        with pytest.raises(ModelInputError, match=r"found grid_thw of shape .*; expected"):
            given_grids(grid_thw, 2)

    @pytest.mark.parametrize("grid", [[1, 3, 6], [1, 4, 0]])
    def test_a_grid_that_cannot_be_merged_is_refused(self, grid):
        with pytest.raises(ModelInputError, match="multiples of 2"):
            given_grids(torch.tensor([grid]), 2)

    def test_no_grids_are_refused(self):
        with pytest.raises(ModelInputError, match="empty"):
            given_grids(torch.zeros(0, 3, dtype=torch.int64), 2)
