"""What was compared of models in training mode, in words.

Their gradients agree: 24 were compared, the largest PEIR is 3.1e-07, at the gradient of `weight` of
`model.norm` (limit 1e-05).
"""

from tracer.diagnosis.gradients import ForwardOnly, GradientsAgree
from tracer.text import figure, place


def forward_only(found: ForwardOnly) -> list[str]:
    """What an agreement does not show."""
    return [
        f"Forward passes were compared, gradients were not: {found.why}. A wrong backward, or an "
        "in-place edit of what autograd has kept, is not seen."
    ]


def gradients_agree(found: GradientsAgree) -> list[str]:
    """How many gradients were compared, and the worst of them."""
    worst = found.worst
    limit = figure(worst.limit) + (", for what rounding makes of it" if worst.floor else "")
    largest = f"the largest PEIR is {figure(worst.peir)}, at {place(worst)} (limit {limit})"
    if worst.error == 0.0:
        largest = "all are equal"
    said = [f"Their gradients agree: {found.compared} were compared, {largest}."]
    if found.left_out:
        said.append(
            f"{found.left_out} parameters that the reference trains have no counterpart that holds "
            "the same; their gradients were not compared."
        )
    return said
