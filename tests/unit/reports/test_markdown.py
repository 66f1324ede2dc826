"""The Markdown report: what it says, that nothing in it becomes markup, and that it stays small."""

import re
from dataclasses import replace

import pytest
import torch
from markdown_it import MarkdownIt
from torch import nn

import tracer
from tests.builders.said import said
from tracer.diagnosis.finding import Origin, OriginKind
from tracer.isolation.result import (
    IsolatedCall,
    IsolatedGroup,
    IsolatedModule,
    IsolatedPoint,
    Isolation,
)
from tracer.measurement.rows import FormDifference
from tracer.reports import Run
from tracer.reports.markdown import LIMIT, render


def html_of(text: str) -> str:
    """What a reader of GitHub's kind of Markdown sees, HTML included."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


def text_of(text: str) -> str:
    return re.sub(r"<[^>]*>", "", html_of(text))


class TestContent:
    def test_a_divergence(self, make_row, make_comparison):
        rows = [make_row("a"), make_row("b", 0.5), make_row("c", 0.25, call=1)]
        text = render(make_comparison(rows), Run("tiny", "sdpa", ("3 tokens",), "trace_model x"))
        assert text.startswith("## ❌ diverges: /b/model.py:5, in `b`\n")
        assert "**tiny** against **sdpa**" in text
        assert "> The error is introduced in the forward of `b` itself" in text
        assert "### Where it begins: `b` computes a wrong result" in text
        assert "reference: `/a/model.py:3`" in text
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert lines[0].split("|")[2].strip() == "module"
        assert lines[2].startswith("|  | `a` | `output` | 0 | 0 | 0 | 0 | 1.00e-05 |")
        assert lines[3].startswith("| ▶ | `b` |")
        assert lines[4].startswith("| ✗ | `c#1` |")
        assert "```sh\ntrace_model x\n```" in text
        assert "- 3 tokens" in text
        assert "torch" in text.splitlines()[-1]

    def test_agreement_and_folded_rows(self, make_row, make_comparison):
        text = render(make_comparison([make_row("a")]))
        assert text.startswith("## ✅ agrees")
        assert "### Values" in text
        assert "begins" not in text
        rows = [make_row(f"m{i}", 0.5 if i > 60 else 1e-7) for i in range(100)]
        text = render(make_comparison(rows))
        assert re.search(r"_… \d+ rows agree, PEIR at most 1\.00e-07_", text)
        assert "| ▶ | `m61` |" in text
        assert "| ✗ | `m62` |" in text

    def test_a_table_of_many_open_rows_is_around_the_divergence(self, make_row, make_comparison):
        masks = [make_row(f"m{i}", 0.5, value="kwargs.attention_mask") for i in range(60)]
        comparison = make_comparison([*masks, make_row("first", 0.5), make_row("last", 0.5)])
        symptom = replace(comparison.verdict.symptom, module="first", value="output")
        text = render(replace(comparison, verdict=replace(comparison.verdict, symptom=symptom)))
        assert "| ▶ | `first` |" in text
        assert "| ✗ | `m59` |" in text
        assert "`m39`" not in text
        assert "40 further lines are in the other reports." in text

    def test_the_source_and_what_modules_introduce(
        self, make_row, make_comparison, blame, tmp_path
    ):
        file = tmp_path / "model.py"
        file.write_text("".join(f"        line_{i}()\n" for i in range(1, 21)))
        comparison = make_comparison([make_row("a", 0.5)])
        origin = Origin("a", "mask", OriginKind.ARGUMENT, f"{file}:10", f"{file}:99")
        text = render(blame(comparison, origin))
        assert "### Where it begins: `a` passes a wrong `mask`" in text
        assert "     9   line_9()\n    10 > line_10()\n    11   line_11()" in text
        assert text.count("```python") == 1  # the candidate's line is beyond the end of the file
        calls = [
            IsolatedCall(f"m{i}", i % 2, "output", False, 0, None, 0.5, 0.25, 0.125, 1 / 12)
            for i in range(12)
        ]
        modules = tuple(IsolatedModule(call.module, call, 1, call.share) for call in calls)
        comparison = make_comparison([make_row("a", 0.5)])
        text = render(replace(comparison, isolation=Isolation("leaves", tuple(calls), modules)))
        assert "| 8.3% | `m1#1` | - | 5.00e-01 | 2.50e-01 | 1.25e-01 |" in text
        assert "… 2 more" in text

    def test_what_all_layers_introduce(self, make_row, make_comparison):
        call = IsolatedCall(
            *("m.0.attn", 0, "o_proj.kwargs.input", True, 0, None, 0.5, 0.25, 0.125, 0.75),
            receiver="o_proj",
        )
        found = Isolation(
            "leaves",
            (call,),
            (IsolatedModule("m.0.attn", call, 1, 0.75),) * 7,
            groups=(
                IsolatedGroup("m.*.attn", 28, 0.75, "m.0.attn", 0.5, 0.125),
                *(IsolatedGroup(f"m.{i}", 1, 0.01, f"n.{i}", 0.01, 0.25) for i in range(11)),
            ),
            points=(IsolatedPoint("m.*.attn.p", "uint8 activation", "the | weights", 28, 0.6),)
            * 12,
        )
        text = render(replace(make_comparison([make_row("a", 0.5)]), isolation=found))
        assert "| 75.0% | `m.*.attn` | 28 | 50.0% | 1.25e-01 |" in text
        assert "| 1.0% | `n.0` | 1 | 1.0% | 2.50e-01 |" in text
        assert "| 60.0% | `m.*.attn.p` | 28 | uint8 activation | the \\| weights |" in text
        assert "| 75.0% | `m.0.attn`: what it passes to `o_proj` | - | 5.00e-01 |" in text
        assert text.count("… 2 more") == 3
        tables = MarkdownIt("commonmark").enable("table").render(text)
        assert tables.count("<table>") == 4

    def test_origins_and_rankings(self, make_row, make_comparison, blame):
        comparison = make_comparison([make_row("a", 0.5)])
        places = tuple(Origin(f"m{i}", None, OriginKind.PARAMETER, None, None) for i in range(7))
        text = render(blame(comparison, *places))
        assert "### Origin 2 of 7: `m1` has wrong parameters" in text
        assert "### Origin 6 of 7" not in text
        run = Run("a", "b", quantized=True, differences_expected=True)
        rows = [make_row("embed", 0.5, input_peir=0.0), make_row("up", 0.75, input_peir=0.5)]
        text = render(make_comparison(rows), run)
        assert text.startswith("## ⚠️ diverges at embed, PEIR 5.00e-01, as expected")
        assert "| `embed` | 0 | 5.00e-01 | inf |" in text
        assert "Where it begins" not in text

    def test_coverage(self, make_row, make_comparison):
        names = [f"n{i}" for i in range(9)]
        forms = [
            FormDifference(i, f"m{i}", 0, f"kwargs.x{i}", "None", "float32 [1]") for i in range(10)
        ]
        comparison = make_comparison([make_row("a")], form_differences=tuple(forms))
        coverage = replace(
            comparison.coverage,
            reference_only=tuple(names),
            reasons=dict.fromkeys(names, "the candidate has no such module"),
        )
        text = render(replace(comparison, coverage=coverage))
        assert "- Unpaired: the candidate has no such module: `n0`, `n1`" in text
        assert "`n4` and 4 more" in text
        assert "- In another form: `x0` is of another form: 1 call; `x1` is of another" in text
        assert "1 call; 6 more reasons" in text


HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[click](javascript:alert(1))",
    "a|b|c", "`` ``` ```` `", "**bold** __x__ ~~y~~", "x\n\n# heading\n\n```\n</details>",
]  # fmt: skip


class TestEscaping:
    @pytest.mark.parametrize("hostile", HOSTILE)
    def test_nothing_becomes_markup(self, make_row, make_comparison, hostile):
        rows = [
            make_row(hostile, 0.5, note=f"{hostile}; candidate {hostile}"),
            make_row("b", 0.5),
            make_row("c", 0.25),
        ]
        comparison = make_comparison(
            rows,
            form_differences=(
                FormDifference(1, hostile, 0, f"kwargs.{hostile}", hostile, hostile),
            ),
        )
        verdict = said(comparison.verdict, f"In `{hostile}`: {hostile}")
        run = Run(hostile, hostile, (hostile,), hostile)
        page = html_of(render(replace(comparison, verdict=verdict), run))
        for tag in ("<script", "<img", "<a ", "<del", "<h1"):
            assert tag not in page
        assert page.count("<h2>") == 1
        assert page.count("<details>") == page.count("</details>") == 1
        assert page.count("<table>") == 1
        assert {row.count("<td") for row in page.split("<tr>") if "<td" in row} == {9}

    def test_bold_and_links_stay_text(self, make_row, make_comparison):
        run = Run("**a** [b](c)", "d", ("**e**",))
        shown = text_of(render(make_comparison([make_row("x")]), run))
        assert "**a** [b](c) against d" in shown
        assert "**e**" in shown


class TestSize:
    def test_of_thousands_of_modules_with_long_names(self, make_row, make_comparison):
        deep = "x" * 400
        rows = [
            make_row(f"{deep}.{i}", 0.5 * (i % 2), note="n" * 5_000, value=f"output.{'v' * 900}")
            for i in range(3_000)
        ]
        comparison = make_comparison(rows)
        names = [f"{deep}.{i}" for i in range(3_000)]
        coverage = replace(
            comparison.coverage,
            reference_only=tuple(names),
            reasons={name: f"{i}: {deep}" for i, name in enumerate(names)},
        )
        explanation = "\n".join(f"`{deep}` é {i} " + "y" * 3_000 for i in range(500))
        verdict = said(comparison.verdict, explanation)
        run = Run(deep, deep, tuple(names), "c " * 40_000)
        text = render(replace(comparison, verdict=verdict, coverage=coverage), run)
        assert len(text.encode()) <= LIMIT
        assert text.startswith("## ❌ diverges: /b/model.py:5, in ")
        assert "more lines" in text
        assert text.rstrip().endswith(f"they do not fit in {LIMIT // 1000} KB._")

    @pytest.mark.parametrize("letter", ["*", "😀", "`", "&"])
    def test_the_verdict_is_there_whatever_it_is_made_of(self, make_row, make_comparison, letter):
        long = letter * 5_000
        comparison = make_comparison([make_row(long, 0.5)])
        verdict = said(comparison.verdict, "\n".join([long] * 100))
        text = render(replace(comparison, verdict=verdict), Run(long, long))
        assert len(text.encode()) <= LIMIT
        assert text.startswith("## ❌ diverges: /b/model.py:5, in ")
        assert re.search(r"> … \d+ more lines", text)

    def test_nothing_is_left_out_of_a_usual_one(self):
        torch.manual_seed(0)
        layers = [nn.Linear(8, 8) for _ in range(40)]
        other = [nn.Linear(8, 8) for _ in range(40)]
        reference, candidate = nn.Sequential(*layers), nn.Sequential(*other)
        candidate.load_state_dict(reference.state_dict())
        with torch.no_grad():
            candidate[20].weight[0, 0] += 1.0
        text = render(tracer.compare(reference, candidate, torch.randn(2, 8)))
        assert "left out" not in text
        assert "| ▶ | `20` |" in text
        assert "```text" in text
        assert len(text.encode()) < 20_000
