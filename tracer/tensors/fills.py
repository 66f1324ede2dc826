"""Huge values that both sides have alike: fills of a mask, or of logits of no token.

They say nothing of the others, next to which any error of theirs is small. They are looked for only
in a tensor of which a few elements, taken at equal distances, show that there may be one.
"""

import math

import numpy as np
import torch

# A fill is at least so large and so many times beyond all else; a tensor has at most so many.
_FILL, _FAR, _FILLS = 16.0, 32.0, 4
# What a coarser dtype makes of a fill is the same fill.
_ALIKE = 2.0**-8
_SAMPLED = 256


def may_have_fills(r: torch.Tensor, c: torch.Tensor, error: float, largest: float) -> bool:
    """Whether a sample shows few values that are near the largest, and errors may hide by it.

    Args:
        error: the largest absolute difference.
        largest: the largest magnitude of the reference's.
    """
    if not _FILL <= largest < math.inf or not 0.0 < error <= largest:
        return False
    if not (r.is_floating_point() and c.is_floating_point()):
        return False
    stride = r.numel() // _SAMPLED + 1
    if r.is_contiguous():
        sample = r.view(-1)[::stride]
    else:
        places = torch.arange(0, r.numel(), stride, device=r.device)
        sample = r[torch.unravel_index(places, r.shape)]
    values = (sample if sample.dtype == torch.float64 else sample.float()).cpu().numpy()
    values = np.abs(values)
    near = values[(values > largest / _FAR) & (values <= largest)]
    return all(len(set(part.tolist())) <= _FILLS for part in (near[:16], near))


def without_fills(r: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The pairs that are no fills; None where there are no fills, or nothing else."""
    kept = r.isfinite() & c.isfinite()
    r, c = r[kept], c[kept]
    found = None
    least = math.inf
    for _ in range(_FILLS):
        fill = r[r.abs().argmax()].item()
        least = min(least, abs(fill))
        kept = (r != fill) | ((c - r).abs() > _ALIKE * abs(fill))
        r, c = r[kept], c[kept]
        if least < _FILL or not r.numel():
            break
        if float(r.abs().amax()) <= least / _FAR:
            found = r, c
    return found
