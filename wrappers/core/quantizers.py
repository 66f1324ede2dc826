"""What a frozen observer leaves behind: it fake-quantises, and is saved with the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from wrappers.errors import QParamsError
from wrappers.numerics.affine import AffineQParams
from wrappers.numerics.dtypes import FLOAT_TYPES, DType
from wrappers.numerics.floats import FloatQParams
from wrappers.numerics.grouped import GroupedQParams
from wrappers.numerics.microscaling import MXQuantizer
from wrappers.numerics.windowed import WindowedQuantizer


class Quantizer(Protocol):
    """What a frozen observer leaves behind."""

    def fake_quantize(self, x: Tensor, *, may_overwrite: bool = False) -> Tensor:
        """`x` rounded to what the codes can represent; written into `x` if that is allowed."""
        ...

    def saturated(self, x: Tensor) -> Tensor:
        """Where `x` lies beyond what can be represented, bool, of the shape of `x`."""
        ...

    def state(self) -> dict[str, Any]:
        """Plain JSON values that `quantizer_from_state` reads."""
        ...


ScaledQuantizer = AffineQParams | GroupedQParams | FloatQParams
"""The quantisers that hold scales."""


@dataclass(frozen=True)
class IdentityQuantizer:
    """Changes nothing."""

    def fake_quantize(self, x: Tensor, *, may_overwrite: bool = False) -> Tensor:
        """`x` itself."""
        return x

    def saturated(self, x: Tensor) -> Tensor:
        """Nowhere."""
        return torch.zeros_like(x, dtype=torch.bool)

    def state(self) -> dict[str, Any]:
        """Its kind; there is nothing else."""
        return {"kind": "identity"}


def is_monotone(quantizer: Quantizer | None) -> bool:
    """Whether a quantiser maps no smaller value to a larger one: where values share a scale that
    comes from them, one moves the others."""
    if isinstance(quantizer, FloatQParams):
        return quantizer.dtype.block is None
    return not isinstance(quantizer, MXQuantizer)


def quantizer_from_state(state: Mapping[str, Any]) -> Quantizer:
    """The quantiser whose `state()` this is.

    Raises:
        QParamsError: it is of no known kind.
    """
    kind = state.get("kind")
    if kind == "affine":
        return AffineQParams(
            torch.tensor(state["scale"]),
            torch.tensor(state["zero_point"]),
            DType.parse(state["dtype"]),
            state["axis"],
        )
    if kind == "grouped":
        return GroupedQParams(
            torch.tensor(state["scale"]),
            torch.tensor(state["zero_point"]),
            DType.parse(state["dtype"]),
            torch.tensor(state["columns"]),
        )
    if kind == "float":
        dtype = FLOAT_TYPES[state["dtype"]]
        return FloatQParams(torch.tensor(state["scale"]), dtype, state["axis"])
    if kind == "windowed":
        fields = ("bits", "along", "group", "residual")
        return WindowedQuantizer(*(state[name] for name in fields))
    if kind == "mx":
        return MXQuantizer(state["element"], state["block_size"], state["axis"])
    if kind == "identity":
        return IdentityQuantizer()
    raise QParamsError(
        f"a quantiser of the unknown kind {kind!r}: expected affine, grouped, float, mx, "
        "windowed or identity"
    )
