"""Types by name, integers of few bits and floats, and the schemes that map tensors onto them.

>>> DType.parse("uint8").qmin, DType.parse("uint8").qmax
(0, 255)
>>> default_qscheme(DType.parse("int16"))
<QScheme.PER_TENSOR_SYMMETRIC: 'per_tensor_symmetric'>
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from wrappers.errors import ConfigError

MIN_BITS = 2
MAX_BITS = 16

MX_TYPES = {
    "mxint8": "int8", "mxfp8_e4m3": "fp8_e4m3", "mxfp8_e5m2": "fp8_e5m2",
    "mxfp6_e2m3": "fp6_e2m3", "mxfp6_e3m2": "fp6_e3m2", "mxfp4": "fp4_e2m1",
}  # fmt: skip
"""Names of the microscaling types, and the element format of each."""


@dataclass(frozen=True)
class DType:
    """A signed or unsigned integer of 2 to 16 bits.

    Raises:
        ConfigError: `bits` is out of that range or not an integer.
    """

    bits: int
    signed: bool

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not MIN_BITS <= self.bits <= MAX_BITS:
            raise ConfigError(
                f"an integer type has {MIN_BITS} to {MAX_BITS} bits, not {self.bits!r}"
            )

    @classmethod
    def parse(cls, name: str | DType) -> DType:
        """The type that `name` spells: `uint4`, `int16`, ... A `DType` is given back as it is."""
        if isinstance(name, DType):
            return name
        match = re.fullmatch(r"(u?)int([0-9]+)", name) if isinstance(name, str) else None
        if match is None:
            raise ConfigError(
                f"unknown integer type {name!r}: write 'int' or 'uint' and {MIN_BITS} to "
                f"{MAX_BITS} bits, such as 'uint8' or 'int16'; the other types are "
                + ", ".join([*FLOAT_TYPES, *MX_TYPES])
            )
        return cls(bits=int(match[2]), signed=not match[1])

    @property
    def qmin(self) -> int:
        """The smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    def __str__(self) -> str:
        return f"{'' if self.signed else 'u'}int{self.bits}"


@dataclass(frozen=True)
class FloatType:
    """Floats of few bits under a scale of float32.

    Args:
        name: as it is written in a config.
        largest: the largest number; a scale is the largest magnitude of a tensor over it.
        block: how many values share a further scale; None for none.
    """

    name: str
    largest: float
    block: int | None = None

    def __str__(self) -> str:
        return self.name


FP8_E4M3 = FloatType("fp8_e4m3", 448.0)
FP8_E5M2 = FloatType("fp8_e5m2", 57344.0)
# Elements up to 6 under scales of blocks up to 448.
NVFP4 = FloatType("nvfp4", 6.0 * 448.0, block=16)
FLOAT_TYPES = {str(known): known for known in (FP8_E4M3, FP8_E5M2, NVFP4)}

NumberType = DType | FloatType


def parse_type(name: str | NumberType) -> NumberType:
    """The type that `name` spells: `uint4`, `fp8_e4m3`, `nvfp4`, ... A type is given back as it is.

    Raises:
        ConfigError: there is no such type.
    """
    if isinstance(name, FloatType):
        return name
    if isinstance(name, str) and name in FLOAT_TYPES:
        return FLOAT_TYPES[name]
    return DType.parse(name)


UINT4 = DType(bits=4, signed=False)
INT4 = DType(bits=4, signed=True)
UINT8 = DType(bits=8, signed=False)
INT8 = DType(bits=8, signed=True)
INT16 = DType(bits=16, signed=True)


class QScheme(Enum):
    """How many scales a tensor has, and whether its zero point is free."""

    PER_TENSOR_ASYMMETRIC = "per_tensor_asymmetric"
    PER_TENSOR_SYMMETRIC = "per_tensor_symmetric"
    PER_CHANNEL_ASYMMETRIC = "per_channel_asymmetric"
    PER_CHANNEL_SYMMETRIC = "per_channel_symmetric"

    @classmethod
    def parse(cls, name: str | QScheme) -> QScheme:
        """The scheme that `name` spells. A `QScheme` is given back as it is."""
        try:
            return cls(name)
        except ValueError:
            known = ", ".join(repr(scheme.value) for scheme in cls)
            raise ConfigError(f"unknown qscheme {name!r}: choose one of {known}") from None

    @property
    def per_channel(self) -> bool:
        """One scale per channel instead of one for the whole tensor."""
        return self in (QScheme.PER_CHANNEL_ASYMMETRIC, QScheme.PER_CHANNEL_SYMMETRIC)

    @property
    def per_tensor(self) -> QScheme:
        """The scheme of the same symmetry with one scale for the whole tensor."""
        return QScheme.PER_TENSOR_SYMMETRIC if self.symmetric else QScheme.PER_TENSOR_ASYMMETRIC

    @property
    def symmetric(self) -> bool:
        """The zero point is 0."""
        return self in (QScheme.PER_TENSOR_SYMMETRIC, QScheme.PER_CHANNEL_SYMMETRIC)


def default_qscheme(dtype: NumberType, *, channels: bool = False) -> QScheme:
    """The scheme of a type when none is asked for.

    Args:
        dtype: the type.
        channels: the tensor is a weight with an axis of channels.
    """
    if isinstance(dtype, FloatType):
        one_scale = not channels or dtype.block is not None
        return QScheme.PER_TENSOR_SYMMETRIC if one_scale else QScheme.PER_CHANNEL_SYMMETRIC
    if channels:
        return QScheme.PER_CHANNEL_ASYMMETRIC
    return QScheme.PER_TENSOR_SYMMETRIC if dtype.signed else QScheme.PER_TENSOR_ASYMMETRIC


def check_qscheme(dtype: NumberType, qscheme: QScheme) -> None:
    """Refuse a scheme that a type cannot have.

    Raises:
        ConfigError: `dtype` is unsigned and `qscheme` symmetric: half of the codes would never
            be used, and no negative value could be written; floats with a zero point; or blocks
            with scales by channel.
    """
    if isinstance(dtype, FloatType):
        if not qscheme.symmetric or (dtype.block is not None and qscheme.per_channel):
            others = "" if dtype.block is not None else " or per_channel_symmetric"
            raise ConfigError(
                f"{dtype} cannot be {qscheme.value}: use per_tensor_symmetric{others}"
            )
        return
    if qscheme.symmetric and not dtype.signed:
        raise ConfigError(
            f"{dtype} cannot be {qscheme.value}: a symmetric scheme needs a signed type; "
            f"use int{dtype.bits}, or an asymmetric scheme"
        )
