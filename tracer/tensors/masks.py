"""Attention masks are read by what they let through, and put into words."""

import torch

from tracer.tensors.leaves import describe

# Added to logits, exp(-30) = 9e-14 of a visible position's weight is beyond what float32 shows.
HIDDEN_BELOW = -30.0


def describe_mask(value: object) -> str:
    """An attention mask in a few words, with what it lets through where that is known."""
    text = describe(value)
    if not isinstance(value, torch.Tensor) or value.dim() < 2:
        return text
    visible = visible_positions(value)
    if visible is None:
        return text
    form = "additive mask" if value.is_floating_point() and value.dim() > 2 else "mask"
    if visible.dim() > 2 and _is_causal(visible):
        return f"{text}: {form}, causal"
    if bool(visible.all()):
        return f"{text}: {form}, hides nothing"
    hidden = int((~visible).sum())
    return f"{text}: {form}, hides {hidden} of {visible.numel()} positions"


def visible_positions(mask: torch.Tensor) -> torch.Tensor | None:
    """Reads a mask as booleans of its own shape, True where attention may look.

    Booleans and 0/1 integers say it themselves, and so do floats of 0 and 1 in a 2-D padding mask;
    other floats are added to the logits, and hide where they are at most -30.

    Returns:
        None where the values have no such reading, as with an integer mask of other values, or with
        floats that weigh a position without hiding it (a position bias, too weak a fill value).
    """
    if mask.dtype == torch.bool:
        return mask
    reading = reading_of(mask)
    return reading[0] if reading is not None and bool(reading[1]) else None


def reading_of(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Visible positions as `visible_positions` reads them, and whether they may be read so.

    Nothing waits for an accelerator.

    Returns:
        Booleans of the mask's shape, and one of no dimension; None for complex numbers.
    """
    if mask.dtype == torch.bool:
        return mask, mask.new_ones(())
    if mask.is_complex():
        return None
    zero, one = mask == 0, mask == 1
    if not mask.is_floating_point():
        return ~zero, (zero | one).all()
    is_additive = (zero | (mask <= HIDDEN_BELOW)).all()
    if mask.dim() != 2:
        return zero, is_additive
    says_itself = (zero | one).all() & one.any()
    return torch.where(says_itself, one, zero), says_itself | is_additive


def visible_pair(
    reference: torch.Tensor, candidate: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Both masks as visible positions of one common shape, or None where they have none.

    Masks of one rank that broadcast (one mask for all sequences of a batch or for all heads) mean
    the same on every one of them.
    """
    if reference.dim() != candidate.dim():
        return None
    try:
        shape = torch.broadcast_shapes(reference.shape, candidate.shape)
    except RuntimeError:
        return None
    seen = visible_positions(reference), visible_positions(candidate)
    if seen[0] is None or seen[1] is None:
        return None
    return seen[0].expand(shape), seen[1].to(seen[0].device).expand(shape)


def _is_causal(visible: torch.Tensor) -> bool:
    query, key = visible.shape[-2:]
    causal = torch.ones(query, key, dtype=torch.bool, device=visible.device).tril(key - query)
    return bool((visible == causal).all())
