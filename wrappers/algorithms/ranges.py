"""The range of a weight whose rounding error is least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from wrappers.numerics.affine import affine_qparams
from wrappers.numerics.dtypes import DType, QScheme

Ranges = Literal["minmax", "mse", "weighted_mse"]
"""All weights; or what is left of that where their squared error is least, perhaps weighted by how
large the inputs are."""

SHRUNK = tuple(1.0 - step / 50 for step in range(36))  # of a range, tried for the least error


def best_range(
    weight: Tensor, importance: Tensor, dtype: DType, qscheme: QScheme, shrunk: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each row for the range whose rounding error is least.

    Args:
        weight: [rows, columns].
        importance: what the squared error of each weight counts, of the same shape.
        dtype: the integer type of the codes.
        qscheme: the scheme.
        shrunk: shares of the whole range to try.

    Returns:
        Each [rows], float64.
    """
    low, high = weight.amin(1), weight.amax(1)
    one_each = (
        QScheme.PER_CHANNEL_SYMMETRIC if qscheme.symmetric else QScheme.PER_CHANNEL_ASYMMETRIC
    )
    best = torch.full_like(low, torch.inf)
    scale, zero_point = torch.ones_like(low), torch.zeros_like(low)
    for share in shrunk:
        found = affine_qparams(low * share, high * share, dtype, one_each, axis=0)
        step, zero = found.scale.to(weight.dtype), found.zero_point.to(weight.dtype)
        codes = torch.round(weight / step[:, None]) + zero[:, None]
        back = (codes.clamp(dtype.qmin, dtype.qmax) - zero[:, None]) * step[:, None]
        error = (importance * (weight - back) ** 2).sum(1)
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, step, scale)
        zero_point = torch.where(better, zero, zero_point)
    return scale, zero_point
