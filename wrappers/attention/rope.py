"""Rotary position embedding in the two forms of rotate-half.

A pair of halves (x1, x2) is turned by x * cos + rotate_half(x) * sin (RoFormer, in the layout of
transformers' Llama). Evaluation forms rotate_half(x) = (-x2, x1). An accelerator is spared the
negation: it takes (x2, x1), and a sine table whose first half was negated beforehand. Both give
the same floating-point numbers, since -x2 * sin and x2 * -sin round alike.

    rotated = rotate(x, cos, sin, negate_and_swap, quantize)
    rotated = rotate(x, cos, negate_first_half(sin), swap, quantize)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wrappers.core.module import QuantModule
from wrappers.core.point import Quantize
from wrappers.errors import ModelInputError

RotateHalf = Callable[[Tensor, Tensor], Tensor]

"""Puts the halves x1 and x2, each [..., head_dim / 2], together as rotate_half(x)."""


def rotate(
    x: Tensor, cos: Tensor, sin: Tensor, rotate_half: RotateHalf, quantize: Quantize
) -> Tensor:
    """Returns x turned by its positions, with the points x1, x2, cat, cos, sin and rot.

    Args:
        x: [..., query, head_dim].
        cos: [..., query, head_dim], of a rank that broadcasts with x.
        sin: the same, in the form that `rotate_half` wants.
        rotate_half: `swap` or `negate_and_swap`.
        quantize: called with a tensor and a point's name.
    """
    half = x.shape[-1] // 2
    # Slices rather than chunk: one exporter's split operator rotated wrongly.
    x1 = quantize(x[..., :half], "x1")
    x2 = quantize(x[..., half:], "x2")
    swapped = quantize(rotate_half(x1, x2), "cat", may_overwrite=True)
    along = quantize(x * cos, "cos", may_overwrite=True)
    across = quantize(swapped * sin, "sin", may_overwrite=True)
    return quantize(along + across, "rot", may_overwrite=True)


def swap(x1: Tensor, x2: Tensor) -> Tensor:
    """Returns (x2, x1); the sign is in the sine table, see `negate_first_half`."""
    return torch.cat((x2, x1), dim=-1)


def negate_and_swap(x1: Tensor, x2: Tensor) -> Tensor:
    """Returns (-x2, x1), the rotate_half of transformers."""
    return torch.cat((-x2, x1), dim=-1)


def negate_and_swap_observed(quantize: Quantize) -> RotateHalf:
    """Returns `negate_and_swap` with the point neg on the half that is negated."""

    def rotate_half(x1: Tensor, x2: Tensor) -> Tensor:
        return torch.cat((quantize(-x2, "neg", may_overwrite=True), x1), dim=-1)

    return rotate_half


def negate_first_half(sin: Tensor) -> Tensor:
    """Returns the sine table [..., head_dim] for use with `swap`. It is its own inverse."""
    half = sin.shape[-1] // 2
    return torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)


ROPE_POINTS = ("x1", "x2", "cat", "cos", "sin", "rot")


def quantized_tables(
    module: QuantModule, attention: Any, tables: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Passes cos and sin through a module's points of that name and returns them.

    Args:
        module: has the points. That of the sine table sees it in the form of the variant, in which
            a graph for an accelerator takes it.
        attention: a `CausalAttention` of that variant.
        tables: cos and sin as in the float model, as what is returned.
    """
    cos, sin = tables
    quantized = module.quantize(attention.sine_table(sin), "sin")
    return module.quantize(cos, "cos"), attention.sine_table(quantized)


def rope_tables(
    position_embeddings: tuple[Tensor, Tensor] | None, called: type
) -> tuple[Tensor, Tensor]:
    """Returns cos and sin, each [B or 1, query, head_dim].

    Raises:
        ModelInputError: there are none.
    """
    if position_embeddings is None:
        raise ModelInputError(
            f"{called.__name__} was called without position_embeddings; give the pair (cos, sin) "
            "that the model's rotary_emb returns"
        )
    return position_embeddings
