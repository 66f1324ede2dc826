"""Attention in parts that stay in cache: how large they are, and which may be skipped."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from wrappers.core.point import Quantize

BLOCK_ELEMENTS = 1 << 17
"""Logits per block, 512 KiB in float32: with 8 and 32 heads and 128 to 1024 positions, blocks of
this size and twice it took the least time on a core with 1 MiB of second-level cache."""

QUERY_ELEMENTS = 1 << 19
"""Logits that `attend_batched` holds at once on a CPU, 2 MiB in float32. Beyond that it goes by key
heads and parts of the queries, whose logits are used up while a processor's cache holds them."""

LEAST_QUERIES = 16
"""A part of fewer queries would make products too thin."""

MASKED_QUERIES = 512
"""From this many queries on, keys that the mask hides from a part of them are passed over; with
fewer it takes longer to find them."""

PART_QUERIES = 128
"""Queries of such a part."""

WEIGHS_NOTHING = -40.0
"""A key whose masked logit lies this far below another one of its row has no weight: exp(-40) is
4e-18, which is lost when float32 adds it to 1, and which the codes of a softmax round to zero."""


def largest_product(query: Tensor, key: Tensor) -> Tensor:
    """A bound of abs(query @ key), by the inequality of Cauchy and Schwarz."""
    norms = [torch.linalg.vector_norm(states, dim=-1).amax() for states in (query, key)]
    return torch.stack(norms).prod() * 1.01  # for the rounding of all of these


def visible_spans(mask: Tensor, logits: Tensor, quantize: Quantize) -> list[slice] | None:
    """For each part of the queries, from the first to the last key that it has to look at.

    Args:
        mask: additive, [B or 1, 1, query, key].
        logits: the smallest and the largest that there may be, as quantised.
        quantize: called for the point mask_add.

    Returns:
        None where hidden keys may have a weight, or none is hidden from a whole part.
    """
    # The most that any query of a part lets through of each key: [parts, key].
    shown = torch.stack([part.amax(dim=(0, 1, 2)) for part in mask.split(PART_QUERIES, dim=2)])
    hidden = shown.amin()
    best = mask.amax(dim=-1).amin()
    if not best > hidden:
        return None  # a query that sees nothing but hidden keys looks at all of them
    low, high = quantize(logits + torch.stack([best, hidden]), "mask_add", may_overwrite=True)
    if not high - low <= WEIGHS_NOTHING:  # NaN included
        return None
    keys = [part.nonzero() for part in shown > hidden]
    return [slice(int(seen[0]), int(seen[-1]) + 1) for seen in keys]


def blocks(
    logits: Tensor, mask: Tensor | None, *, dim: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    # Splits along the first dimension that has to be; never along the keys, which softmax needs.
    if logits.numel() <= BLOCK_ELEMENTS or dim == logits.ndim - 1:
        yield logits, mask
        return
    length = logits.shape[dim]
    step = max(1, BLOCK_ELEMENTS * length // logits.numel())
    for start in range(0, length, step):
        size = min(step, length - start)
        part = mask if mask is None or mask.shape[dim] == 1 else mask.narrow(dim, start, size)
        yield from blocks(logits.narrow(dim, start, size), part, dim=dim + 1)
