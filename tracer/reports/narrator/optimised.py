"""What a runtime's optimisations change, in words.

Run whole, with its optimisations, the runtime makes another `logits` of the candidate's file: PEIR
0.31 (limit 1e-05).
"""

from tracer.diagnosis.optimised import Optimised
from tracer.text import figure


def lines(found: Optimised) -> list[str]:
    """The line that names the optimiser."""
    return [
        f"Run whole, with its optimisations, the runtime makes another `{found.output}` of the "
        f"{found.side}'s file: PEIR {figure(found.peir)} (limit {figure(found.limit)})."
    ]
