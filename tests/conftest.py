"""Fixtures that tests share: the folder of real data, and comparisons made by hand."""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tracer.choices import VARIABLES
from tracer.comparison.result import Comparison
from tracer.diagnosis.finding import Finding, FindingKind, Origin, OriginKind
from tracer.diagnosis.trials import Outcome, Proof
from tracer.diagnosis.verdict import Agreement, Divergence, Symptom, Tally, Verdict
from tracer.interventions.trial import Replacements
from tracer.measurement.coverage import Coverage
from tracer.measurement.remarks import Remark, RemarkKind
from tracer.measurement.rows import Row
from tracer.tensors.difference import Difference

# Tiny models gain nothing from a second thread, and lose much where the cores are busy.
torch.set_num_threads(1)

_BESIDE_THE_REPOSITORY = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is made while tests are collected stays: looking through it for garbage, then and at
    every later collection, takes a third of that time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests only add to what others check, and what needs data or tico is not everywhere: that
    is not counted as coverage. It would hide what nothing else covers, and measuring takes long."""
    for item in items:
        needed = {"shared_data", "tico"} & set(getattr(item, "fixturenames", ()))
        adds_nothing = item.get_closest_marker("slow") and not item.get_closest_marker("covers")
        if needed or adds_nothing:
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture(autouse=True)
def _nobody_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not depend on whether a CI job runs them; those of CI jobs say so themselves."""
    for name in ("CI", "BUILD_NUMBER", "PYTHONBREAKPOINT", *VARIABLES.values()):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; a test that needs it is skipped where there is none."""
    folder = Path(os.environ.get("TRACE_MODEL_DATA", _BESIDE_THE_REPOSITORY))
    if not folder.is_dir():
        pytest.skip(
            f"the real checkpoints are not at {folder} (set TRACE_MODEL_DATA to their folder)"
        )
    return folder


@pytest.fixture
def make_row() -> Callable[..., Row]:
    """Makes a Row by hand: a module's output with a given PEIR, or whatever else is said."""

    def make(module: str, peir: float | None = 0.0, note: str = "", **fields: Any) -> Row:
        # One element is off by the PEIR in an interval of 1.
        difference = None
        if peir is not None:
            reference = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
            off = torch.tensor([0.0, 0.0, peir], dtype=torch.float64)
            difference = Difference.of(reference, reference + off)
        defaults = {
            "order": 0, "call": 0, "value": "output", "shape": (1, 3), "dtype": torch.float32,
            "candidate_dtype": torch.float32, "limit": 1e-5,
            "agrees": peir is not None and peir <= 1e-5,
            "remarks": (Remark(RemarkKind.SCALARS, *note.split("; candidate ")),) if note else (),
        }  # fmt: skip
        return Row(module=module, difference=difference, **(defaults | fields))

    return make


@pytest.fixture
def make_comparison() -> Callable[..., Comparison]:
    """Makes a Comparison of rows by hand; the first row that disagrees is the symptom."""

    def make(rows: Sequence[Row], **fields: Any) -> Comparison:
        rows = [replace(row, order=order) for order, row in enumerate(rows)]
        first = next((row for row in rows if not row.agrees), None)
        none = Tally(0, None)
        agreement = Agreement(None, 0, none, none, none, ())
        verdict = Verdict(True, None, None, False, agreement)
        if first is not None:
            symptom = Symptom(first.module, first.call, first.value, first.peir)
            lines = "/a/model.py:3", "/b/model.py:5"
            origin = Origin(first.module, None, OriginKind.COMPUTATION, *lines)
            proof = Proof(Outcome.ALL_AGREES, Replacements(output=(first.module, first.call)))
            details = Divergence((Finding(origin, FindingKind.INSIDE, proof),), first)
            verdict = Verdict(False, symptom, origin, True, details, ("a scale",))
        modules = {row.module: row.module for row in rows}
        coverage = Coverage(modules, (), (), {}, len(rows), 3 * len(rows), (), 0)
        defaults = {"verdict": verdict, "coverage": coverage, "form_differences": ()}
        return Comparison(rows=tuple(rows), **(defaults | fields))

    return make


@pytest.fixture
def blame() -> Callable[..., Comparison]:
    """Gives a comparison made by hand other origins, each confirmed."""

    def give(comparison: Comparison, *origins: Origin) -> Comparison:
        verdict = comparison.verdict
        findings = tuple(
            Finding(origin, FindingKind.INSIDE, Proof(Outcome.ALL_AGREES)) for origin in origins
        )
        details = replace(verdict.details, findings=findings)
        verdict = replace(verdict, origin=origins[0], origins=origins, details=details)
        return replace(comparison, verdict=verdict)

    return give
