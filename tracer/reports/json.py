"""The report for programs: one JSON object of a stable schema.

    {
      "schema": 3,
      "verdict": {"agrees": false, "symptom": {...}, "origin": {...}, "details": {...}, ...},
      "coverage": {"paired_modules": {"model": "body", ...}, "compared_calls": 58, ...},
      "rows": [{"module": "model.embed_tokens", "call": 0, "value": "output", "peir": 0.0, ...}],
      "form_differences": [{"module": "model", "value": "kwargs.attention_mask", ...}],
      "ranking": [{"module": "model.embed_tokens", "input_peir": 0.0, "growth": "inf", ...}],
      "isolation": {"level": "leaves", "calls": [...], "modules": [...], "explanation": "...", ...},
      "zoomed": {"kind": "wrong", "culprit": {"file": "...", "line": 254, "text": "...", ...}, ...},
      "inside": {"stage": "backend", "culprits": ["layers.1.mlp"], "node": {...}, ...},
      "gate": {"passes": false, "fail_on": "regression", "reasons": [...], "changes": [...], ...},
      "identity": {"reference": {"model": "LlamaForCausalLM", ...}, "inputs": {...}, ...},
      "run": {"reference": "tiny-llama", "command": "trace_model ...", "exit_code": 1, ...},
      "environment": {"trace_model": "0.1.0", "date": "...", "commit": "76ab408...", ...}
    }

It is strict JSON: numbers that are not finite are the strings "inf", "-inf" and "nan", and a
statistic that could not be computed is null, as are "run" for a comparison made in Python,
"identity" for one made by hand, "isolation", "zoomed", "inside" and "gate" where there is none, and
"ranking" but for a quantised candidate without isolation. Rows are in execution order and have the
columns of `Comparison.to_frame`.
`schema` grows by one when a key is renamed, removed or means something else, not when one is added.
The JSON Schema in `report.schema.json` beside this file says what each key means.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from tracer.comparison.result import Comparison, row_fields
from tracer.diagnosis.verdict import Verdict
from tracer.diagnosis.zoom.zoom import Zoomed
from tracer.environment import environment
from tracer.interventions.trial import Replacements
from tracer.isolation.compiled.result import CompiledInside
from tracer.measurement.rows import Row
from tracer.reports import Run
from tracer.reports.narrator.verdict import given
from tracer.reports.parts.ranking import ranking

SCHEMA = 3
# Properties that are written as well, beside the fields that they are made of.
_IN_WORDS = ("level", "what", "where", "explanation")
_OF_A_ROW = ("module", "candidate_module", "call", "value", "peir", "limit", "agrees", "note")


def render(comparison: Comparison, run: Run | None = None) -> str:
    """The report as text, with a newline at the end."""
    return json.dumps(document(comparison, run), indent=2, allow_nan=False) + "\n"


def document(comparison: Comparison, run: Run | None = None) -> dict[str, object]:
    """The report as plain values that `json` can write."""
    coverage = {
        **vars(comparison.coverage),
        "unmatched_calls": [
            {"side": side, "module": module, "call": call}
            for side, module, call in comparison.coverage.unmatched_calls
        ],
    }
    plain = plain_values(
        {
            "schema": SCHEMA,
            "verdict": _verdict(comparison.verdict),
            "coverage": coverage,
            "rows": [row_fields(row) for row in comparison.rows],
            "form_differences": comparison.form_differences,
            "ranking": ranking(comparison.rows)
            if run is not None and run.quantized and comparison.isolation is None
            else None,
            "isolation": comparison.isolation,
            "zoomed": comparison.zoomed,
            "inside": comparison.inside,
            "gate": comparison.gate,
            "identity": comparison.identity,
            "run": run,
            "environment": environment(),
        }
    )
    assert isinstance(plain, dict)
    return plain


def _verdict(verdict: Verdict) -> dict[str, object]:
    """What was found inside stands in the report beside the verdict, and the names of modules in
    the coverage."""
    fields_of_it = {name: value for name, value in _fields(verdict).items() if name != "names"}
    beside = [each for each in verdict.beside if not isinstance(each, Zoomed | CompiledInside)]
    return {
        **fields_of_it,
        "outcome": verdict.outcome,
        "details": _named(verdict.details),
        "beside": [_named(each) for each in beside],
    }


def _named(finding: object) -> dict[str, object]:
    return {"finding": type(finding).__name__, **_fields(finding)}


def _fields(value: object) -> dict[str, object]:
    """The fields of a dataclass with its words; of a row where it is, and how far off."""
    assert is_dataclass(value)
    if isinstance(value, Row):
        return {name: getattr(value, name) for name in _OF_A_ROW}
    if isinstance(value, Replacements):
        kind, names = given(value)
        return {"kind": kind, "names": names}
    names = [each.name for each in fields(value)]
    names += [name for name in _IN_WORDS if isinstance(getattr(type(value), name, None), property)]
    return {name: getattr(value, name) for name in names}


def plain_values(value: object) -> object:
    """Dicts for dataclasses, lists for tuples, and strings for numbers that JSON does not know."""
    if is_dataclass(value):
        value = _fields(value)
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain_values(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
