"""Floats of few bits under a scale of float32: FP8, and NVFP4 in blocks.

    qparams = float_qparams(minimum, maximum, FP8_E4M3, QScheme.PER_TENSOR_SYMMETRIC)
    x_rounded = qparams.fake_quantize(x)

| type | elements | scales |
|---|---|---|
| `fp8_e4m3`, `fp8_e5m2` | E4M3 without infinities, E5M2 | one of float32, or one for each channel |
| `nvfp4` | E2M1 | of 16 values along the last dimension one of E4M3; one of float32 for all |

Rounding is to the nearest, half to even, and saturates. NVFP4 is as NVIDIA describes it in
"Pretraining Large Language Models with NVFP4" (2025): the scale of a block is its largest magnitude
over 6, over the scale of the tensor, rounded to E4M3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wrappers.errors import QParamsError, TensorError
from wrappers.numerics.affine import SCALE_EPSILON
from wrappers.numerics.dtypes import FP8_E4M3, FP8_E5M2, FloatType, QScheme, check_qscheme
from wrappers.numerics.microscaling import ELEMENT_FORMATS, in_blocks, out_of_blocks, rounded_to

_TORCH_TYPES = {FP8_E4M3: torch.float8_e4m3fn, FP8_E5M2: torch.float8_e5m2}
_ELEMENT, _BLOCK_SCALE = ELEMENT_FORMATS["fp4_e2m1"], ELEMENT_FORMATS["fp8_e4m3"]


@dataclass(frozen=True, eq=False)
class FloatQParams:
    """The scale of one tensor.

    Args:
        scale: float32, 0-d, or [channels] with an `axis`.
        dtype: the type of the elements.
        axis: the dimension of the quantised tensor that `scale` runs along, None for one scale.

    Raises:
        QParamsError: the shape does not fit, or a scale is not positive and finite in float32.
    """

    scale: Tensor
    dtype: FloatType
    axis: int | None = None

    def __post_init__(self) -> None:
        scale = self.scale.detach().to(torch.float32)
        if scale.dim() != (self.axis is not None) or scale.numel() == 0:
            expected = "0-d" if self.axis is None else "[channels]"
            raise QParamsError(f"scale has shape {tuple(scale.shape)}: expected {expected}")
        if not (torch.isfinite(scale) & (scale > 0)).all():
            raise QParamsError(f"a scale must be positive and finite in float32, found {scale}")
        object.__setattr__(self, "scale", scale)

    def fake_quantize(self, x: Tensor, *, may_overwrite: bool = False) -> Tensor:
        """`x` rounded to what the type can represent; never written into `x`. No gradient passes.

        NaN stays NaN, and infinities saturate.

        Raises:
            TensorError: `x` is not a floating-point tensor.
            QParamsError: `x` has another number of channels.
        """
        if self.dtype.block is not None:
            if x.numel() == 0:
                return x.detach().clone()
            rounded, scale = self._rounded_blocks(x)
            cut = rounded.clamp(-_ELEMENT.largest, _ELEMENT.largest)
            return out_of_blocks(cut * scale, x.shape).to(x.dtype)
        scaled = self._scaled(x).clamp_(-self.dtype.largest, self.dtype.largest)
        rounded = scaled.to(_TORCH_TYPES[self.dtype]).to(torch.float32)
        return rounded.mul_(self._broadcast(x)).to(x.dtype)

    def saturated(self, x: Tensor) -> Tensor:
        """Where an element was cut to the largest, bool, of the shape of `x`."""
        if self.dtype.block is not None:
            rounded, _ = self._rounded_blocks(x)
            return out_of_blocks(rounded.abs() > _ELEMENT.largest, x.shape)
        number = ELEMENT_FORMATS[str(self.dtype)]
        return rounded_to(self._scaled(x).to(torch.float64), number).abs() > number.largest

    def state(self) -> dict[str, Any]:
        """Plain JSON values that `wrappers.core.quantizers.quantizer_from_state` reads."""
        scale = self.scale.tolist()
        return {"kind": "float", "scale": scale, "dtype": str(self.dtype), "axis": self.axis}

    def to(self, device: torch.device) -> FloatQParams:
        """The same parameters on `device`."""
        if self.scale.device == device:
            return self
        return FloatQParams(self.scale.to(device), self.dtype, self.axis)

    def _scaled(self, x: Tensor) -> Tensor:
        """A tensor over its scale, float32, which nobody else holds."""
        if not x.is_floating_point():
            raise TensorError(f"only floating-point tensors are quantised, found {x.dtype}")
        return x.detach().to(torch.float32) / self._broadcast(x)

    def _broadcast(self, x: Tensor) -> Tensor:
        if self.axis is None:
            return self.scale
        channels = self.scale.numel()
        if not (-x.dim() <= self.axis < x.dim() and x.shape[self.axis] == channels):
            raise QParamsError(
                f"{channels} scales along dimension {self.axis} do not fit a tensor of shape "
                f"{tuple(x.shape)}"
            )
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return self.scale.view(shape)

    def _rounded_blocks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Elements before they are cut to the largest, [..., blocks, 16], and their scales."""
        assert self.dtype.block is not None
        blocks, largest = in_blocks(x, self.dtype.block)
        tensor_scale = self.scale.to(torch.float64)
        block_scale = rounded_to(largest / _ELEMENT.largest / tensor_scale, _BLOCK_SCALE)
        # A product of E4M3 and float32 is exact.
        scale = block_scale.clamp(max=_BLOCK_SCALE.largest) * tensor_scale
        # A scale that underflowed makes zeros of its block.
        return rounded_to(blocks / torch.where(scale > 0, scale, 1.0), _ELEMENT), scale


def float_qparams(
    minimum: Tensor,
    maximum: Tensor,
    dtype: FloatType,
    qscheme: QScheme,
    *,
    axis: int | None = None,
) -> FloatQParams:
    """The scale for values in [minimum, maximum]: the largest magnitude over the largest number.

    No scale is less than 1e-12. See `affine_qparams` for the arguments.

    Raises:
        ConfigError: a scheme that the type cannot have.
        QParamsError: a bound is not finite, or minimum > maximum.
    """
    check_qscheme(dtype, qscheme)
    low, high = minimum.detach().to(torch.float64), maximum.detach().to(torch.float64)
    if not (torch.isfinite(low) & torch.isfinite(high) & (low <= high)).all():
        raise QParamsError(f"a range must be finite and in order, found [{minimum}, {maximum}]")
    scale = torch.maximum(low.abs(), high.abs()) / dtype.largest
    return FloatQParams(scale.clamp(min=SCALE_EPSILON).to(torch.float32), dtype, axis)
