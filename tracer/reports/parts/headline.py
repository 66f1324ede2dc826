"""What a report says first: the verdict in one line, and in a paragraph."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tracer.adapters.quantised.silent import SilentMistakes
from tracer.comparison.result import Comparison
from tracer.diagnosis.verdict import Symptom, Verdict, VerdictOutcome
from tracer.measurement.rows import final_output
from tracer.reports.narrator import explain
from tracer.reports.narrator.cause import cause
from tracer.reports.narrator.silent import in_short
from tracer.reports.parts.fold import number

if TYPE_CHECKING:
    from tracer.regression.result import Gate

Tone = Literal["agrees", "diverges", "expected", "unknown"]


@dataclass(frozen=True)
class Headline:
    """The verdict as a report begins with it.

    Attributes:
        tone: how alarming it is; "expected" is a difference that quantisation makes.
        line: "diverges: port.py:27, in `blocks.0.attn`"; with a gate also what that makes of it.
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
        tone, line = ("agrees", verdict.outcome) if verdict.agrees else ("unknown", "no verdict")
    elif verdict.outcome is VerdictOutcome.EQUIVALENT:
        tone, line = "diverges", "equivalent, and every value is to agree"
    else:
        found = None if expected else cause(verdict, comparison.zoomed)
        tone, line = "diverges", f"diverges: {found}" if found else _visible_at(symptom)
        if expected and not comparison.coverage.ended:
            tone, line = "expected", f"{line}, as expected of a quantised candidate"
            text = _end(comparison)
            for silent in _silent(verdict):
                line += f"; {in_short(silent)}"
                text = f"{explain(silent)}\n{text}"
            text += f"\n{comparison.zoomed.explanation}" if comparison.zoomed is not None else ""
    if comparison.isolation is not None:
        text += f"\n{comparison.isolation.explanation}"
    if comparison.gate is not None:
        tone, line = _gated(comparison.gate, tone, line)
    return Headline(tone, line, text)


def _silent(verdict: Verdict) -> list[SilentMistakes]:
    return [each for each in verdict.beside if isinstance(each, SilentMistakes)]


def _visible_at(symptom: Symptom) -> str:
    """Where a divergence was first visible, as far as its cause was not looked for."""
    line = f"diverges at {symptom.candidate_module or symptom.module or 'the root'}"
    if not symptom.value.is_result:
        line += f", argument {symptom.value.label}"
    line += f", call {symptom.call}" if symptom.call else ""
    return f"{line}, PEIR {number(symptom.peir)}"


def _gated(gate: "Gate", tone: Tone, line: str) -> tuple[Tone, str]:
    """What the gate makes of a verdict."""
    if not gate.passes:
        said = [reason.what for reason in gate.reasons if reason.level != "divergence"]
        return "diverges", f"fails: {'; '.join(said)}; {line}" if said else line
    passed = [reason.what for reason in gate.let_pass if reason.level != "divergence"]
    if passed:
        return "expected", f"{line}; let pass: {'; '.join(passed)}"
    if tone == "agrees":
        return tone, line
    if not gate.diverges and tone == "diverges":
        return "expected", f"{line}, within the limits given"
    if gate.baseline is not None:
        said_of = "as in" if tone == "diverges" else "and no worse than in"
        return "expected", f"{line}, {said_of} {gate.baseline}"
    return "expected", f"{line}, let pass" if tone == "diverges" else line


def _end(comparison: Comparison) -> str:
    """What has become of the differences where the model ends."""
    last = final_output(comparison.rows)
    assert last is not None
    assert last.difference is not None
    said = "" if comparison.gate is not None else " Exit code 0: no limit was given."
    return (
        f"With quantisation on everything differs a little.{said}\n"
        f"{last.value} of {last.module or 'the model'} ends at "
        f"PEIR {number(last.peir)}, SQNR {last.difference.sqnr:.1f} dB, cosine "
        f"{last.difference.cosine:.6f}."
    )
