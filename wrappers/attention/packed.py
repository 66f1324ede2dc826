"""Keys and values as a runtime keeps them: old tokens packed, the latest as floats.

    states = PackedStates(WindowedQuantizer(bits=4, along="tokens"), like)
    states.append(new, counts)      # [B, kv_heads, query, head_dim], and how many each row takes
    past = states.read(capacity)    # [B, kv_heads, capacity, head_dim]

A token is rounded once, when it leaves the window; what is read of it is always the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from wrappers.numerics.windowed import Codes, WindowedQuantizer


class PackedStates:
    """The keys or the values of one layer, of sequences that may be of different lengths.

    Args:
        quantizer: how old tokens are rounded.
        like: gives batch, heads, head_dim, dtype and device, [B, kv_heads, any, head_dim].

    Attributes:
        lengths: tokens of each sequence, int64 [B].
    """

    def __init__(self, quantizer: WindowedQuantizer, like: Tensor) -> None:
        self.quantizer = quantizer
        batch = like.shape[0]
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=like.device)
        self._rounded = self.lengths  # tokens that are codes, whole groups
        # Those after them, from index 0 on in each row: [B, kv_heads, most of any row, head_dim].
        self._window = like.new_zeros(batch, like.shape[1], 0, like.shape[3])
        self._codes: Codes | None = None

    def append(self, states: Tensor, counts: Tensor) -> None:
        """Takes new tokens, and rounds those that leave the window.

        Args:
            states: [B, kv_heads, query, head_dim].
            counts: how many of them each sequence takes, from the first on, int64 [B].
        """
        held = self.lengths - self._rounded
        query = states.shape[2]
        window = functional.pad(self._window, (0, 0, 0, query))
        places = torch.arange(query, device=counts.device)
        rows, new = (places < counts[:, None]).nonzero(as_tuple=True)
        window[rows, :, held[rows] + new] = states[rows, :, new]
        self.lengths = self.lengths + counts
        leaving = self.quantizer.rounded_length(self.lengths) - self._rounded
        for start in range(0, int(leaving.max()), self.quantizer.group):
            rows = (leaving > start).nonzero().squeeze(-1)
            codes = self.quantizer.encode(window[rows, :, start : start + self.quantizer.group])
            self._write(codes, rows, (self._rounded[rows] + start) // self.quantizer.group)
        self._rounded = self._rounded + leaving
        self._window = self._from(window, leaving, int((self.lengths - self._rounded).max()))

    def read(self, capacity: int) -> Tensor:
        """All tokens, with zeros after those of each sequence, [B, kv_heads, capacity, head_dim].

        Args:
            capacity: no less than the longest sequence.
        """
        batch, heads, held, width = self._window.shape
        found = self._window.new_zeros(batch, heads, capacity + held, width)
        if self._codes is not None:
            old = self.quantizer.decode(self._codes, width, found.dtype)
            found[:, :, : old.shape[2]] = old
        places = self._rounded[:, None] + torch.arange(held, device=self.lengths.device)
        places = places[:, None, :, None].expand(-1, heads, -1, width)
        found.scatter_(2, places, self._window)
        slots = torch.arange(capacity, device=self.lengths.device)
        free = (slots >= self.lengths[:, None])[:, None, :, None]
        return found[:, :, :capacity].masked_fill(free, 0.0)

    @property
    def nbytes(self) -> int:
        """Bytes that codes, scales and the window take."""
        packed = () if self._codes is None else self._codes.tensors
        return sum(tensor.nbytes for tensor in (self._window, *packed))

    def _write(self, codes: Codes, rows: Tensor, groups: Tensor) -> None:
        """Puts one group of some rows where it belongs."""
        if self._codes is None:
            batch = len(self.lengths)
            self._codes = Codes(
                *(
                    each.new_zeros(batch, each.shape[1], 0, *each.shape[3:])
                    for each in codes.tensors
                )
            )
        more = int(groups.max()) + 1 - self._codes.packed.shape[2]
        if more > 0:
            grown = (functional.pad(t, (0, 0, 0, 0, 0, more)) for t in self._codes.tensors)
            self._codes = Codes(*grown)
        for mine, new in zip(self._codes.tensors, codes.tensors, strict=True):
            mine[rows, :, groups] = new[:, :, 0]

    @staticmethod
    def _from(window: Tensor, starts: Tensor, length: int) -> Tensor:
        """So many tokens of each row from a place of its own on."""
        places = starts[:, None] + torch.arange(length, device=starts.device)
        places = places.clamp(max=window.shape[2] - 1)[:, None, :, None]
        return window.gather(2, places.expand(-1, window.shape[1], -1, window.shape[3]))


class PackedLayers:
    """The keys and values of all layers of a batch.

    Args:
        layers: keys and values of each layer, [B, kv_heads, capacity, head_dim] each.
        lengths: how many positions of each sequence are in use, int64 [B].
        quantizers: how those of each layer are rounded.
    """

    def __init__(
        self,
        layers: Iterable[tuple[Tensor, Tensor]],
        lengths: Tensor,
        quantizers: Mapping[int, tuple[WindowedQuantizer, WindowedQuantizer]],
    ) -> None:
        self._layers: list[list[PackedStates]] = []
        longest = int(lengths.max())
        for i, pair in enumerate(layers):
            own = [PackedStates(q, states) for q, states in zip(quantizers[i], pair, strict=True)]
            for packed, states in zip(own, pair, strict=True):
                packed.append(states[:, :, :longest], lengths)
            self._capacity = pair[0].shape[2]
            self._layers.append(own)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, of the shape in which they were given."""
        for keys, values in self._layers:
            yield keys.read(self._capacity), values.read(self._capacity)

    def append(self, new: Iterable[tuple[Tensor, Tensor]], counts: Tensor) -> None:
        """Takes new tokens.

        Args:
            new: of each layer, [B, kv_heads, query, head_dim] each.
            counts: how many of them each sequence takes, int64 [B]; bool for one or none.
        """
        for own, pair in zip(self._layers, new, strict=True):
            for packed, states in zip(own, pair, strict=True):
                packed.append(states, counts.to(torch.int64))

    @property
    def nbytes(self) -> int:
        """Bytes that all layers take."""
        return sum(states.nbytes for own in self._layers for states in own)
