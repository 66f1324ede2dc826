"""Affine quantisation: scale and zero point, quantise, dequantise, fake-quantise.

    code = clamp(round(x * (1 / scale)) + zero_point, qmin, qmax)       round half to even
    x'   = (code - zero_point) * scale

Everything here is a pure function of tensors. `fake_quantize` gives bit for bit what
`torch.fake_quantize_per_tensor_affine` gives, several times faster on a CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wrappers.errors import QParamsError, TensorError
from wrappers.numerics.dtypes import DType, QScheme, check_qscheme

SCALE_EPSILON = 1e-12

# Elements handled at a time (2 MiB of float32): few enough to stay in cache from one pass to the
# next, enough that the calls of the passes do not count (benchmarks/fake_quantize.py).
CHUNK = 1 << 19

# Below this many elements torch's one call costs less than our five.
FEW = 1 << 10


@dataclass(frozen=True, eq=False)
class AffineQParams:
    """Scale and zero point of one tensor.

    Args:
        scale: float32, 0-d, or [channels] with an `axis`.
        zero_point: int32, of the same shape.
        dtype: the integer type of the codes.
        axis: the dimension of the quantised tensor that `scale` runs along, None for one scale.

    Raises:
        QParamsError: shapes do not agree, a scale is not positive and finite in float32, or a
            zero point lies outside the codes of `dtype`.
    """

    scale: Tensor
    zero_point: Tensor
    dtype: DType
    axis: int | None = None
    # What a call with one scale needs, in the form in which the call costs least: an operator
    # takes a 0-d tensor faster than a Python number, but where it expects the latter.
    _scale: float = field(init=False, repr=False)
    _zero_point: int = field(init=False, repr=False)
    _inverse: Tensor = field(init=False, repr=False)
    _low: int = field(init=False, repr=False)
    _high: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        scale = self.scale.detach().to(torch.float32)
        zero_point = self.zero_point.detach().to(torch.int32)
        dimensions = 0 if self.axis is None else 1
        if scale.shape != zero_point.shape or scale.dim() != dimensions or scale.numel() == 0:
            raise QParamsError(
                f"scale has shape {tuple(scale.shape)} and zero_point {tuple(zero_point.shape)}: "
                + ("expected [channels] for both" if dimensions else "expected 0-d for both")
            )
        if not (torch.isfinite(scale) & (scale > 0)).all():
            raise QParamsError(f"a scale must be positive and finite in float32, found {scale}")
        if (zero_point < self.dtype.qmin).any() or (zero_point > self.dtype.qmax).any():
            raise QParamsError(
                f"a zero point of {self.dtype} lies in [{self.dtype.qmin}, {self.dtype.qmax}], "
                f"found {zero_point}"
            )
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)
        if self.axis is None:
            object.__setattr__(self, "_scale", float(scale))
            object.__setattr__(self, "_zero_point", int(zero_point))
            object.__setattr__(self, "_inverse", scale.cpu().reciprocal())
            object.__setattr__(self, "_low", self.dtype.qmin - self._zero_point)
            object.__setattr__(self, "_high", self.dtype.qmax - self._zero_point)

    def fake_quantize(self, x: Tensor, *, may_overwrite: bool = False) -> Tensor:
        """`fake_quantize` with these parameters."""
        return fake_quantize(x, self, may_overwrite=may_overwrite)

    def saturated(self, x: Tensor) -> Tensor:
        """Where `x` lies beyond the codes, bool, of the shape of `x`."""
        scale, zero_point = _broadcast(x, self)
        codes = torch.round(x.detach().to(torch.float32) * scale.reciprocal()) + zero_point
        return (codes < self.dtype.qmin) | (codes > self.dtype.qmax)

    def state(self) -> dict[str, Any]:
        """Plain JSON values that `wrappers.core.quantizers.quantizer_from_state` reads."""
        return {
            "kind": "affine", "scale": self.scale.tolist(), "zero_point": self.zero_point.tolist(),
            "dtype": str(self.dtype), "axis": self.axis,
        }  # fmt: skip

    def to(self, device: torch.device) -> AffineQParams:
        """The same parameters on `device`."""
        if self.scale.device == device:
            return self
        return AffineQParams(
            self.scale.to(device), self.zero_point.to(device), self.dtype, self.axis
        )


def affine_qparams(
    minimum: Tensor, maximum: Tensor, dtype: DType, qscheme: QScheme, *, axis: int | None = None
) -> AffineQParams:
    """Scale and zero point for values in [minimum, maximum].

    Asymmetric: the range is widened to contain 0; scale = range / (qmax - qmin), zero_point =
    round(qmin - minimum / scale) clamped to the codes. Symmetric: scale = max abs / qmax,
    zero_point = 0. A constant c gets scale abs(c), so that it is represented exactly. No scale
    is less than 1e-12.

    Args:
        minimum: the least value, 0-d, or [channels] for a per-channel scheme.
        maximum: the greatest, of the same shape.
        dtype: the integer type of the codes.
        qscheme: the scheme.
        axis: the dimension of the channels; for per-channel schemes only.

    Raises:
        ConfigError: an unsigned type with a symmetric scheme.
        QParamsError: a bound is not finite, minimum > maximum, or shapes do not fit the scheme.
    """
    check_qscheme(dtype, qscheme)
    if qscheme.per_channel != (axis is not None):
        raise QParamsError(f"{qscheme.value} with axis {axis}: give an axis to per-channel only")
    # In float64: the range of float32 values may overflow float32.
    low, high = minimum.detach().to(torch.float64), maximum.detach().to(torch.float64)
    if not (torch.isfinite(low) & torch.isfinite(high) & (low <= high)).all():
        raise QParamsError(f"a range must be finite and in order, found [{minimum}, {maximum}]")
    constant = low == high
    if qscheme.symmetric:
        scale = torch.maximum(low.abs(), high.abs()) / dtype.qmax
    else:
        scale = (high.clamp(min=0) - low.clamp(max=0)) / (dtype.qmax - dtype.qmin)
    scale = torch.where(constant, low.abs(), scale).clamp(min=SCALE_EPSILON)
    scale = scale.to(torch.float32)
    if qscheme.symmetric:
        zero_point = torch.zeros_like(low)
    else:
        # A constant takes one step from zero, so any zero point with room for it would do; the
        # formula gives one: qmin for a positive constant, qmin + 1 for a negative one.
        zero_point = torch.round(dtype.qmin - low.clamp(max=0) / scale.to(torch.float64))
        zero_point = zero_point.clamp(dtype.qmin, dtype.qmax)
    return AffineQParams(scale, zero_point.to(torch.int32), dtype, axis)


def quantize(x: Tensor, qparams: AffineQParams) -> Tensor:
    """The codes of a float tensor, int32, of the shape of `x`.

    Raises:
        TensorError: `x` is not a floating-point tensor, or holds NaN, which has no code.
    """
    _check_floating(x)
    if torch.isnan(x).any():
        raise TensorError("the tensor holds NaN, which has no code")
    scale, zero_point = _broadcast(x, qparams)
    codes = torch.round(x.detach().to(torch.float32) * scale.reciprocal()) + zero_point
    return codes.clamp(qparams.dtype.qmin, qparams.dtype.qmax).to(torch.int32)


def dequantize(codes: Tensor, qparams: AffineQParams) -> Tensor:
    """The float32 values of codes, of the shape of `codes`."""
    scale, zero_point = _broadcast(codes, qparams)
    return (codes - zero_point).to(torch.float32) * scale


def fake_quantize(x: Tensor, qparams: AffineQParams, *, may_overwrite: bool = False) -> Tensor:
    """Quantise and dequantise: `x` rounded to what the codes can represent.

    Bit for bit torch's own fake-quantise operators. Those are used where it matters that they
    are: with gradients, under torch.compile and torch.export, on accelerators, per channel, for
    float64 and for few elements. Elsewhere the same arithmetic runs chunk by chunk in cache.

    Args:
        x: floating point, any shape and strides.
        qparams: scale and zero point.
        may_overwrite: nobody else holds `x`: the result may be written into it.

    Returns:
        A tensor of the shape and dtype of `x`; `x` itself when it was overwritten.

    Raises:
        TensorError: `x` is not a floating-point tensor.
        QParamsError: `x` has another number of channels.
    """
    dtype = qparams.dtype
    if qparams.axis is not None:
        _check_floating(x)
        _check_channels(x, qparams)
        return torch.fake_quantize_per_channel_affine(
            x, qparams.scale, qparams.zero_point, qparams.axis, dtype.qmin, dtype.qmax
        )
    if not _is_ours(x):
        _check_floating(x)
        return torch.fake_quantize_per_tensor_affine(
            x, qparams._scale, qparams._zero_point, dtype.qmin, dtype.qmax
        )
    if x.numel() > CHUNK:
        return _fake_quantize_in_chunks(x, qparams, may_overwrite=may_overwrite)
    if x.dtype is not torch.float32:
        return _round_to_codes(x.to(torch.float32).mul_(qparams._inverse), qparams).to(x.dtype)
    # An expanded tensor has several elements in one place: it cannot be written into.
    scaled = (
        x.mul_(qparams._inverse) if may_overwrite and x.is_contiguous() else x * qparams._inverse
    )
    return _round_to_codes(scaled, qparams)


def _round_to_codes(work: Tensor, qparams: AffineQParams) -> Tensor:
    """The second half of `fake_quantize`, in place, of float32 values divided by the scale."""
    # The zero point is an integer: to add it after rounding and take it off again after clamping
    # is to clamp to shifted bounds.
    work.round_().clamp_(qparams._low, qparams._high)
    # 0 + scale * code rather than scale * code: a code of -0.0 must come back as 0.0.
    torch.add(_ZERO, work, alpha=qparams._scale, out=work)
    # NaN went through all of the above; torch's operator makes a code of it.
    if math.isnan(work.sum().item()):
        dtype = qparams.dtype
        of_nan = torch.fake_quantize_per_tensor_affine(
            torch.full((1,), math.nan), qparams._scale, qparams._zero_point, dtype.qmin, dtype.qmax
        )
        work.masked_fill_(torch.isnan(work), of_nan.item())
    return work


_ZERO = torch.zeros(())


def _fake_quantize_in_chunks(x: Tensor, qparams: AffineQParams, *, may_overwrite: bool) -> Tensor:
    # Elements in the order of memory, so that a transposed tensor is walked as it lies.
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    source = x.permute(order)
    flat = source.is_contiguous()
    if may_overwrite and flat:
        result, target = x, source
    else:
        target = torch.empty(source.shape, dtype=x.dtype)
        result = target.permute([order.index(dimension) for dimension in range(x.dim())])
    if flat:
        pieces = zip(source.view(-1).split(CHUNK), target.view(-1).split(CHUNK), strict=True)
    else:
        rows = max(1, CHUNK * len(source) // x.numel())
        pieces = zip(source.split(rows), target.split(rows), strict=True)
    for source_piece, target_piece in pieces:
        if x.dtype is torch.float32:
            torch.mul(source_piece, qparams._inverse, out=target_piece)
            _round_to_codes(target_piece, qparams)
        else:
            scaled = source_piece.to(torch.float32).mul_(qparams._inverse)
            target_piece.copy_(_round_to_codes(scaled, qparams))
    return result


def _is_ours(x: Tensor) -> bool:
    """Not small, on the CPU, rounded in float32, and no gradient, graph or subclass watches it."""
    return (
        x.numel() >= FEW
        and x.dtype in _ROUNDED_IN_FLOAT32
        and x.is_cpu
        and type(x) in (Tensor, nn.Parameter)
        and not (x.requires_grad and torch.is_grad_enabled())
        and not torch.compiler.is_compiling()
    )


# torch multiplies float64 with the inverse in float64 and with the scale in float32; it does so.
_ROUNDED_IN_FLOAT32 = (torch.float32, torch.bfloat16, torch.float16)


def _check_floating(x: Tensor) -> None:
    if not x.is_floating_point():
        raise TensorError(f"only floating-point tensors are quantised, found {x.dtype}")


def _check_channels(x: Tensor, qparams: AffineQParams) -> None:
    axis, channels = qparams.axis, qparams.scale.numel()
    if axis is not None and not (-x.dim() <= axis < x.dim() and x.shape[axis] == channels):
        raise QParamsError(
            f"{channels} scales along dimension {axis} do not fit a tensor of shape "
            f"{tuple(x.shape)}"
        )


def _broadcast(x: Tensor, qparams: AffineQParams) -> tuple[Tensor, Tensor]:
    """Scale and zero point shaped so that they broadcast against `x`."""
    axis = qparams.axis
    if axis is None:
        return qparams.scale, qparams.zero_point
    _check_channels(x, qparams)
    shape = [1] * x.dim()
    shape[axis] = -1
    return qparams.scale.view(shape), qparams.zero_point.view(shape)
