"""Rounding of cached keys and values: old tokens as integers, the latest as they are.

    quantizer = WindowedQuantizer(bits=4, along="tokens")
    quantizer.fake_quantize(keys)        # [B, kv_heads, tokens, head_dim]

After KIVI (Liu et al., 2024): tokens are rounded group by group, once `residual` others have come
after the group. Of keys the tokens of a group share a scale, channel by channel (`along` "tokens"),
since some channels are far larger than others; of values the channels of a token ("channels").

    code = round((x - minimum) / scale), from 0 to 2 ** bits - 1
    x'   = code * scale + minimum

The minimum and the scale are kept in float16. Which tokens are old depends on nothing but how many
there are, so a token that is rounded once gets the same number ever after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from torch import Tensor

from wrappers.errors import ConfigError, TensorError

WINDOWED_BITS = (2, 4, 8)  # of which a byte holds a whole number

Length = TypeVar("Length", int, Tensor)
Along = Literal["tokens", "channels"]
_HALF = torch.finfo(torch.float16)
_LEAST_SCALE = _HALF.smallest_normal * _HALF.eps


@dataclass(frozen=True)
class Codes:
    """Groups of tokens as integers.

    Attributes:
        packed: codes side by side in bytes, uint8 [B, kv_heads, groups, group, bytes].
        scale: float16, [B, kv_heads, groups, 1, head_dim] or [B, kv_heads, groups, group, 1].
        minimum: likewise.
    """

    packed: Tensor
    scale: Tensor
    minimum: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All three."""
        return self.packed, self.scale, self.minimum


@dataclass(frozen=True)
class WindowedQuantizer:
    """How cached keys or values are rounded.

    Args:
        bits: of a code: 2, 4 or 8.
        along: what shares a scale: "tokens" of a group, or "channels" of a token.
        group: how many tokens are rounded together.
        residual: how many tokens stay as they are, at least.

    Raises:
        ConfigError: any of these cannot be.
    """

    bits: int = 8
    along: Along = "tokens"
    group: int = 32
    residual: int = 32

    def __post_init__(self) -> None:
        if self.bits not in WINDOWED_BITS:
            raise ConfigError(f"bits must be one of {WINDOWED_BITS}, not {self.bits!r}")
        if self.along not in get_args(Along):
            raise ConfigError(f"along must be 'tokens' or 'channels', not {self.along!r}")
        for name, least in (("group", 1), ("residual", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} must be an integer of at least {least}, not {value!r}")

    def rounded_length(self, length: Length) -> Length:
        """How many of so many tokens are rounded, the oldest; a number, or integers in a tensor."""
        groups = (length - self.residual) // self.group
        if isinstance(groups, Tensor):
            return groups.clamp(min=0) * self.group
        return max(groups, 0) * self.group

    def fake_quantize(self, x: Tensor, *, may_overwrite: bool = False) -> Tensor:
        """Cached states [..., tokens, head_dim], of which the old ones are rounded. No gradient
        passes through them.

        Raises:
            TensorError: `x` is not floating point, or has fewer than two dimensions.
        """
        if not x.is_floating_point() or x.dim() < 2:
            raise TensorError(
                f"expected floats [..., tokens, head_dim], found {x.dtype} {list(x.shape)}"
            )
        length = self.rounded_length(x.shape[-2])
        if not length:
            return x
        old = self.decode(self.encode(x[..., :length, :]), x.shape[-1], x.dtype)
        return torch.cat((old, x[..., length:, :]), dim=-2)

    def encode(self, x: Tensor) -> Codes:
        """Whole groups of tokens, [..., tokens, head_dim]."""
        groups = x.detach().to(torch.float32).unflatten(-2, (-1, self.group))
        shared = -2 if self.along == "tokens" else -1
        low, high = groups.aminmax(dim=shared, keepdim=True)
        minimum = low.clamp(_HALF.min, _HALF.max).to(torch.float16)
        levels = 2**self.bits - 1
        scale = (high - minimum.to(torch.float32)) / levels
        scale = scale.clamp(_LEAST_SCALE, _HALF.max).to(torch.float16)
        codes = torch.round((groups - minimum.to(torch.float32)) / scale.to(torch.float32))
        return Codes(_packed(codes.clamp(0, levels).to(torch.uint8), self.bits), scale, minimum)

    def decode(self, codes: Codes, width: int, dtype: torch.dtype) -> Tensor:
        """The states of codes, [..., tokens, head_dim].

        Args:
            width: head_dim.
            dtype: of the states.
        """
        values = _unpacked(codes.packed, self.bits)[..., :width].to(torch.float32)
        values = values * codes.scale.to(torch.float32) + codes.minimum.to(torch.float32)
        return values.flatten(-3, -2).to(dtype)

    def saturated(self, x: Tensor) -> Tensor:
        """Nowhere: a range comes from the values themselves."""
        return torch.zeros_like(x, dtype=torch.bool)

    def state(self) -> dict[str, Any]:
        """Plain JSON values that `wrappers.core.quantizers.quantizer_from_state` reads."""
        return {"kind": "windowed", **vars(self)}


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Codes of one byte each, [..., width], side by side in as few bytes as hold them."""
    in_byte = 8 // bits
    parts = F.pad(codes, (0, -codes.shape[-1] % in_byte)).unflatten(-1, (-1, in_byte))
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    return torch.sum(parts << shifts, dim=-1, dtype=torch.uint8)


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return torch.bitwise_and(packed.unsqueeze(-1) >> shifts, 2**bits - 1).flatten(-2)
