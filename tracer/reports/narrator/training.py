"""What was compared of models in training mode, in words."""

from tracer.diagnosis.finding import ForwardOnly


def lines(_: ForwardOnly) -> list[str]:
    """What an agreement does not show."""
    return [
        "Forward passes were compared, gradients were not: a wrong backward, or an in-place edit "
        "of what autograd has kept, is not seen."
    ]
