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

from wrappers.dtypes import DType, QScheme, check_qscheme
from wrappers.errors import QParamsError, TensorError

SCALE_EPSILON = 1e-12

# Elements handled at a time: small enough to stay in a core's second-level cache, large enough
# that the four operator calls per chunk do not count (benchmarks/fake_quantize.py).
CHUNK = 1 << 17


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
    # The same numbers as Python ones, so that no call has to read them from a tensor.
    _scale: float = field(init=False, repr=False)
    _inverse: float = field(init=False, repr=False)
    _zero_point: int = field(init=False, repr=False)

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
            object.__setattr__(self, "_inverse", float(scale.reciprocal()))
            object.__setattr__(self, "_zero_point", int(zero_point))

    def fake_quantize(self, x: Tensor, *, owned: bool = False) -> Tensor:
        """`fake_quantize` with these parameters."""
        return fake_quantize(x, self, owned=owned)

    def state(self) -> dict[str, Any]:
        """Plain values and tensors that `wrappers.observers.quantizer_from_state` reads."""
        return {
            "kind": "affine",
            "scale": self.scale,
            "zero_point": self.zero_point,
            "dtype": str(self.dtype),
            "axis": self.axis,
        }

    def to(self, device: torch.device) -> AffineQParams:
        """The same parameters on `device`."""
        if self.scale.device == device:
            return self
        return AffineQParams(
            self.scale.to(device), self.zero_point.to(device), self.dtype, self.axis
        )


def affine_qparams(
    minimum: Tensor,
    maximum: Tensor,
    dtype: DType,
    qscheme: QScheme,
    *,
    axis: int | None = None,
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


def fake_quantize(x: Tensor, qparams: AffineQParams, *, owned: bool = False) -> Tensor:
    """Quantise and dequantise: `x` rounded to what the codes can represent.

    Bit for bit torch's own fake-quantise operators. Those are used where it matters that they
    are: with gradients, under torch.compile and torch.export, on accelerators, per channel.
    Elsewhere the same arithmetic runs chunk by chunk in cache.

    Args:
        x: floating point, any shape and strides.
        qparams: scale and zero point.
        owned: nobody else holds `x`: the result may be written into it.

    Returns:
        A tensor of the shape and dtype of `x`; `x` itself when it was overwritten.

    Raises:
        TensorError: `x` is not a floating-point tensor.
    """
    _check_floating(x)
    dtype = qparams.dtype
    if qparams.axis is not None:
        return torch.fake_quantize_per_channel_affine(
            x, qparams.scale, qparams.zero_point, qparams.axis, dtype.qmin, dtype.qmax
        )
    if not _eager_on_cpu(x):
        return torch.fake_quantize_per_tensor_affine(
            x, qparams._scale, qparams._zero_point, dtype.qmin, dtype.qmax
        )
    result = _fake_quantize_in_chunks(x.detach(), qparams, owned=owned)
    return x if owned and result.data_ptr() == x.data_ptr() else result


def _fake_quantize_in_chunks(x: Tensor, qparams: AffineQParams, *, owned: bool) -> Tensor:
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    source = x.permute(order)
    dense = source.is_contiguous()
    result = x if owned and dense else torch.empty_like(x)
    target = result.permute(order)
    if not target.is_contiguous():  # an expanded or overlapping source
        result = torch.empty(x.shape, dtype=x.dtype)
        source, target = x, result
    if x.numel() <= CHUNK:
        _fake_quantize_chunk(source, target, qparams)
    elif dense:
        chunks = zip(
            torch.split(source.view(-1), CHUNK), torch.split(target.view(-1), CHUNK), strict=True
        )
        for source_chunk, target_chunk in chunks:
            _fake_quantize_chunk(source_chunk, target_chunk, qparams)
    else:
        rows = max(1, CHUNK * source.shape[0] // x.numel())
        for source_chunk, target_chunk in zip(
            torch.split(source, rows), torch.split(target, rows), strict=True
        ):
            _fake_quantize_chunk(source_chunk, target_chunk, qparams)
    return result


def _fake_quantize_chunk(source: Tensor, target: Tensor, qparams: AffineQParams) -> None:
    """Fake-quantise `source` into `target`, which has its shape and may be it."""
    dtype, zero_point = qparams.dtype, qparams._zero_point
    # torch rounds in float32 (float64 for float64), whatever the dtype of the input.
    wide = source.dtype in (torch.float32, torch.float64)
    work = target if wide else source.to(torch.float32)
    torch.mul(source if wide else work, qparams._inverse, out=work)
    # The zero point is an integer: to add it after rounding and take it off again after clamping
    # is to clamp to shifted bounds.
    work.round_().clamp_(dtype.qmin - zero_point, dtype.qmax - zero_point)
    # 0 + scale * code rather than scale * code: a code of -0.0 must come back as 0.0.
    torch.add(_ZERO, work, alpha=qparams._scale, out=work)
    # NaN went through all of the above; torch's operator makes a code of it.
    if math.isnan(work.sum().item()):
        nan = torch.full((1,), math.nan)
        value = torch.fake_quantize_per_tensor_affine(
            nan, qparams._scale, zero_point, dtype.qmin, dtype.qmax
        )
        work.masked_fill_(torch.isnan(work), value.item())
    if not wide:
        target.copy_(work)


_ZERO = torch.zeros(())


def _eager_on_cpu(x: Tensor) -> bool:
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and not (x.requires_grad and torch.is_grad_enabled())
        and not torch.compiler.is_compiling()
    )


def _check_floating(x: Tensor) -> None:
    if not x.is_floating_point():
        raise TensorError(f"only floating-point tensors are quantised, found {x.dtype}")


def _broadcast(x: Tensor, qparams: AffineQParams) -> tuple[Tensor, Tensor]:
    """Scale and zero point shaped so that they broadcast against `x`."""
    axis = qparams.axis
    if axis is None:
        return qparams.scale, qparams.zero_point
    shape = [1] * x.dim()
    shape[axis] = -1
    return qparams.scale.view(shape), qparams.zero_point.view(shape)
