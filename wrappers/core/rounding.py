"""What rounding does to the values at a point: how many become zero, and how many are cut off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wrappers.core.quantizers import Quantizer


@dataclass
class RoundingCounts:
    """Counts over all tensors that a point has quantised.

    Attributes:
        values: all of them.
        zero: those that are zero afterwards.
        underflow: those of them that were not zero before.
        saturated: those beyond what the type can represent under its scale, so cut off.
        nonfinite: those that were NaN or infinite before.
    """

    values: int = 0
    zero: int = 0
    underflow: int = 0
    saturated: int = 0
    nonfinite: int = 0

    def add(self, x: Tensor, result: Tensor, quantizer: Quantizer) -> None:
        """Count a tensor.

        Args:
            x: before rounding.
            result: after it.
            quantizer: what rounded it.
        """
        zero = result == 0
        counts = torch.stack([
            zero.sum(), (zero & (x != 0)).sum(), quantizer.saturated(x).sum(),
            torch.isfinite(x).logical_not().sum(),
        ]).tolist()  # fmt: skip
        self.values += x.numel()
        for name, count in zip(
            ("zero", "underflow", "saturated", "nonfinite"), counts, strict=True
        ):
            setattr(self, name, getattr(self, name) + count)

    def shares(self) -> dict[str, float]:
        """The number of values, and each of the others as a share of them."""
        shares = {name: count / self.values for name, count in vars(self).items()}
        return shares | {"values": self.values}
