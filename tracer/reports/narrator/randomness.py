"""Random numbers that are drawn in evaluation, in words.

The reference draws random numbers in evaluation, first in `layers.0.attn` (2 calls).
The candidate draws random numbers in evaluation, first in `layers.0.attn` (2 calls).
They agree from the random state that both began with; from two different ones each may differ even
from itself.
"""

from tracer.diagnosis.finding import RandomDraws
from tracer.text import module_in_words


def lines(found: RandomDraws) -> list[str]:
    """Which side draws, where first, and what that means for an agreement."""
    said = [
        f"The {draws.side} draws random numbers in evaluation, first in "
        f"{module_in_words(draws.module)} ({draws.calls} call{'s' if draws.calls > 1 else ''})."
        for draws in found.sides
    ]
    if not found.agreed or len(found.sides) == 1:
        return said
    return [
        *said,
        "They agree from the random state that both began with; from two different ones each may "
        "differ even from itself.",
    ]
