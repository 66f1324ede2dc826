"""The report to explore: one HTML file that needs nothing else, neither a network nor a library.

What must be read is in the page itself: the verdict with the source of both sides, what isolation
has found, coverage and environment. The curve, the tree of modules and the drawings of their values
are made by a script from the rows, which come as JSON in columns. Texts are escaped by Jinja, or
put in by the script as text; the page's policy lets nothing be loaded.
"""

import base64
import json
import math
from collections.abc import Mapping
from importlib.resources import files

import jinja2
import numpy as np
from markupsafe import Markup, escape

from tracer.comparison.result import Comparison
from tracer.environment import environment
from tracer.measurement.rows import Row
from tracer.reports import Run
from tracer.reports.narrator.isolation import in_its_own, rounding_in_words
from tracer.reports.parts import gate
from tracer.reports.parts.excerpt import origins, places
from tracer.reports.parts.fold import number
from tracer.reports.parts.headline import Tone, headline
from tracer.reports.parts.isolation import introducing, modules_of
from tracer.reports.parts.legend import legend
from tracer.reports.parts.ranking import ranking
from tracer.reports.parts.table import dtypes
from tracer.reports.parts.unseen import other_forms, unpaired
from tracer.tensors.samples import Sample

_MOST_RANKED = 20
_LEVELS = 65_535
_STATISTICS = ("mean", "min", "max", "stddev", "sqnr", "cosine")


def render(comparison: Comparison, run: Run | None = None) -> str:
    """The report as text."""
    page = files("tracer.reports") / "page"
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("tracer.reports", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters |= {"prose": _prose, "number": _figure, "modules_of": modules_of}
    expected = run is not None and run.differences_expected
    said = headline(comparison, expected=expected)
    isolation = comparison.isolation
    return templates.get_template("report.html.jinja").render(
        said=said,
        run=run,
        verdict=comparison.verdict,
        gate=comparison.gate,
        gated=gate,
        origins=[] if expected else places(comparison),
        isolation=isolation,
        introducing=introducing(isolation),
        own=in_its_own,
        rounding=rounding_in_words,
        ranking=ranking(comparison.rows)[:_MOST_RANKED]
        if run is not None and run.quantized and isolation is None
        else [],
        legend=legend(comparison.rows),
        most=_MOST_RANKED,
        coverage=comparison.coverage,
        unseen={"Unpaired": unpaired(comparison), "In another form": other_forms(comparison)},
        environment=environment(),
        style=Markup((page / "report.css").read_text(encoding="utf-8")),
        script=Markup((page / "report.js").read_text(encoding="utf-8")),
        data=_embedded(_data(comparison, said.tone, has_origins=not expected)),
    )


def _prose(text: str) -> Markup:
    """A text of ours, in which names stand in backquotes."""
    parts = str(escape(text)).split("`")
    if len(parts) % 2 == 0:  # a lone backquote is a backquote
        return Markup(escape(text))
    coded = (f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
    return Markup("".join(coded))


def _figure(value: float | None) -> str:
    return "-" if value is None else number(value)


def _embedded(data: Mapping[str, object]) -> Markup:
    """JSON that no text in it can end: neither the element nor a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e"))


def _data(comparison: Comparison, tone: Tone, *, has_origins: bool) -> dict[str, object]:
    """What the script draws: the rows in columns, texts by their number in one list."""
    rows, coverage = comparison.rows, comparison.coverage
    symptom = comparison.verdict.symptom
    texts = _Texts()
    introduced = comparison.isolation.calls if comparison.isolation is not None else ()
    unseen = (*coverage.reference_only, *coverage.candidate_only)
    return {
        "rows": {
            "module": [texts.number(row.module) for row in rows],
            "call": [row.call for row in rows],
            "value": [texts.number(row.value) for row in rows],
            "shape": [texts.number("x".join(map(str, row.shape))) for row in rows],
            "dtype": [texts.number(dtypes(row)) for row in rows],
            "note": [texts.number(row.note) for row in rows],
            "output": [int(row.is_output) for row in rows],
            "agrees": [int(row.agrees) for row in rows],
            "peir": [_plain(row.peir) for row in rows],
            "limit": [_plain(row.limit) for row in rows],
            "floor": [_plain(row.floor) for row in rows],
            **{name: [_statistic(row, name) for row in rows] for name in _STATISTICS},
        },
        "texts": texts.known,
        "paired": list(coverage.paired_modules),
        "names": {r: c for r, c in coverage.paired_modules.items() if r != c},
        "unseen": {name: coverage.reasons[name] for name in unseen},
        "introduced": [
            [texts.number(call.module), call.call, _plain(call.introduced_peir)]
            for call in introduced
        ],
        "samples": {
            str(i): _drawn(row.sample) for i, row in enumerate(rows) if row.sample is not None
        },
        "origins": [o.module for o in origins(comparison.verdict)] if has_origins else [],
        "symptom": None if symptom is None else [symptom.module, symptom.call, symptom.value],
        "expected": tone == "expected",
    }


class _Texts:
    """Gives each text a number, once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def known(self) -> list[str]:
        return list(self._numbers)


def _statistic(row: Row, name: str) -> float | str | None:
    return None if row.difference is None else _plain(getattr(row.difference, name))


def _plain(value: float | None) -> float | str | None:
    """A number that JSON holds; what is not finite as JavaScript's `Number` reads it."""
    if value is None or math.isfinite(value):
        return None if value is None else float(f"{value:.5g}")
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _drawn(sample: Sample) -> dict[str, object]:
    """Finite pairs as 16-bit levels between the extremes, finer than any screen."""
    pairs = np.stack([sample.reference, sample.candidate]).astype(np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    low, high = float(pairs.min()), float(pairs.max())
    levels = np.round((pairs - low) / ((high - low) or 1.0) * _LEVELS).astype("<u2")
    reference, candidate = (base64.b64encode(side.tobytes()).decode() for side in levels)
    return {
        "reference": reference, "candidate": candidate, "low": _plain(low), "high": _plain(high),
        "counts": sample.counts, "reach": _plain(sample.reach),
    }  # fmt: skip
