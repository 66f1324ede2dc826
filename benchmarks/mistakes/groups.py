"""The tables of mistakes with the models that they are planted in."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import wrappers
from benchmarks.mistakes import decode, llama, ported, quantized, qwen3_vl
from benchmarks.mistakes.models import (
    VARIANTS,
    Source,
    checkpoint,
    generation,
    one_forward,
    right_side,
    static_llama,
    tiny_llama,
    tiny_qwen3_vl,
    without_cache,
)
from benchmarks.mistakes.models import quantized as converted
from benchmarks.mistakes.planting import Mistake

CHECKPOINTS = ("stories260K", "wikitext2-llama")


@dataclass(frozen=True)
class Group:
    """A table of mistakes in one setting.

    Attributes:
        name: of the setting.
        mistakes: the table.
        source: gives the reference and what both are run on.
        make: gives a right candidate, in which a mistake is planted.
        rename: rules for the candidate's names.
    """

    name: str
    mistakes: Sequence[Mistake]
    source: Source
    make: Callable[[Any], Any] = copy.deepcopy
    rename: Mapping[str, str] | None = None

    def pair(self, mistake: Mistake) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
        """The reference, the candidate with the mistake, and their inputs."""
        reference, inputs = self.source()
        candidate: nn.Module = self.make(reference)
        mistake.plant(candidate)
        return reference, candidate, inputs


def groups(data: Path | None = None) -> list[Group]:
    """All groups; those on real checkpoints where their folder is given."""
    coarse = [mistake for mistake in llama.FLOAT if mistake.name in llama.COARSE]
    listed = [
        Group("Llama", llama.FLOAT, tiny_llama),
        Group("Llama, bfloat16 candidate", coarse, tiny_llama, in_bfloat16),
        Group(
            "Llama, ported", ported.PORTED, without_cache(tiny_llama), ported.port, ported.RENAME
        ),
        Group("Llama, generation", llama.GENERATION, generation(tiny_llama)),
        Group("Qwen3-VL, text", qwen3_vl.FLOAT_TEXT, tiny_qwen3_vl),
        Group("Qwen3-VL, vision", qwen3_vl.FLOAT_VISION, tiny_qwen3_vl),
        Group("Qwen3-VL, generation", qwen3_vl.GENERATION, generation(tiny_qwen3_vl)),
    ]
    stepping = generation(tiny_llama, decode.STEPS)
    for side, source in (("left", stepping), ("right", right_side(stepping))):
        listed += [
            Group(f"Llama, decode steps, padded on the {side}", decode.FLOAT, source),
            Group(
                f"wrapped Llama, decode, padded on the {side}",
                decode.WRAPPED,
                source,
                decode.prefill_and_decode,
            ),
        ]
    at_once = one_forward(tiny_llama, decode.STEPS)
    listed += [
        Group("Llama, steps against one forward", decode.FLOAT, at_once, decode.generates),
        Group(
            "wrapped Llama, steps against one forward",
            decode.WRAPPED,
            at_once,
            decode.prefill_and_decode,
        ),
        Group("wrapped Llama, static cache", decode.STATIC, static_llama),
    ]
    after_images = generation(tiny_qwen3_vl, decode.STEPS)
    listed += [
        Group(f"wrapped Qwen3-VL, decode{side}", decode.QWEN3_VL, source, decode.prefill_and_decode)
        for side, source in (
            ("", after_images),
            (", padded on the right", right_side(after_images)),
        )
    ]
    for variant in VARIANTS:
        make = partial(wrapped, variant=variant)
        right = (converted(source, variant) for source in (tiny_llama, tiny_qwen3_vl))
        listed += [
            Group(f"wrapped Llama, {variant}", llama.WRAPPED, tiny_llama, make),
            Group(f"wrapped Qwen3-VL, {variant}", qwen3_vl.WRAPPED, tiny_qwen3_vl, make),
            Group(f"quantised Llama, {variant}", quantized.LLAMA, next(right)),
            Group(f"quantised Qwen3-VL, {variant}", quantized.QWEN3_VL, next(right)),
        ]
    for name in CHECKPOINTS:
        folder = data / name / "hf" if data is not None else None
        if folder is not None and folder.is_dir():
            listed.append(Group(name, llama.FLOAT, partial(checkpoint, folder)))
    return listed


def in_bfloat16(reference: Any) -> Any:
    """A copy in bfloat16."""
    return copy.deepcopy(reference).bfloat16()


def wrapped(reference: Any, variant: str) -> Any:
    """The reference wrapped, with quantisation off."""
    return wrappers.prepare(reference, wrappers.PTQConfig(variant=variant))
