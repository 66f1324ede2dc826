"""Near ties that rounding has turned over, in words.

`model.layers.0.mlp.gate` chooses otherwise at 1 of 192 positions: near ties turned over by
rounding. At 57 the reference chooses 3, 9 and the candidate 3, 14 (apart by at most 0.000977).
"""

from tracer.diagnosis.discrete import NearTie
from tracer.text import FEW, few, figure, module_in_words


def lines(tie: NearTie) -> list[str]:
    """Which module, at which positions, and by how little."""
    module = module_in_words(tie.module) + (f" (call {tie.call})" if tie.call else "")
    places = [", ".join(map(str, row)) or "0" for row in tie.rows]
    margin = f"apart by at most {figure(tie.margin)}"
    said = (
        f"{module} chooses otherwise at {len(tie.rows)} of {tie.positions} positions: near ties "
        "turned over by rounding"
    )
    if tie.chosen is None:
        return [f"{said} (at {few(places, '; ')}; {margin})."]
    r, c = (", ".join(map(str, chosen[:_MOST_CHOSEN])) for chosen in tie.chosen)
    more = f" (and at {few(places[1:], '; ')})" if len(places) > 1 else ""
    return [
        f"{said}. At {places[0]} the reference chooses {r} and the candidate {c} ({margin}){more}."
    ]


_MOST_CHOSEN = 2 * FEW
