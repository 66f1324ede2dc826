"""The report for CI servers: JUnit XML, a test case for each module.

    <testcase classname="model.layers.0" name="self_attn">
      <failure type="computation" message="diverges: port.py:27, in `blocks.0.attn`">

The modules in which an error begins have failed, with the verdict and the source as the text. What
disagrees after them is skipped: it was given wrong inputs, so nothing can be said of it. So is what
was not seen.
What a gate decides is a case of its own; a divergence that it lets pass fails nothing.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from tracer.comparison.result import Comparison
from tracer.environment import environment
from tracer.measurement.rows import Row
from tracer.reports import Run
from tracer.reports.parts.excerpt import numbered, origins, places
from tracer.reports.parts.fold import number
from tracer.reports.parts.headline import Headline, headline

if TYPE_CHECKING:
    from tracer.regression.result import Gate

_ROOT = "(root)"
_LONGEST_SOURCE = 130
# What XML 1.0 cannot hold, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(comparison: Comparison, run: Run | None = None) -> str:
    """The report as text, with a newline at the end."""
    return document([suite(comparison, run)])


def document(suites: Sequence[ElementTree.Element]) -> str:
    """The text of a file that holds suites, with a newline at the end."""
    totals = {
        name: str(sum(int(found.attrib[name]) for found in suites))
        for name in ("tests", "failures", "errors")
    }
    root = _element("testsuites", name="trace_model", **totals)
    root.extend(suites)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def unfinished(name: str, message: str) -> ElementTree.Element:
    """The suite of a comparison that came to no result."""
    counts = {"tests": "1", "failures": "0", "errors": "1", "skipped": "0"}
    made = _element("testsuite", name=name, **counts)
    case = _element("testcase", classname=_ROOT, name="verdict")
    case.append(_element("error", message, type="unfinished", message=message))
    made.append(case)
    return made


def suite(
    comparison: Comparison, run: Run | None = None, name: str | None = None
) -> ElementTree.Element:
    """The suite of a comparison; its name is that of the models unless another is given."""
    said = headline(comparison, expected=run is not None and run.differences_expected)
    cases = list(_cases(comparison, said))
    counts = {"tests": len(cases)} | {
        kind: sum(case.find(tag) is not None for case in cases)
        for kind, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped"))
    }
    models = "trace_model" if run is None else f"{run.reference} against {run.candidate}"
    made = _element(
        "testsuite",
        name=name or models,
        **{name: str(count) for name, count in counts.items()},
    )
    properties = _element("properties")
    for name, value in _properties(comparison, run):
        properties.append(_element("property", name=name, value=value))
    made.append(properties)
    made.extend(cases)
    made.append(_element("system-out", f"{said.line}\n{said.text}\n"))
    return made


def _properties(comparison: Comparison, run: Run | None) -> Iterator[tuple[str, str]]:
    yield from environment().items()
    yield "coverage", str(comparison.coverage)
    if run is not None:
        yield from (("note", note) for note in run.notes)
        yield from () if run.command is None else (("command", run.command),)


def _cases(comparison: Comparison, said: Headline) -> Iterator[ElementTree.Element]:
    """A case for each module that has rows, is an origin or was not seen."""
    coverage = comparison.coverage
    culprits = _culprits(comparison) if _is_judged(comparison, said) else {}
    worst = _worst(comparison)
    unseen = {name: coverage.reasons[name] for name in coverage.reference_only}
    unseen |= {name: coverage.reasons[name] for name in coverage.candidate_only}
    for name in {**worst, **dict.fromkeys(coverage.paired_modules), **culprits, **unseen}:
        case = _case(name)
        row = worst.get(name)
        if name in culprits:
            text = f"{said.text}{_source(comparison, name)}"
            case.append(_element("failure", text, type=culprits[name], message=said.line))
        elif name in unseen:
            case.append(_element("skipped", message=f"not seen: {unseen[name]}"))
        elif row is None:
            case.append(_element("skipped", message="no value of it was compared"))
        elif culprits and not row.agrees:
            first = next(iter(culprits)) or _ROOT
            message = f"not judged: PEIR {number(row.peir)} after the divergence in {first}"
            case.append(_element("skipped", message=message))
        yield case
    if said.tone == "unknown":
        case = _element("testcase", classname=_ROOT, name="verdict")
        case.append(_element("error", said.text, type="unfinished", message=said.line))
        yield case
    if comparison.gate is not None:
        yield _gate(comparison.gate)


def _source(comparison: Comparison, module: str) -> str:
    """The source of both sides at the origins in a module, below the verdict."""
    blocks = [
        f"\n\n{side}: {found.place}\n{numbered(found, _LONGEST_SOURCE)}"
        for place in places(comparison)
        if module in place.modules
        for side, found in place.sources.items()
        if found.lines
    ]
    return "".join(blocks)


def _gate(gate: "Gate") -> ElementTree.Element:
    case = _element("testcase", classname="trace_model", name="gate")
    if not gate.passes:
        message = "; ".join(reason.what for reason in gate.reasons)
        text = "\n".join(map(str, gate.reasons))
        case.append(_element("failure", text, type=gate.reasons[0].level, message=message))
    return case


def _is_judged(comparison: Comparison, said: Headline) -> bool:
    """Whether the divergence is a failure."""
    if comparison.gate is None:
        return said.tone == "diverges"
    return any(reason.level == "divergence" for reason in comparison.gate.reasons)


def _culprits(comparison: Comparison) -> Mapping[str, str]:
    """The kind of mistake of each origin; where none is known it is the symptom that fails."""
    verdict = comparison.verdict
    assert verdict.symptom is not None
    known = {origin.module: origin.kind for origin in origins(verdict)}
    return known or {verdict.symptom.module: "divergence"}


def _worst(comparison: Comparison) -> Mapping[str, Row]:
    """The worst row of each module's outputs; of its arguments where no output was compared."""
    worst: dict[str, Row] = {}
    for row in comparison.rows:
        known = worst.get(row.module)
        if known is None or _badness(row) > _badness(known):
            worst[row.module] = row
    return worst


def _badness(row: Row) -> tuple[bool, bool, float]:
    return row.is_output, not row.agrees, row.error


def _case(module: str) -> ElementTree.Element:
    """Class and name together are the module's name, as CI servers show them."""
    parent, _, name = module.rpartition(".")
    return _element("testcase", classname=parent or _ROOT, name=name or _ROOT)


def _element(tag: str, text: str | None = None, /, **attributes: str) -> ElementTree.Element:
    element = ElementTree.Element(tag, {key: _legal(value) for key, value in attributes.items()})
    element.text = None if text is None else _legal(text)
    return element


def _legal(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
