"""Scales and zero points by groups of the columns of a weight, finer than one for each channel.

    qparams = GroupedQParams(scale, zero_point, DType.parse("uint4"), columns)

`scale` is [channels, groups], and `columns` [inputs] says which group each column belongs to: those
of a group need not lie side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wrappers.errors import QParamsError
from wrappers.numerics.dtypes import DType


@dataclass(frozen=True, eq=False)
class GroupedQParams:
    """Scale and zero point of each group of columns of each row of a weight.

    Args:
        scale: positive, [channels, groups].
        zero_point: codes, of the same shape.
        dtype: the integer type of the codes.
        columns: the group of each column, [inputs].

    Raises:
        QParamsError: shapes do not fit, a scale is not positive, a zero point is no code, or a
            column is of a group that is not there.
    """

    scale: Tensor
    zero_point: Tensor
    dtype: DType
    columns: Tensor

    def __post_init__(self) -> None:
        scale = self.scale.detach().to(torch.float32)
        zero_point = self.zero_point.detach().to(torch.int32)
        columns = self.columns.detach().to(torch.int64)
        if scale.dim() != 2 or scale.shape != zero_point.shape or columns.dim() != 1:
            raise QParamsError(
                f"scale has shape {tuple(scale.shape)}, zero_point {tuple(zero_point.shape)} and "
                f"columns {tuple(columns.shape)}: expected [channels, groups] twice and [inputs]"
            )
        if not (torch.isfinite(scale) & (scale > 0)).all():
            raise QParamsError("a scale must be positive and finite in float32")
        if (zero_point < self.dtype.qmin).any() or (zero_point > self.dtype.qmax).any():
            raise QParamsError(
                f"a zero point of {self.dtype} lies in [{self.dtype.qmin}, {self.dtype.qmax}]"
            )
        if columns.numel() == 0 or columns.min() < 0 or columns.max() >= scale.shape[1]:
            raise QParamsError(f"columns must name groups from 0 to {scale.shape[1] - 1}")
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)
        object.__setattr__(self, "columns", columns)

    def fake_quantize(self, x: Tensor, *, may_overwrite: bool = False) -> Tensor:
        """`x` [channels, inputs] rounded to what the codes can represent.

        Raises:
            QParamsError: `x` is of another shape.
        """
        scale, zero_point = self.scale[:, self.columns], self.zero_point[:, self.columns]
        codes = self._codes(x).clamp(self.dtype.qmin, self.dtype.qmax)
        return ((codes - zero_point) * scale).to(x.dtype)

    def saturated(self, x: Tensor) -> Tensor:
        """Where `x` lies beyond the codes, bool, of the shape of `x`."""
        codes = self._codes(x)
        return (codes < self.dtype.qmin) | (codes > self.dtype.qmax)

    def _codes(self, x: Tensor) -> Tensor:
        """What `x` is rounded to, before it is clamped to the codes."""
        expected = (self.scale.shape[0], self.columns.numel())
        if tuple(x.shape) != expected:
            raise QParamsError(
                f"scales by group are for a weight of shape {expected}, found {tuple(x.shape)}"
            )
        scale, zero_point = self.scale[:, self.columns], self.zero_point[:, self.columns]
        return torch.round(x.to(torch.float32) * scale.reciprocal()) + zero_point

    def state(self) -> dict[str, Any]:
        """Plain JSON values that `wrappers.core.quantizers.quantizer_from_state` reads."""
        return {
            "kind": "grouped",
            "scale": self.scale.tolist(),
            "zero_point": self.zero_point.tolist(),
            "dtype": str(self.dtype),
            "columns": self.columns.tolist(),
        }

    def to(self, device: torch.device) -> GroupedQParams:
        """The same parameters on `device`."""
        if self.scale.device == device:
            return self
        tensors = (each.to(device) for each in (self.scale, self.zero_point, self.columns))
        scale, zero_point, columns = tensors
        return GroupedQParams(scale, zero_point, self.dtype, columns)
