"""Synthetic inputs of a Qwen3-VL: an image, and a clip if asked for, among random text tokens.

>>> made, description = image_and_text(model, InputSpec(frames=4))
>>> description
'106 tokens, 64 of them a synthetic image of 16 x 16 patches, 12 a synthetic clip of 4 frames ...'
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tracer.errors import UsageError
from tracer.models.inputs.text import GeneratedInputs, InputSpec, batch_in_words, padded, padding_id

_LENGTH = 84  # tokens when no length is asked for, besides those of a clip
_STAMP = 3  # text tokens before each step of a clip, where a processor writes the time
# The size of a frame in tokens; not square, so that rows taken for columns show.
_ROWS, _COLUMNS = 2, 3


def image_and_text(model: nn.Module, request: InputSpec) -> GeneratedInputs:
    """In each sequence one synthetic image, and a clip if asked for, between random text tokens.

    Raises:
        UsageError: a prompt, which such inputs have no place for, or a sequence too short.
    """
    if request.prompt is not None:
        raise UsageError(
            "a prompt goes with --image, and synthetic images and clips among random tokens: leave "
            "one of them out"
        )
    config: Any = model.config
    clip = _Clip(request.frames or 0, config)
    length = request.sequence_length or _LENGTH + clip.length
    side = _side(length - clip.length)
    image = _marked(config, config.image_token_id, side * side)
    room = length - clip.length - len(image)
    if room < 1:
        room_for = f"{clip.length} of the clip, " if clip.length else ""
        raise UsageError(
            f"sequence length {length}: a Qwen3-VL needs at least {clip.length + 4} tokens, "
            f"{room_for}an image of one between its start and its end, and one of text"
        )
    generator = torch.Generator().manual_seed(request.seed)
    texts = [_text(config, n, generator) for n in request.lengths(room)]
    vision = config.vision_config
    grid = side * vision.spatial_merge_size
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    # [images * patches, channels * frames * height * width], from -1 to 1 as a processor gives it
    pixels = torch.rand(request.batch * grid * grid, width, generator=generator) * 2 - 1
    rows = []
    for text in texts:
        before = min(4, len(text) - 1)
        rows.append([*text[:before], *image, *clip.tokens(generator), *text[before:]])
    made = padded(rows, request.padding, padding_id(model))
    ids = made["input_ids"]
    made["mm_token_type_ids"] = sum(
        kind * (ids == token).int()
        for kind, token in ((1, config.image_token_id), (2, config.video_token_id))
    )
    made["pixel_values"] = pixels
    made["image_grid_thw"] = torch.tensor([[1, grid, grid]] * request.batch)
    made |= clip.inputs(request.batch, generator)
    description = (
        f"{length} tokens, {side * side} of them a synthetic image of {grid} x {grid} patches"
        f"{clip} (seed {request.seed}){batch_in_words([len(row) for row in rows], request)}"
    )
    return made, description


def patches(frames: torch.Tensor, vision_config: Any) -> torch.Tensor:
    """Cuts clips into patches, in the order in which a Qwen3-VL's processor does.

    Args:
        frames: [clips, frames, channels, height, width]; the last one is repeated where a step in
            time lacks frames.

    Returns:
        [clips * steps * rows * columns, channels * frames of a step * height * width of a patch];
        patches that become one token lie together.
    """
    merge, size = int(vision_config.spatial_merge_size), int(vision_config.patch_size)
    time = int(vision_config.temporal_patch_size)
    lacking = -frames.shape[1] % time
    frames = torch.cat([frames, frames[:, -1:].expand(-1, lacking, -1, -1, -1)], dim=1)
    # [clip, step, frame, channel, token row, patch row, height, token column, patch column, width]
    cut: torch.Tensor = frames.unflatten(4, (-1, merge, size)).unflatten(3, (-1, merge, size))
    cut = cut.unflatten(1, (-1, time))
    # [clip, step, token row, token column, patch row, patch column, channel, frame, height, width]
    return cut.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).flatten(6).flatten(0, 5)


@dataclass(frozen=True)
class _Clip:
    """A clip of some frames, or of none; a few frames together make one step in time."""

    frames: int
    config: Any

    @property
    def steps(self) -> int:
        return -(-self.frames // int(self.config.vision_config.temporal_patch_size))

    @property
    def length(self) -> int:
        """Tokens in a sequence."""
        return self.steps * (_STAMP + _ROWS * _COLUMNS + 2)

    def tokens(self, generator: torch.Generator) -> list[int]:
        """Each step with its time before it, as a processor lays them out."""
        frame = _marked(self.config, self.config.video_token_id, _ROWS * _COLUMNS)
        stamps = [_text(self.config, _STAMP, generator) for _ in range(self.steps)]
        return [token for stamp in stamps for token in (*stamp, *frame)]

    def inputs(self, batch: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The patches of a clip for each sequence, and their grids; nothing without frames."""
        if not self.frames:
            return {}
        vision = self.config.vision_config
        rows, columns = (n * vision.spatial_merge_size for n in (_ROWS, _COLUMNS))
        size = rows * vision.patch_size, columns * vision.patch_size
        shape = batch, self.frames, vision.in_channels, *size
        frames = torch.rand(shape, generator=generator) * 2 - 1
        grid = torch.tensor([[self.steps, rows, columns]] * batch)
        return {"pixel_values_videos": patches(frames, vision), "video_grid_thw": grid}

    def __str__(self) -> str:
        if not self.frames:
            return ""
        merge = self.config.vision_config.spatial_merge_size
        return (
            f", {self.steps * _ROWS * _COLUMNS} a synthetic clip of {self.frames} frames of "
            f"{_ROWS * merge} x {_COLUMNS * merge} patches"
        )


def _side(room: int) -> int:
    """Tokens on a side of the image, with at least 8 tokens of text around it if there is room."""
    return next((n for n in (8, 6, 4, 2) if n * n + 10 <= room), 1)


def _marked(config: Any, token: int, count: int) -> list[int]:
    """Tokens of an image or of a step of a clip, between their start and their end."""
    return [config.vision_start_token_id, *[token] * count, config.vision_end_token_id]


def _text(config: Any, count: int, generator: torch.Generator) -> list[int]:
    special = (
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    )
    return torch.randint(1, min(special), (count,), generator=generator).tolist()
