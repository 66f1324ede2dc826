"""What the vision model computes with depends on nothing but the grids of its images and videos:
which patches attend to each other, where each patch lies, and how the learned position embedding,
a square table, is interpolated there.

    layout = GridLayout.of(((1, 4, 6),), merge_size=2, side=16)
    layout.position_ids                        # [24, 2]: (0, 0), (0, 1), (1, 0), (1, 1), (0, 2) ...

Patches come in blocks of merge_size x merge_size, frame after frame, image after image. All numbers
equal those of transformers' `vision_utils`, whose releases differ in details; those are here.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import vision_utils
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionRotaryEmbedding

from wrappers.core.config import PTQConfig
from wrappers.errors import ConfigError, ModelInputError, WrappersError

Grid = tuple[int, int, int]
"""How many patches an image or video has in time, height and width."""

GRID_THW = "grid_thw"
"""The key of `PTQConfig.model_args`: the grids of all images and videos of each call."""

# Early releases of version 5 look up four rows instead of four columns of corners, around places
# from `linspace`; up to a later one they leave cosine and sine to the vision model.
_LINSPACE_IN_ROWS = not hasattr(vision_utils, "get_vision_interpolation_indices_and_weights")
_ROTARY_GIVES_ANGLES = len(inspect.signature(Qwen3VLVisionRotaryEmbedding.forward).parameters) == 2
_ENTRY_DTYPE = torch.int32 if _LINSPACE_IN_ROWS else torch.int64

_PRECOMPUTED = {
    "cu_seqlens": "cu_seqlens",
    "position_ids": "position_ids",
    "corners": "bilinear_indices" if _LINSPACE_IN_ROWS else "interp_indices",
    "weights": "bilinear_weights" if _LINSPACE_IN_ROWS else "interp_weights",
}
"""Under which names callers may pass transformers' vision model what they computed beforehand."""


@dataclass(frozen=True)
class GridLayout:
    """All that follows from the grids of a call.

    Attributes:
        cu_seqlens: where the attention's segments, one for each frame, begin and end:
            int32 [segments + 1].
        position_ids: the row and column of each patch, int64 [patches, 2].
        corners: the four entries of the position embedding around each patch, as the installed
            transformers looks them up: int64 [patches, 4], in early releases int32 [4, patches].
        weights: how much of each corner goes into the embedding, float32 of the same shape.
    """

    cu_seqlens: Tensor
    position_ids: Tensor
    corners: Tensor
    weights: Tensor

    @classmethod
    def of(cls, grids: Sequence[Grid], *, merge_size: int, side: int) -> GridLayout:
        """The layout of images and videos that follow each other, on the CPU.

        Args:
            grids: of each; heights and widths are multiples of `merge_size`.
            merge_size: the side of the blocks of patches that become one token.
            side: the side of the position embedding's square.
        """
        ends = torch.tensor([0, *segment_lengths(grids)]).cumsum(dim=0, dtype=torch.int32)
        positions, corners, weights = [], [], []
        for frames, height, width in grids:
            places = _in_blocks(height, width, merge_size)
            row_entries, row_weights = _neighbours(height, side)
            column_entries, column_weights = _neighbours(width, side)
            rows, columns = places.unbind(dim=1)
            # [patches of a frame, 2, 2]: both rows with both columns.
            around = row_entries[rows, :, None] * side + column_entries[columns, None, :]
            share = row_weights[rows, :, None] * column_weights[columns, None, :]
            positions.append(places.repeat(frames, 1))
            corners.append(around.flatten(1).repeat(frames, 1))
            weights.append(share.flatten(1).repeat(frames, 1))
        return cls(
            cu_seqlens=ends,
            position_ids=torch.cat(positions),
            corners=_as_installed(torch.cat(corners)),
            weights=_as_installed(torch.cat(weights)),
        )

    def with_precomputed(self, arguments: dict[str, Any]) -> GridLayout:
        """This layout with what the caller of the vision model computed beforehand in its place.

        Args:
            arguments: the keyword arguments; what is used is taken out, as transformers does.
        """
        given = {field: arguments.pop(name, None) for field, name in _PRECOMPUTED.items()}
        return dataclasses.replace(self, **{f: t for f, t in given.items() if t is not None})

    def to(self, device: torch.device) -> GridLayout:
        """This layout on another device."""
        if self.weights.device == device:
            return self
        return GridLayout(*(getattr(self, f.name).to(device) for f in dataclasses.fields(self)))


