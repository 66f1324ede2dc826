"""Microscaling: blocks of values that share a power of two as their scale.

Formats and conversion after "OCP Microscaling Formats (MX) Specification", version 1.0: a block's
scale is 2 to the power of (floor(log2(largest magnitude)) - largest exponent of the element
format), and each value over that scale is rounded to the element format, half to even, and
saturated at its largest number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from torch import Tensor

from wrappers.errors import ConfigError, TensorError

MAX_SHARED_EXPONENT = 127  # of E8M0, the format of the scales; the least is its negative


@dataclass(frozen=True)
class ElementFormat:
    """The numbers that one element of a block can be.

    Args:
        mantissa_bits: stored bits of the fraction.
        min_exponent: of normal numbers; below it the steps stay as wide (subnormals).
        max_exponent: of the largest number.
        largest: the largest number.
    """

    mantissa_bits: int
    min_exponent: int
    max_exponent: int
    largest: float


# MXINT8 is fixed point with six bits after the point: the same as one binade and subnormals.
ELEMENT_FORMATS = {
    "int8": ElementFormat(mantissa_bits=6, min_exponent=0, max_exponent=0, largest=127 / 64),
    "fp8_e4m3": ElementFormat(mantissa_bits=3, min_exponent=-6, max_exponent=8, largest=448.0),
    "fp8_e5m2": ElementFormat(mantissa_bits=2, min_exponent=-14, max_exponent=15, largest=57344.0),
    "fp6_e2m3": ElementFormat(mantissa_bits=3, min_exponent=0, max_exponent=2, largest=7.5),
    "fp6_e3m2": ElementFormat(mantissa_bits=2, min_exponent=-2, max_exponent=4, largest=28.0),
    "fp4_e2m1": ElementFormat(mantissa_bits=1, min_exponent=0, max_exponent=2, largest=6.0),
}


@dataclass(frozen=True)
class MXQuantizer:
    """Rounds a tensor block by block; the scales come from the tensor itself.

    Args:
        element: a key of `ELEMENT_FORMATS`.
        block_size: how many values share a scale; the last block of a row may have fewer.
        axis: the dimension that blocks run along.

    Raises:
        ConfigError: any of these cannot be.
    """

    element: str = "int8"
    block_size: int = 32
    axis: int = -1

    def __post_init__(self) -> None:
        if self.element not in ELEMENT_FORMATS:
            raise ConfigError(
                f"unknown element format {self.element!r}: choose one of "
                f"{', '.join(ELEMENT_FORMATS)}"
            )
        if not _is_integer(self.block_size) or self.block_size < 1:
            raise ConfigError(f"block_size must be a positive integer, not {self.block_size!r}")
        if not _is_integer(self.axis):
            raise ConfigError(f"axis must be an integer, not {self.axis!r}")

    def fake_quantize(self, x: Tensor, *, may_overwrite: bool = False) -> Tensor:
        """`microscale` with these settings; never written into `x`. No gradient passes."""
        return microscale(x, self.element, block_size=self.block_size, axis=self.axis)

    def saturated(self, x: Tensor) -> Tensor:
        """Where an element was cut to the largest of its format, bool, of the shape of `x`."""
        rounded, _ = _rounded_blocks(x, self.element, self.block_size, self.axis)
        beyond = rounded.abs() > ELEMENT_FORMATS[self.element].largest
        return out_of_blocks(beyond, x.shape, self.axis)

    def state(self) -> dict[str, Any]:
        """Plain JSON values that `wrappers.core.quantizers.quantizer_from_state` reads."""
        return {
            "kind": "mx", "element": self.element, "block_size": self.block_size, "axis": self.axis,
        }  # fmt: skip


def microscale(x: Tensor, element: str, *, block_size: int = 32, axis: int = -1) -> Tensor:
    """`x` rounded to an MX format and back.

    The specification leaves non-finite values to the implementation. Here they have no part in
    the scale; infinities saturate as any number too large does, and NaN stays NaN.

    Args:
        x: floating point, any shape.
        element: a key of `ELEMENT_FORMATS`.
        block_size: how many values along `axis` share a scale.
        axis: the dimension that blocks run along.

    Returns:
        A tensor of the shape and dtype of `x`.

    Raises:
        TensorError: `x` is not a floating-point tensor, or has no dimension `axis`.
    """
    if x.numel() == 0:
        return x.detach().clone()
    rounded, scale = _rounded_blocks(x, element, block_size, axis)
    largest = ELEMENT_FORMATS[element].largest
    return out_of_blocks(rounded.clamp(-largest, largest) * scale, x.shape, axis).to(x.dtype)


def in_blocks(x: Tensor, block_size: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """A tensor in blocks along a dimension, and the largest finite magnitude of each.

    Returns:
        float64, [..., blocks, block_size], zeros after the last value; and [..., blocks, 1].

    Raises:
        TensorError: `x` is not a floating-point tensor, or has no dimension `axis`.
    """
    if not x.is_floating_point():
        raise TensorError(f"only floating-point tensors are quantised, found {x.dtype}")
    if not -max(x.dim(), 1) <= axis < max(x.dim(), 1):
        raise TensorError(f"a tensor of shape {tuple(x.shape)} has no dimension {axis}")
    # In float64 every power of two that occurs, and every product with one, is exact.
    rows = x.detach().to(torch.float64).reshape(x.shape or (1,)).movedim(axis, -1)
    blocks = F.pad(rows, (0, -rows.shape[-1] % block_size)).unflatten(-1, (-1, block_size))
    finite = torch.where(torch.isfinite(blocks), blocks, 0.0)
    return blocks, finite.abs().amax(dim=-1, keepdim=True)


def out_of_blocks(blocks: Tensor, shape: torch.Size, axis: int = -1) -> Tensor:
    """What `in_blocks` took apart, of the shape that it had."""
    length = shape[axis] if shape else 1
    return blocks.flatten(-2)[..., :length].movedim(-1, axis).reshape(shape)


def rounded_to(x: Tensor, number: ElementFormat) -> Tensor:
    """float64 values rounded to a format, half to even, as if it had no largest number."""
    exponent = _exponent(x).clamp(number.min_exponent, number.max_exponent)
    step = torch.exp2((exponent - number.mantissa_bits).to(torch.float64))
    return torch.round(x / step) * step


def _rounded_blocks(x: Tensor, element: str, block_size: int, axis: int) -> tuple[Tensor, Tensor]:
    """Elements before they are cut to the largest, [..., blocks, block_size], and their scales."""
    number = ELEMENT_FORMATS[element]
    blocks, largest = in_blocks(x, block_size, axis)
    shared = (_exponent(largest) - number.max_exponent).clamp(
        -MAX_SHARED_EXPONENT, MAX_SHARED_EXPONENT
    )
    scale = torch.exp2(shared.to(torch.float64))
    return rounded_to(blocks / scale, number), scale


def _exponent(x: Tensor) -> Tensor:
    """floor(log2(abs(x))), exactly; of zero and of what is not finite, some integer."""
    _, exponent = torch.frexp(x)
    return exponent - 1


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
