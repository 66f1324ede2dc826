"""Values and their distances without loss, as far as float64 holds them."""

import torch

_WIDE_INTEGERS = (torch.int64, torch.uint64)


def is_inexact(dtype: torch.dtype) -> bool:
    """Whether values of a dtype are rounded."""
    return dtype.is_floating_point or dtype.is_complex


def fits_float32(dtype: torch.dtype) -> bool:
    """Whether float32 holds all values of a dtype that models compute in."""
    return dtype in (torch.float32, torch.bfloat16, torch.float16)


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """In float64, or complex128."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.to(torch.float64)


def distance_of(r: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """|r - c| in float64, and whether r and c are unequal, element by element."""
    wide = r.dtype in _WIDE_INTEGERS or c.dtype in _WIDE_INTEGERS
    if wide and not (is_inexact(r.dtype) or is_inexact(c.dtype)):
        (r_high, r_low), (c_high, c_low) = _halves(r), _halves(c)
        high, low = r_high - c_high, r_low - c_low
        return (high.double() * 2.0**32 + low.double()).abs(), (high != 0) | (low != 0)
    r, c = to_float64(r), to_float64(c)
    return (r - c).abs(), r != c


def _halves(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers as high and low 32 bits, so that a difference cannot overflow."""
    low_bits = 0xFFFF_FFFF
    if tensor.dtype == torch.uint64:
        bits = tensor.view(torch.int64)
        return (bits >> 32) & low_bits, bits & low_bits
    wide = tensor.to(torch.int64)
    return wide >> 32, wide & low_bits
