"""What is learned of a quantised module: which way each weight is rounded, and how wide the range
of each activation is. Both stand in for the quantiser of a point while gradients are taken.

    code = low + h(v),  h(v) = clamp(1.2 sigmoid(v) - 0.1, 0, 1)      (Nagel et al. 2020, AdaRound)
    scale = first scale * exp(t)                                      (Esser et al. 2020, LSQ)
"""

from __future__ import annotations

import torch
from torch import Tensor

from wrappers.core.point import QuantPoint
from wrappers.numerics.affine import AffineQParams
from wrappers.numerics.dtypes import DType
from wrappers.numerics.grouped import GroupedQParams

LOW, HIGH = -0.1, 1.1  # between which the sigmoid is stretched, so that 0 and 1 are reached
COARSE = 8  # bits of activations whose rounding is seen while weights learn
SURE = 0.8  # how near the codes of a weight that is rounded already begin


class LearnedRounding:
    """A weight whose codes lie between two neighbours each.

    Args:
        weight: that is to be rounded, [outputs, inputs].
        grid: scales and zero points.
        start: the codes of a weight that is rounded already, of its shape: learning begins near
            them, and each may give way to the next one on the side of `weight`. None: it begins
            at `weight` itself, between the codes below and above.

    Attributes:
        v: what is learned, float32, of the shape of the weight.
        hard: give the rounded weight.
    """

    def __init__(
        self, weight: Tensor, grid: AffineQParams | GroupedQParams, start: Tensor | None = None
    ) -> None:
        self.scale, self.zero_point = over_columns(grid)
        dtype = grid.dtype
        position = weight.detach().to(torch.float64) / self.scale + self.zero_point
        if start is None:
            low = torch.floor(position).clamp(dtype.qmin, dtype.qmax - 1)
            share = (position - low).clamp(0, 1)
        else:
            up = ((position >= start) & (start < dtype.qmax)) | (start == dtype.qmin)
            low = torch.where(up, start, start - 1)
            share = torch.where(up, 1 - SURE, SURE)
        self.low = low.to(torch.float32)
        self.v = torch.logit((share.to(torch.float32) - LOW) / (HIGH - LOW)).requires_grad_()
        self.hard = False

    def share(self) -> Tensor:
        """How far each code is from the lower to the upper one, from 0 to 1."""
        if self.hard:
            return (self.v.detach() >= 0).to(self.v.dtype)
        return (torch.sigmoid(self.v) * (HIGH - LOW) + LOW).clamp(0, 1)

    def weight(self) -> Tensor:
        """The weight, float32, rounded as far as it is by now."""
        return (self.low + self.share() - self.zero_point) * self.scale

    def undecided(self, power: float) -> Tensor:
        """The mean of 1 - (2 h - 1)^power: 0 where each weight is rounded, 0-d."""
        return 1 - (2 * self.share() - 1).abs().pow(power).mean()

    def fake_quantize(self, x: Tensor, *, may_overwrite: bool = False) -> Tensor:
        """`weight`, in the dtype of `x`."""
        return self.weight().to(x.dtype)


class LearnedRange:
    """A range of an activation with one scale, which is learned; its zero point stays.

    Attributes:
        t: what is learned, the logarithm of what the scale is multiplied by, 0-d.
    """

    def __init__(self, qparams: AffineQParams) -> None:
        self.qparams = qparams
        self.t = torch.zeros_like(qparams.scale).requires_grad_()

    def fake_quantize(self, x: Tensor, *, may_overwrite: bool = False) -> Tensor:
        """`x` rounded; a gradient goes through the rounding as if it were none."""
        dtype, zero_point = self.qparams.dtype, self.qparams.zero_point
        scale = self.qparams.scale * torch.exp(self.t)
        inside = (x / scale).clamp(dtype.qmin - zero_point, dtype.qmax - zero_point)
        return (inside + (inside.round() - inside).detach()) * scale

    def learned(self) -> AffineQParams:
        """The range as it is by now."""
        scale = self.qparams.scale * torch.exp(self.t.detach())
        return AffineQParams(scale, self.qparams.zero_point, self.qparams.dtype)


def over_columns(grid: AffineQParams | GroupedQParams) -> tuple[Tensor, Tensor]:
    """Scales and zero points that broadcast against a weight [outputs, inputs]."""
    if isinstance(grid, GroupedQParams):
        return grid.scale[:, grid.columns], grid.zero_point[:, grid.columns]
    if grid.axis is None:
        return grid.scale, grid.zero_point
    return grid.scale[:, None], grid.zero_point[:, None]


def codes_of(rounded: Tensor, grid: AffineQParams | GroupedQParams) -> Tensor:
    """The codes of a weight that is rounded already, as float64."""
    scale, zero_point = over_columns(grid)
    codes = torch.round(rounded.detach().to(torch.float64) / scale) + zero_point
    return codes.clamp(grid.dtype.qmin, grid.dtype.qmax)


def is_fine(point: QuantPoint) -> bool:
    """Whether a point is of activations with so many bits that learning need not see it."""
    dtype = point.observer.dtype
    return point.role == "activation" and isinstance(dtype, DType) and dtype.bits > COARSE


def has_learnable_range(point: QuantPoint) -> bool:
    """Whether a range is one of activations with few bits and one scale; that of a mask has to
    hold the mask."""
    qparams = point.qparams
    return (
        point.role == "activation"
        and not is_fine(point)
        and qparams is not None
        and qparams.axis is None
        and "mask" not in point.name
    )
