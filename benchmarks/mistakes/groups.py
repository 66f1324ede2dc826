"""The tables of mistakes with the models that they are planted in."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import wrappers
from benchmarks.mistakes import llama, quantized, qwen3_vl
from benchmarks.mistakes.decoder import generating
from benchmarks.mistakes.planting import Mistake
from tracer import models

VARIANTS = ("prefill", "prefill_reference")


@dataclass(frozen=True)
class Setting:
    """A right reference, how to make a right candidate of it, and what both are run on."""

    reference: nn.Module
    make: Callable[[], Any]
    inputs: dict[str, Any]

    def candidate(self, mistake: Mistake) -> nn.Module:
        """A candidate with the mistake planted."""
        candidate: nn.Module = self.make()
        mistake.plant(candidate)
        return candidate


@dataclass(frozen=True)
class Group:
    """A table of mistakes in one setting."""

    name: str
    mistakes: Sequence[Mistake]
    setting: Callable[[], Setting]


def groups(data: Path | None = None) -> list[Group]:
    """All groups; those on real checkpoints where their folder is given."""
    coarse = [mistake for mistake in llama.FLOAT if mistake.name in llama.COARSE]
    vision = qwen3_vl.FLOAT_VISION
    listed = [
        Group("Llama", llama.FLOAT, copies(_llama)),
        Group("Llama, bfloat16 candidate", coarse, copies(_llama, nn.Module.bfloat16)),
        Group("Llama, generation", llama.GENERATION, copies(_generating_llama)),
        Group("Qwen3-VL, text", qwen3_vl.FLOAT_TEXT, copies(_qwen3_vl)),
        Group("Qwen3-VL, vision", vision, copies(_qwen3_vl)),
        Group("Qwen3-VL, generation", qwen3_vl.GENERATION, copies(_generating_qwen3_vl)),
    ]
    for variant in VARIANTS:
        listed += [
            Group(f"wrapped Llama, {variant}", llama.WRAPPED, wrapped(_llama, variant)),
            Group(f"wrapped Qwen3-VL, {variant}", qwen3_vl.WRAPPED, wrapped(_qwen3_vl, variant)),
            Group(f"quantised Llama, {variant}", quantized.LLAMA, converted(_llama, variant)),
            Group(
                f"quantised Qwen3-VL, {variant}", quantized.QWEN3_VL, converted(_qwen3_vl, variant)
            ),
        ]
    for name in () if data is None else ("stories260K", "wikitext2-llama"):
        folder = data / name / "hf"
        if folder.is_dir():
            listed.append(Group(name, llama.FLOAT, copies(lambda folder=folder: _real(folder))))
    return listed


Source = Callable[[], tuple[nn.Module, dict[str, Any]]]


def copies(
    source: Source, change: Callable[[Any], Any] = lambda model: model
) -> Callable[[], Setting]:
    """The candidate is a copy of the reference."""

    def setting() -> Setting:
        reference, inputs = source()
        return Setting(reference, lambda: change(copy.deepcopy(reference)), inputs)

    return setting


def wrapped(source: Source, variant: str) -> Callable[[], Setting]:
    """The candidate is the reference wrapped, with quantisation off."""

    def setting() -> Setting:
        reference, inputs = source()
        config = wrappers.PTQConfig(variant=variant)
        return Setting(reference, lambda: wrappers.prepare(reference, config), inputs)

    return setting


def converted(source: Source, variant: str) -> Callable[[], Setting]:
    """Both are quantised, on the very inputs of the comparison."""

    @cache
    def setting() -> Setting:
        model, inputs = source()
        config = wrappers.PTQConfig(
            activation=wrappers.affine("uint8"), weight=wrappers.affine("uint8"), variant=variant
        )
        reference = wrappers.prepare(model, config)
        wrappers.calibrate(reference, [inputs])
        wrappers.convert(reference)
        return Setting(reference, lambda: copy.deepcopy(reference), inputs)

    return setting


@cache
def _llama() -> tuple[nn.Module, dict[str, Any]]:
    loaded = models.load("tiny-llama", batch=3, sequence_length=24, padding="left")
    return loaded.model, dict(loaded.inputs)


@cache
def _real(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    loaded = models.load(folder, batch=3, sequence_length=24, padding="left")
    return loaded.model, dict(loaded.inputs)


@cache
def _qwen3_vl() -> tuple[nn.Module, dict[str, Any]]:
    model = models.load("tiny-qwen3-vl").model
    return model, pictures_and_text(model.config)


@cache
def _generating_llama() -> tuple[nn.Module, dict[str, Any]]:
    model, inputs = _llama()
    return generating(copy.deepcopy(model)), inputs


@cache
def _generating_qwen3_vl() -> tuple[nn.Module, dict[str, Any]]:
    model, inputs = _qwen3_vl()
    return generating(copy.deepcopy(model)), inputs


def pictures_and_text(config: Any) -> dict[str, torch.Tensor]:
    """Two sequences, padded on the left: a wide and a high image, a high image alone.

    No two sides are alike, so that rows do not pass for columns.
    """
    generator = torch.Generator().manual_seed(3)
    vision = config.vision_config
    grids = [(1, 4, 8), (1, 8, 4), (1, 6, 4)]
    rows = [_tokens(config, grids[:2], generator), _tokens(config, grids[2:], generator)]
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    patches = sum(t * h * w for t, h, w in grids)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": torch.rand(patches, width, generator=generator) * 2 - 1,
        "image_grid_thw": torch.tensor(grids),
    }


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
