"""What a report says first: the verdict in one line, and in a paragraph."""

from dataclasses import dataclass
from typing import Literal

from tracer.comparison import Comparison
from tracer.reports.fold import number
from tracer.rows import final_output

Tone = Literal["agrees", "diverges", "expected", "unknown"]


@dataclass(frozen=True)
class Headline:
    """The verdict as a report begins with it.

    Attributes:
        tone: how alarming it is; "expected" is a difference that quantisation makes.
        line: "diverges at model.layers.0.self_attn.o_proj, PEIR 4.61e-01".
        text: the explanation, several lines; what isolation has found comes last.
    """

    tone: Tone
    line: str
    text: str


def headline(comparison: Comparison, *, expected: bool = False) -> Headline:
    """Sums up a comparison.

    Args:
        expected: a difference is no failure; see `Run.differences_expected`.
    """
    verdict = comparison.verdict
    text, symptom = verdict.explanation, verdict.symptom
    tone: Tone
    if symptom is None:
        tone, line = ("agrees", "agrees") if verdict.agrees else ("unknown", "no verdict")
    else:
        tone, line = "diverges", f"diverges at {symptom.module or 'the root'}"
        if symptom.value.startswith("kwargs."):
            line += f", argument {symptom.value.removeprefix('kwargs.')}"
        line += f", call {symptom.call}" if symptom.call else ""
        line += f", PEIR {number(symptom.peir)}"
        if expected and not comparison.coverage.ended:
            tone, line = "expected", f"{line}, as expected of a quantised candidate"
            text = _end(comparison)
            text += f"\n{comparison.zoomed.explanation}" if comparison.zoomed is not None else ""
    if comparison.isolation is not None:
        text += f"\n{comparison.isolation.explanation}"
    return Headline(tone, line, text)


def _end(comparison: Comparison) -> str:
    """What has become of the differences where the model ends."""
    last = final_output(comparison.rows)
    assert last is not None
    assert last.difference is not None
    return (
        "With quantisation on everything differs a little; a limit given by tolerance makes a "
        f"difference beyond it a failure.\n{last.value} of {last.module or 'the model'} ends at "
        f"PEIR {number(last.peir)}, SQNR {last.difference.sqnr:.1f} dB, cosine "
        f"{last.difference.cosine:.6f}."
    )
