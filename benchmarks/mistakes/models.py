"""The right models that mistakes are planted in, and their inputs."""

import copy
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import wrappers
from benchmarks.mistakes.decode import STEPS, Generation, StaticGeneration, prefill_and_decode
from tracer import Stepped, models

VARIANTS = ("prefill", "prefill_reference")

# Gives a right model and its inputs.
Source = Callable[[], tuple[nn.Module, dict[str, Any]]]


@cache
def tiny_llama() -> tuple[nn.Module, dict[str, Any]]:
    """The built-in Llama of random weights; three sequences, padded on the left."""
    return _loaded("random-llama")


@cache
def longer_llama() -> tuple[nn.Module, dict[str, Any]]:
    """The built-in Llama of random weights; three sequences of 48 tokens at most, padded on the left."""
    return _loaded("random-llama", 48)


@cache
def checkpoint(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A real Llama; three sequences of text, padded on the left."""
    return _loaded(folder)


@cache
def tiny_qwen3_vl() -> tuple[nn.Module, dict[str, Any]]:
    """The built-in Qwen3-VL; two sequences with images, padded on the left.

    No two sides of an image are alike, so that rows do not pass for columns.
    """
    model = models.load("tiny-qwen3-vl").model
    return model, pictures_and_text(model.config, ((1, 4, 8), (1, 8, 4)), ((1, 6, 4),))


def generation(source: Source, steps: int = 1) -> Source:
    """The model as it generates, with a cache."""

    def generating() -> tuple[nn.Module, dict[str, Any]]:
        model, inputs = source()
        return Generation(copy.deepcopy(model), steps=steps), inputs

    return generating


def one_forward(source: Source, steps: int) -> Source:
    """The model as it runs once over all positions, to be compared with steps."""

    def running() -> tuple[nn.Module, dict[str, Any]]:
        model, inputs = source()
        return Stepped(model, steps=steps), inputs

    return running


def static_llama() -> tuple[nn.Module, dict[str, Any]]:
    """The wrapped built-in Llama as it generates over a static cache; padded on the right."""
    model, inputs = right_side(generation(tiny_llama, STEPS))()
    return prefill_and_decode(model, StaticGeneration), inputs


def right_side(source: Source) -> Source:
    """The same sequences, padded on the right."""

    def padded() -> tuple[nn.Module, dict[str, Any]]:
        model, inputs = source()
        lengths = inputs["attention_mask"].sum(-1).tolist()
        sided = {
            name: torch.stack(
                [row.roll(n, 0) for row, n in zip(inputs[name], lengths, strict=True)]
            )
            for name in ("input_ids", "attention_mask", "mm_token_type_ids")
            if name in inputs
        }
        return model, {**inputs, **sided}

    return padded


def without_cache(source: Source) -> Source:
    """Without the keys and values in what the model returns."""

    def cacheless() -> tuple[nn.Module, dict[str, Any]]:
        model, inputs = source()
        return model, {**inputs, "use_cache": False}

    return cacheless


def quantized(source: Source, variant: str) -> Source:
    """The model quantised to uint8, calibrated on its own inputs."""

    @cache
    def converted() -> tuple[nn.Module, dict[str, Any]]:
        model, inputs = source()
        spec = wrappers.affine("uint8")
        config = wrappers.PTQConfig(activation=spec, weight=spec, variant=variant)
        wrapped = wrappers.prepare(model, config)
        wrappers.calibrate(wrapped, [inputs])
        return wrappers.convert(wrapped), inputs

    return converted


def pictures_and_text(
    config: Any, *sequences: Sequence[tuple[int, int, int]]
) -> dict[str, torch.Tensor]:
    """Random text and images for a Qwen3-VL, padded on the left.

    Args:
        sequences: for each sequence the time, height and width of its images, in patches.
    """
    generator = torch.Generator().manual_seed(3)
    rows = [_tokens(config, grids, generator) for grids in sequences]
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    vision = config.vision_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    grids = [grid for sequence in sequences for grid in sequence]
    patches = sum(time * height * width for time, height, width in grids)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": torch.rand(patches, width, generator=generator) * 2 - 1,
        "image_grid_thw": torch.tensor(grids),
    }


def _loaded(name: str | Path, length: int = 24) -> tuple[nn.Module, dict[str, Any]]:
    loaded = models.load(name, batch=3, sequence_length=length, padding="left")
    return loaded.model, dict(loaded.inputs)


def _tokens(
    config: Any, grids: Sequence[tuple[int, int, int]], generator: torch.Generator
) -> list[int]:
    """Random text with an image for each grid in it."""
    merged = config.vision_config.spatial_merge_size**2
    tokens: list[int] = []
    for time, height, width in grids:
        tokens += torch.randint(1, 500, (4,), generator=generator).tolist()
        images = [config.image_token_id] * (time * height * width // merged)
        tokens += [config.vision_start_token_id, *images, config.vision_end_token_id]
    return tokens + torch.randint(1, 500, (6,), generator=generator).tolist()
