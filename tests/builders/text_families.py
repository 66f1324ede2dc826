"""The text decoders that have wrappers, each with what a test of all of them has to know of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import wrappers
from tests.builders import llama, qwen3_vl
from tests.builders.agreement import padding


def _with_mask(batch: int, length: int, side: str | None = None) -> dict[str, Any]:
    inputs = {"input_ids": llama.tokens(batch, length)}
    return inputs if side is None else inputs | {"attention_mask": padding(batch, length, side)}


@dataclass(frozen=True)
class TextFamily:
    """A family.

    Attributes:
        name: its own.
        tiny: makes a float model.
        prepare: wraps one in a variant.
        inputs: of a batch, with padding on a side or none.
        decoder: the model without a head.
        result: the tensor of an output.
        folded: the child of attention that the factor on the logits is folded into.
        specs: dtypes of activations and weights for numbers in float64.
    """

    name: str
    tiny: Callable[..., Any]
    prepare: Callable[..., Any]
    inputs: Callable[..., dict[str, Any]]
    decoder: Callable[[Any], Any]
    result: Callable[[Any], torch.Tensor]
    folded: str
    specs: tuple[tuple[str, str], ...]


LLAMA = TextFamily(
    name="llama",
    tiny=llama.tiny,
    prepare=llama.wrap,
    inputs=_with_mask,
    decoder=lambda model: model.model,
    result=lambda output: output.logits,
    folded="k_proj",
    specs=(("uint8", "uint8"), ("int16", "uint8"), ("uint8", "uint4")),
)
QWEN3_VL = TextFamily(
    name="qwen3_vl",
    tiny=qwen3_vl.tiny,
    prepare=qwen3_vl.wrap,
    inputs=qwen3_vl.with_features,
    decoder=lambda model: model,
    result=lambda output: output.last_hidden_state,
    folded="k_norm",
    specs=(("uint8", "uint8"), ("uint8", "uint4"), ("int8", "int8")),
)


@dataclass(frozen=True)
class Case:
    """A family in a variant."""

    family: TextFamily
    variant: str

    def wrap(self, model, **config):
        """The model, wrapped."""
        return self.family.prepare(model, self.variant, **config)

    def pair(self, implementation="eager", **changes):
        """A float model and its wrapped copy."""
        model = self.family.tiny(implementation, **changes)
        return model, self.wrap(model)

    def quantized(self, batches, model=None, **config):
        """A quantised model, calibrated on batches."""
        wrapped = self.wrap(self.family.tiny() if model is None else model, **config)
        wrappers.calibrate(wrapped, batches)
        return wrappers.convert(wrapped)

    def run(self, model, *args, **inputs):
        """The tensor that a model gives, without gradients."""
        with torch.no_grad():
            return self.family.result(model(*args, **inputs))

    def layer(self, model):
        """The first decoder layer."""
        return self.family.decoder(model).layers[0]


CASES = pytest.mark.parametrize(
    "case",
    [
        Case(family, variant)
        for family in (LLAMA, QWEN3_VL)
        for variant in ("prefill", "prefill_reference")
    ],
    ids=lambda case: f"{case.family.name}-{case.variant}",
)
FOLDED = pytest.mark.parametrize(
    "case",
    [Case(family, "prefill") for family in (LLAMA, QWEN3_VL)],
    ids=lambda case: case.family.name,
)
