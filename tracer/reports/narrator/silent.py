"""What is silently wrong with a quantised candidate, in words.

Silently wrong in the candidate:
  a scale of exactly 1.0: `input_scale` of `model.layers.0.mlp.down_proj` and 4 more modules
  not quantised, although its config says so: `weight` of `lm_head`
"""

from collections.abc import Iterator

from tracer.adapters.quantised.silent import SilentKind, SilentMistake, SilentMistakes
from tracer.text import module_in_words

_WORDS = {
    SilentKind.SCALE_OF_ONE: "a scale of exactly 1.0",
    SilentKind.SCALE_NOT_POSITIVE: "a scale that is not above 0",
    SilentKind.SCALE_NOT_FINITE: "a scale that is not finite",
    SilentKind.UNFILLED: "left at its initial value, as nothing filled it",
    SilentKind.ZERO_POINT_OUTSIDE: "a zero point outside its range",
    SilentKind.NOT_QUANTIZED: "not quantised, although its config says so",
    SilentKind.IGNORED_YET_QUANTIZED: "quantised, although its config says to leave it alone",
    SilentKind.PER_TENSOR: "one scale for the whole tensor, although its config says more",
}


def lines(mistakes: SilentMistakes) -> list[str]:
    """One line for each kind of mistake and tensor, with the first module."""
    return ["Silently wrong in the candidate:", *_lines(mistakes)]


def in_short(mistakes: SilentMistakes) -> str:
    """How many modules something is wrong with."""
    modules = {mistake.module for mistake in mistakes.found}
    return f"silently wrong in {len(modules)} module{'' if len(modules) == 1 else 's'}"


def _lines(mistakes: SilentMistakes) -> Iterator[str]:
    groups: dict[tuple[SilentKind, str], list[SilentMistake]] = {}
    for mistake in mistakes.found:
        groups.setdefault((mistake.kind, mistake.tensor), []).append(mistake)
    for (kind, tensor), same in groups.items():
        first = same[0]
        more = f" and {len(same) - 1} more module{'s' if len(same) > 2 else ''}"
        named = f"`{tensor}` of {module_in_words(first.module)}{more if len(same) > 1 else ''}"
        sides = [first.found] if first.found else []
        sides += [f"expected {first.expected}"] if first.expected else []
        yield f"  {_WORDS[kind]}: {named}" + (f" ({'; '.join(sides)})" if sides else "")