def segment_lengths(grids: Sequence[Grid]) -> list[int]:
    """How many patches attend to each other: those of each frame."""
    return [height * width for frames, height, width in grids for _ in range(frames)]


def fixed_grids(config: PTQConfig, merge_size: int) -> tuple[Grid, ...] | None:
    """The grids that `PTQConfig.model_args` fixes, if it does.

    Raises:
        ConfigError: it holds something else than grids, or one that cannot be merged.
    """
    given = config.model_args.get(GRID_THW)
    if given is None:
        return None
    if not isinstance(given, tuple) or not all(
        isinstance(grid, tuple) and len(grid) == 3 and all(type(size) is int for size in grid)
        for grid in given
    ):
        raise ConfigError(
            f"model_args[{GRID_THW!r}] is {given!r}: expected [[time, height, width], ...], the "
            "patches of each image or video"
        )
    _check(given, merge_size, f"model_args[{GRID_THW!r}]", ConfigError)
    return given


def given_grids(grid_thw: Tensor, merge_size: int) -> tuple[Grid, ...]:
    """The grids in a tensor [images, 3], read back to the host.

    Raises:
        ModelInputError: it holds something else than grids, or one that cannot be merged.
    """
    if grid_thw.ndim != 2 or grid_thw.shape[1] != 3 or grid_thw.is_floating_point():
        raise ModelInputError(
            f"found grid_thw of shape {list(grid_thw.shape)} and {grid_thw.dtype}; expected "
            "integers [images, 3], the patches of each image or video in time, height and width"
        )
    grids = tuple((t, h, w) for t, h, w in grid_thw.tolist())
    _check(grids, merge_size, "grid_thw", ModelInputError)
    return grids


def interpolated(pos_embed: nn.Module, layout: GridLayout) -> Tensor:
    """The position embedding of each patch, [patches, hidden].

    Args:
        pos_embed: looks entries up, [...] to [..., hidden].
        layout: which entries, and how much of each.
    """
    corners: Tensor = pos_embed(layout.corners) * layout.weights[..., None]
    return corners.sum(0 if _LINSPACE_IN_ROWS else 1)


def rotation_tables(
    rotary_pos_emb: nn.Module, hidden_states: Tensor, layout: GridLayout
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each patch's angles, each [patches, head_dim].

    Args:
        rotary_pos_emb: the float model's own.
        hidden_states: [patches, hidden]; says the device.
        layout: where the patches lie.
    """
    if _ROTARY_GIVES_ANGLES:
        angles = rotary_pos_emb(layout.position_ids)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()
    cos, sin = rotary_pos_emb(hidden_states, layout.position_ids)
    return cos, sin


def _check(grids: Sequence[Grid], merge_size: int, where: str, error: type[WrappersError]) -> None:
    if not grids:
        raise error(f"{where} is empty: expected the grid of at least one image or video")
    for grid in grids:
        if min(grid) < 1 or grid[1] % merge_size or grid[2] % merge_size:
            raise error(
                f"{where} holds the grid {list(grid)}: expected time, height and width above "
                f"zero, with height and width multiples of {merge_size}, the blocks that are merged"
            )


def _in_blocks(height: int, width: int, merge_size: int) -> Tensor:
    """Row and column of each patch of a frame in the order of the patches, [patches, 2]."""
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    blocks = places.view(height // merge_size, merge_size, width // merge_size, merge_size, 2)
    return blocks.transpose(1, 2).reshape(-1, 2)


def _neighbours(size: int, side: int) -> tuple[Tensor, Tensor]:
    """Along one axis of `size` patches, the two entries of `side` next to each, and their weights.

    The first patch lies on the first entry and the last on the last. Each [size, 2].
    """
    if _LINSPACE_IN_ROWS:
        places = torch.linspace(0, side - 1, size)
    else:
        places = torch.arange(size, dtype=torch.float32) * (side - 1) / max(size - 1, 1)
    first = places.floor()
    offsets = torch.arange(2, dtype=_ENTRY_DTYPE)
    entries = first.to(_ENTRY_DTYPE)[:, None] + offsets
    # Through the distance rather than as (1 - fraction, fraction): so transformers rounds.
    distance = (places[:, None] - first[:, None] - offsets).abs()
    return entries.clamp(max=side - 1), 1 - distance


def _as_installed(corners: Tensor) -> Tensor:
    return corners.T.contiguous() if _LINSPACE_IN_ROWS else corners
