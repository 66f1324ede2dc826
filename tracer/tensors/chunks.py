"""A pair of tensors brought to one form and one device, and taken piece by piece."""

from collections.abc import Iterator

import torch

from tracer.errors import ShapeMismatchError, UsageError
from tracer.tensors.kinds import plain


def comparable(
    reference: torch.Tensor, candidate: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain values of a pair, on the reference's device.

    Raises:
        ShapeMismatchError: the shapes differ; nothing is ever broadcast.
        UsageError: a tensor lies on the meta device and holds no values.
    """
    if reference.shape != candidate.shape:
        raise ShapeMismatchError(
            f"the reference has shape {tuple(reference.shape)} and the candidate "
            f"{tuple(candidate.shape)}; a Difference needs equal shapes and never broadcasts"
        )
    if reference.is_meta or candidate.is_meta:
        raise UsageError(
            "a tensor on the meta device has no values to compare; load the model's weights "
            "onto a real device first"
        )
    reference, candidate = plain(reference), plain(candidate)
    if candidate.device != reference.device:
        candidate = candidate.to(reference.device)
    return reference, candidate


def chunks(
    r: torch.Tensor, c: torch.Tensor, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields 1-D contiguous pieces of both in row-major order, copying a piece only if it must."""
    if r.numel() == 0:
        return
    if r.numel() <= size:
        yield r.reshape(-1), c.reshape(-1)
    elif r.is_contiguous() and c.is_contiguous():
        yield from zip(r.view(-1).split(size), c.view(-1).split(size), strict=True)
    else:
        inner = max(r.numel() // r.shape[0], 1)
        rows = max(size // inner, 1)
        for r_rows, c_rows in zip(r.split(rows), c.split(rows), strict=True):
            if inner > size:
                yield from chunks(r_rows[0], c_rows[0], size)
            else:
                yield r_rows.reshape(-1), c_rows.reshape(-1)
