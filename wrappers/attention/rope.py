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

import torch
from torch import Tensor

from wrappers.attention.core import Quantize

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
    swapped = quantize(rotate_half(x1, x2), "cat", owned=True)
    along = quantize(x * cos, "cos", owned=True)
    across = quantize(swapped * sin, "sin", owned=True)
    return quantize(along + across, "rot", owned=True)


def swap(x1: Tensor, x2: Tensor) -> Tensor:
    """Returns (x2, x1); the sign is in the sine table, see `negate_first_half`."""
    return torch.cat((x2, x1), dim=-1)


def negate_and_swap(x1: Tensor, x2: Tensor) -> Tensor:
    """Returns (-x2, x1), the rotate_half of transformers."""
    return torch.cat((-x2, x1), dim=-1)


def negate_and_swap_observed(quantize: Quantize) -> RotateHalf:
    """Returns `negate_and_swap` with the point neg on the half that is negated."""

    def rotate_half(x1: Tensor, x2: Tensor) -> Tensor:
        return torch.cat((quantize(-x2, "neg", owned=True), x1), dim=-1)

    return rotate_half


def negate_first_half(sin: Tensor) -> Tensor:
    """Returns the sine table [..., head_dim] for use with `swap`. It is its own inverse."""
    half = sin.shape[-1] // 2
    return torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
