"""One report of each writer, kept whole: what a change of its form looks like is seen in the diff.

UPDATE_GOLDEN=1 writes the files again.
"""

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lxml import html
from rich.console import Console

from tracer.comparison.noise_floor import NoiseReading, NoiseRun, Unmeasured
from tracer.measurement.remarks import Remark, RemarkKind
from tracer.measurement.rows import FormDifference
from tracer.regression.baseline import Baseline
from tracer.regression.gating import gate
from tracer.reports import Run, frame, junit, markdown
from tracer.reports import html as page
from tracer.reports import json as document
from tracer.reports.console import show

GOLDEN = Path(__file__).parent / "golden"
RUN = Run("tiny", "port", ("3 tokens",), "trace_model compare tiny --candidate port")


@pytest.fixture
def comparison(make_row, make_comparison, monkeypatch):
    """A divergence with everything that a report may show of it."""
    for writer in (page, document, junit, markdown):
        monkeypatch.setattr(writer, "environment", lambda: {"trace_model": "0", "torch": "1"})
    shapes = (Remark(RemarkKind.SHAPES, "[1, 3]", "[3, 1]"),)
    rows = [
        make_row("model.embed", input_peir=0.0),
        make_row("model.mlp", 0.5, input_peir=0.0),
        make_row("model.head", None, remarks=shapes, input_peir=0.5),
        make_row("", 0.25, input_peir=0.0, dtype=torch.float16),
    ]
    form = FormDifference(1, "model", 0, "kwargs.mask", "None", "float32 [1]", one_is_none=True)
    before = make_comparison([make_row("model.embed"), make_row("model.mlp", 0.1), rows[3]])
    found = make_comparison(rows, form_differences=(form,))
    reading = NoiseReading(None, None, (Unmeasured(NoiseRun.FLOAT64, nonfinite=2),))
    coverage = replace(found.coverage, reference_only=("gone",), reasons={"gone": "no such"})
    found = replace(found, coverage=coverage, verdict=found.verdict.with_beside(reading))
    return found.judged(gate(found, Baseline.of(before, "main.json")))


def on_a_terminal(comparison, run):
    file = io.StringIO()
    show(comparison, console=Console(file=file, width=100), run=run)
    return file.getvalue()


def text_of_page(comparison, run):
    """The page without its script and style, a line for each piece of text."""
    tree = html.fromstring(page.render(comparison, run))
    for element in tree.xpath("//script | //style"):
        element.drop_tree()
    pieces = (" ".join(piece.split()) for piece in tree.itertext())
    return "".join(f"{piece}\n" for piece in pieces if piece)


@pytest.mark.parametrize(("name", "render"), [
    ("console.txt", on_a_terminal), ("page.txt", text_of_page), ("report.json", document.render),
    ("report.xml", junit.render), ("report.md", markdown.render), ("report.csv", frame.csv),
])  # fmt: skip
def test_as_it_was(comparison, name, render):
    found = render(comparison, RUN)
    found = found.decode() if isinstance(found, bytes) else found
    file = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(found)
    assert found == file.read_text()
