"""What a zoom found, in words."""

from tracer.diagnosis.zoom.zoom import Zoomed


def lines(zoomed: Zoomed) -> list[str]:
    """The lines that say which operation is the culprit, and what the reference does there."""
    return zoomed.explanation.splitlines()
