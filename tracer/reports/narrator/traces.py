"""What a recording means for a verdict."""

from tracer.comparison.trace_limits import TraceLimit, TraceLimitKind, ended_early
from tracer.text import FEW, listed


def lines(limit: TraceLimit) -> list[str]:
    """What one recording lacks."""
    side = limit.side
    match limit.kind:
        case TraceLimitKind.ENDED:
            text = ended_early(side, limit.calls)
            rest = "; what was compared until then agrees" if limit.agrees else ""
            said = f"{text[0].upper()}{text[1:]}{rest}."
        case TraceLimitKind.FINGERPRINTS:
            said = (
                f"The recording of the {side} holds fingerprints: how far values lie apart is "
                "estimated, within 38 % below and 113 % above."
            )
        case TraceLimitKind.OUTPUTS:
            said = (
                f"The recording of the {side} holds outputs alone: whether the inputs of a module "
                "agree is not known, so that the error may come from what calls it."
            )
        case TraceLimitKind.OTHER_PARAMETERS:
            names = listed([f"`{name}`" for name in limit.parameters], FEW)
            count = f"{len(limit.parameters)} of {limit.checked}"
            said = f"{count} parameters are not those recorded: {names}."
    return [said]
