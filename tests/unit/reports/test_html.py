"""The HTML report: its structure, that it is safe to open, and how it works in a real browser."""

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import lxml.html
import numpy as np
import pytest
import torch
from torch import nn

import tracer
from tests.builders import browser
from tests.builders.said import said
from tracer.diagnosis.finding import Origin, OriginKind
from tracer.isolation.causes import Cause, Rounding
from tracer.isolation.result import (
    IsolatedCall,
    IsolatedGroup,
    IsolatedModule,
    IsolatedPoint,
    Isolation,
)
from tracer.measurement.rows import FormDifference
from tracer.reports import Run, save, wants_samples
from tracer.reports.html import render
from tracer.tensors.samples import SAMPLES

HOSTILE = "</script><script>window.stolen=1</script><img src=x onerror=window.stolen=1>`b`{{ 7*7 }}"


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.up = nn.Linear(size, size)
        self.down = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Stack(nn.Module):
    def __init__(self, depth: int, size: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(size) for _ in range(depth))
        self.head = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def compared(depth: int, **options: object) -> tracer.Comparison:
    """Two stacks of blocks, of which the second has another weight in its middle."""
    torch.manual_seed(0)
    reference, candidate = Stack(depth), Stack(depth)
    candidate.load_state_dict(reference.state_dict())
    with torch.no_grad():
        candidate.layers[depth // 2].up.weight[1, 2] += 1.0
    return tracer.compare(
        reference, candidate, torch.randn(2, 5, 8), samples=SAMPLES, confirm=depth < 50, **options
    )


@pytest.fixture(scope="module")
def diverging() -> tracer.Comparison:
    return compared(4, isolate="leaves", noise_floor=True)


@pytest.fixture(scope="module")
def large() -> tracer.Comparison:
    """Of 2,003 modules."""
    return compared(500)


def page_of(comparison: tracer.Comparison, run: Run | None = None) -> lxml.html.HtmlElement:
    return lxml.html.document_fromstring(render(comparison, run))


def data_of(page: lxml.html.HtmlElement) -> dict:
    return json.loads(page.get_element_by_id("data").text)


def words(element: lxml.html.HtmlElement) -> str:
    return " ".join(element.text_content().split())


def spaced(element: lxml.html.HtmlElement) -> str:
    """The text with a blank between elements, as between the cells of a table."""
    return " ".join(" ".join(element.itertext()).split())


class TestStructure:
    @pytest.mark.covers
    def test_the_verdict_comes_first(self, diverging):
        run = Run("stack", "edited", ("random inputs",), "trace_model compare stack")
        page = page_of(diverging, run)
        first, *others = page.xpath("//section/@id")
        assert first == "verdict"
        assert others == ["curve", "modules", "detail", "isolation", "coverage", "environment"]
        section = page.get_element_by_id("verdict")
        assert words(section.find("h1")).endswith("diverges: weight of layers.2.up differs")
        assert "confirmed by a counterfactual run" in words(section)
        for line in diverging.verdict.explanation.replace("`", "").splitlines():
            assert " ".join(line.split()) in words(section)
        assert "stack against edited" in words(page)
        assert "trace_model compare stack" in words(page.get_element_by_id("environment"))
        assert torch.__version__ in words(page.get_element_by_id("environment"))

    def test_agreement_has_no_origin(self, make_row, make_comparison):
        page = page_of(make_comparison([make_row("a")]))
        assert page.body.get("class") == "agrees"
        assert not page.find_class("origin")
        assert "isolation" not in page.xpath("//section/@id")

    def test_the_source_of_both_sides(self, make_row, make_comparison, blame, tmp_path):
        file = tmp_path / "model.py"
        file.write_text("".join([f"    if a < {i} and b > {i}: pass\n" for i in range(1, 21)]))
        comparison = make_comparison([make_row("a", 0.5)])
        places = (
            Origin("a", "mask", OriginKind.ARGUMENT, f"{file}:10", None),
            Origin("b", None, OriginKind.PARAMETER, "/nowhere.py:3", f"{file}:20"),
        )
        first, second = page_of(blame(comparison, *places)).find_class("origin")
        assert words(first.find("summary")) == "Origin 1 of 2: a passes a wrong mask"
        assert first.get("open") is not None
        assert second.get("open") is None
        (marked,) = first.find_class("marked")
        assert marked.text_content() == "10if a < 10 and b > 10: pass"
        assert len(first.find_class("line")) == 9
        assert "There is no line to show." in words(first)
        assert "not on the machine that wrote this report" in words(second)
        assert words(second.find_class("marked")[0]) == "20if a < 20 and b > 20: pass"

    def test_what_modules_introduce(self, make_row, make_comparison):
        calls = tuple(
            IsolatedCall(f"m{i}", i % 2, "output", False, 0, None, 0.5, 0.25, 0.125, 1 / 25)
            for i in range(25)
        )
        causes = (Cause("weight", "uint4 weight", 0.5, 0.25), Cause("act", "uint8", 0.5, 0.375))
        modules = tuple(IsolatedModule(c.module, c, 1, c.share, causes) for c in calls)
        comparison = make_comparison([make_row("a", 0.5)])
        page = page_of(replace(comparison, isolation=Isolation("blocks", calls, modules)))
        section = page.get_element_by_id("isolation")
        assert len(section.xpath(".//tbody/tr")) == 20
        assert spaced(section.xpath(".//tbody/tr")[1]) == (
            "4.0 % m1#1 - 5.00e-01 2.50e-01 1.25e-01 "
            "weight (uint4 weight): 5.00e-01 → 2.50e-01 act (uint8): 5.00e-01 → 3.75e-01"
        )
        assert "5 more introduce 20.0 % together." in words(section)

    def test_what_all_layers_introduce(self, make_row, make_comparison):
        call = IsolatedCall(
            *("model.layers.1.attn", 0, "o_proj.kwargs.input", True, 0),
            *(None, 0.5, 0.25, 0.125, 0.75),
            receiver="o_proj",
        )
        causes = (Cause("softmax", "uint8 activation", 0.5, 0.25, "the <weights>"),)
        found = Isolation(
            "leaves",
            (call,),
            (IsolatedModule("model.layers.1.attn", call, 1, 0.75, causes),),
            groups=tuple(
                IsolatedGroup(f"model.layers.*.m{i}", 28, 0.04, "model.layers.1.attn", 0.02, 0.5)
                for i in range(25)
            ),
            points=tuple(
                IsolatedPoint(
                    f"layers.*.p{i}",
                    "uint8 activation",
                    "the <weights>",
                    28,
                    0.02,
                    Rounding(1000, 0.25, 0.015, 0.0, 0.0),
                )
                for i in range(21)
            ),
        )
        page = page_of(replace(make_comparison([make_row("a", 0.5)]), isolation=found))
        groups, points = (page.get_element_by_id(name) for name in ("groups", "points"))
        assert len(groups.xpath(".//tbody/tr")) == len(points.xpath(".//tbody/tr")) == 20
        assert spaced(groups.xpath(".//tbody/tr")[0]) == "4.0 % model.layers.*.m0 28 2.0 % 5.00e-01"
        (link,) = groups.xpath(".//tbody/tr[1]//button")
        assert (link.get("data-module"), link.get("data-call")) == ("model.layers.1.attn", "0")
        assert spaced(points.xpath(".//tbody/tr")[0]) == (
            "2.0 % layers.*.p0 28 uint8 activation the <weights> 1.5% underflow, 25% zero"
        )
        said = spaced(page.get_element_by_id("isolation"))
        assert "5 more introduce 20.0 % together." in said
        assert "1 more." in said
        assert "model.layers.1.attn what it passes to o_proj - " in said
        assert "softmax (uint8 activation): 5.00e-01 → 2.50e-01 the <weights>" in said

    def test_a_quantised_candidate_is_ranked(self, make_row, make_comparison):
        run = Run("a", "b", quantized=True, differences_expected=True)
        page = page_of(make_comparison([make_row("embed", 0.5, input_peir=0.0)]), run)
        assert page.body.get("class") == "expected"
        assert spaced(page.get_element_by_id("ranking")).endswith("embed 0 5.00e-01 inf")
        assert data_of(page)["origins"] == []

    def test_coverage(self, make_row, make_comparison):
        forms = (FormDifference(1, "", 0, "kwargs.mask", "None", "float32 [1]"),)
        comparison = make_comparison([make_row("a")], form_differences=forms)
        coverage = replace(
            comparison.coverage, candidate_only=("x", "y"), reasons={"x": "new", "y": "new"}
        )
        page = page_of(replace(comparison, coverage=coverage))
        section = page.get_element_by_id("coverage")
        assert "new 2 places x y" in spaced(section)
        assert "mask: None; candidate float32 [1] 1 place (root)" in spaced(section)
        assert data_of(page)["unseen"] == {"x": "new", "y": "new"}


class TestData:
    def test_rows_in_columns(self, diverging):
        data = data_of(page_of(diverging))
        columns, texts = data["rows"], data["texts"]
        assert {len(column) for column in columns.values()} == {len(diverging.rows)}
        assert [texts[i] for i in columns["module"]] == [row.module for row in diverging.rows]
        assert [texts[i] for i in columns["value"]] == [row.value for row in diverging.rows]
        assert columns["agrees"] == [int(row.agrees) for row in diverging.rows]
        assert columns["peir"] == pytest.approx([row.peir for row in diverging.rows], rel=1e-4)
        assert data["symptom"] == ["layers.2.up", 0, "output"]
        assert data["origins"] == ["layers.2.up"]
        assert len(data["introduced"]) == len(diverging.isolation.calls)

    def test_numbers_that_json_does_not_hold(self, make_row, make_comparison):
        data = data_of(page_of(make_comparison([make_row("a", None, limit=float("nan"))])))
        assert (data["rows"]["peir"], data["rows"]["limit"]) == (["Infinity"], ["NaN"])
        assert data["rows"]["mean"] == [None]

    def test_samples_are_those_of_the_rows(self, diverging):
        samples = data_of(page_of(diverging))["samples"]
        outputs = [str(i) for i, row in enumerate(diverging.rows) if row.is_output]
        assert list(samples) == outputs
        for i, drawn in samples.items():
            kept = diverging.rows[int(i)].sample
            scale = drawn["high"] - drawn["low"]
            for side in ("reference", "candidate"):
                levels = np.frombuffer(base64.b64decode(drawn[side]), "<u2")
                values = drawn["low"] + levels / 65_535 * scale
                assert values == pytest.approx(getattr(kept, side), abs=2e-4 * scale)
            assert drawn["counts"] == list(kept.counts)

    def test_samples_of_pairs_that_are_finite(self, make_row, make_comparison):
        model = nn.Identity()
        values = torch.tensor([0.0, float("inf"), float("nan"), 1.0])
        data = data_of(page_of(tracer.compare(model, model, values, samples=SAMPLES)))
        (drawn,) = data["samples"].values()
        assert len(base64.b64decode(drawn["reference"])) == 4
        assert data_of(page_of(make_comparison([make_row("a")])))["samples"] == {}


class TestSafety:
    def test_nothing_is_fetched(self, diverging):
        text = render(diverging, Run("a", "b"))
        page = lxml.html.document_fromstring(text)
        assert (page.xpath("//@src"), page.xpath("//@href")) == ([], ["data:,"])
        assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", text)
        (policy,) = page.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")
        assert policy.startswith("default-src 'none';")

    def test_hostile_texts_and_backquotes_stay_texts(self, make_row, make_comparison):
        page = page_of(*hostile(make_row, make_comparison))
        assert (len(page.xpath("//script")), page.xpath("//img")) == (2, [])
        assert HOSTILE.split("`")[0] in page.get_element_by_id("verdict").text_content()
        assert HOSTILE in data_of(page)["texts"]
        assert "{{ 7*7 }}" in page.text_content()
        comparison = make_comparison([make_row("a", 0.5)])
        verdict = said(comparison.verdict, "a ` <b> of\n`c` and `<d>`")
        first, second = page_of(replace(comparison, verdict=verdict)).find_class("explanation")[0]
        assert words(first) == "a ` <b> of"
        assert [code.text for code in second.iter("code")] == ["c", "<d>"]

    def test_it_is_asked_for_samples(self):
        assert wants_samples(["a.json", Path("b.HTML")])
        assert not wants_samples(["a.json", "b.md"])


def peir(comparison: tracer.Comparison) -> str:
    return f"{comparison.verdict.symptom.peir:.2e}"


def hostile(make_row, make_comparison) -> tuple[tracer.Comparison, Run]:
    rows = [
        make_row("a"),
        make_row(HOSTILE, 0.5, note=f"{HOSTILE}; candidate {HOSTILE}", value="output"),
        make_row("b"),
    ]
    forms = (FormDifference(1, HOSTILE, 0, f"kwargs.{HOSTILE}", HOSTILE, HOSTILE),)
    comparison = make_comparison(rows, form_differences=forms)
    verdict = said(comparison.verdict, f"{HOSTILE}\n  {HOSTILE}")
    return replace(comparison, verdict=verdict), Run(HOSTILE, HOSTILE, (HOSTILE,), HOSTILE)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if browser.executable() is None:
        pytest.skip("there is no Chromium to open the report in")
    with browser.page(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def show(page: browser.Page, tmp_path: Path) -> Iterator[object]:
    """Writes and opens a report; afterwards nothing may have been fetched, or gone wrong."""

    def opened(comparison, run=None, **how):
        file = tmp_path / "report.html"
        save(comparison, file, run=run)
        page.requests.clear()
        page.open(file, **how)
        return page

    yield opened
    assert page.problems == []
    assert all(request.startswith(("file:", "data:")) for request in page.requests)
    assert len(page.requests) <= 2


def text(page: browser.Page, selector: str) -> str:
    return " ".join(page.run(f"document.querySelector('{selector}').innerText").split())


def listed(page: browser.Page) -> list[str]:
    return page.run(
        "[...document.querySelectorAll('.node:not(.heads) bdi')].map(name => name.innerText)"
    )


def choose(page: browser.Page, control: str, value: str) -> None:
    page.run(
        f"(() => {{ const control = document.getElementById('{control}');"
        f" control.value = {json.dumps(value)};"
        " for (const kind of ['input', 'change']) control.dispatchEvent(new Event(kind));"
        " return new Promise(done => setTimeout(done, 150)); })()"
    )


def point(page: browser.Page, share: float) -> tuple[float, float]:
    """A point of the curve, at a share of its calls."""
    x, y, width, height = page.run(
        "(() => { document.getElementById('curve').scrollIntoView();"
        " const box = document.getElementById('plot').getBoundingClientRect();"
        " return [box.left, box.top, box.width, box.height]; })()"
    )
    return x + 46 + share * (width - 58), y + height / 2


class TestBrowser:
    def test_it_opens_at_the_divergence(self, show, diverging):
        page = show(diverging)
        assert text(page, "#detail-title") == "layers.2.up"
        assert "an origin of the divergence" in text(page, "#detail")
        assert text(page, ".node.selected bdi") == "up"
        assert page.run("document.querySelectorAll('#detail .bar').length") == 41
        pairs = page.run("document.querySelector('#detail .pairs').getAttribute('d')")
        row = next(row for row in diverging.rows if row.module == "layers.2.up" and row.is_output)
        assert pairs.count("M") == len(row.sample.reference)
        assert "x noise" in text(page, "#detail")
        assert "own PEIR" in text(page, "#detail")

    def test_the_tree(self, show, diverging):
        page = show(diverging)
        everything = listed(page)
        assert (everything[0], everything.count("up")) == ("(root)", 4)
        page.run("document.getElementById('collapse').click()")
        assert listed(page) == ["(root)", "layers", "head"]
        page.run("document.querySelectorAll('.node .twist')[2].parentElement.parentElement.click()")
        page.run("document.querySelectorAll('.node .twist')[1].click()")
        assert listed(page) == ["(root)", "layers", "0", "1", "2", "3", "head"]
        page.run("document.getElementById('expand').click()")
        assert sorted(listed(page)) == sorted(everything)

    def test_search_filter_and_sort(self, show, diverging):
        page = show(diverging)
        choose(page, "search", "UP")
        assert listed(page) == [f"layers.{i}.up" for i in range(4)]
        choose(page, "search", "layers.1.*")
        assert listed(page) == ["layers.1.norm", "layers.1.up", "layers.1.down"]
        choose(page, "search", "[nothing(")
        assert (listed(page), text(page, ".empty")) == ([], "No module is like that.")
        choose(page, "search", "")
        choose(page, "filter", "differs")
        frame = diverging.to_frame()
        assert set(listed(page)) == {name or "(root)" for name in frame[~frame.agrees].module}
        choose(page, "sort", "peir")
        worst = frame[frame.value == "output"].groupby("module").peir.max()
        worst = worst[worst > 1e-5].sort_values(ascending=False)
        assert listed(page) == [name or "(root)" for name in worst.index]
        choose(page, "filter", "all")
        choose(page, "sort", "own")
        assert listed(page)[0] == diverging.isolation.modules[0].module

    def test_the_curve(self, show, diverging):
        page = show(diverging)
        calls = [row for row in diverging.rows if row.is_output]
        page.move(*point(page, 0.0))
        assert text(page, ".tip").startswith(f"{calls[0].module} PEIR 0")
        x, y = point(page, 1.0)
        page.drag(x, y, x)  # a click
        assert text(page, "#detail-title") == "(root)"
        page.run("document.getElementById('plot').focus()")
        page.key("ArrowLeft")
        assert text(page, "#detail-title") == calls[-2].module
        assert "differs first" in page.run("document.querySelector('#plot svg').textContent")

    def test_zooming(self, show, diverging):
        page = show(diverging)
        dots = "document.querySelector('.dots.cool').getAttribute('d').length"
        before = page.run(dots)
        assert page.run("document.getElementById('unzoom').hidden") is True
        x, y = point(page, 0.1)
        page.drag(x, y, point(page, 0.4)[0])
        assert 0 < page.run(dots) < before
        page.run("document.getElementById('unzoom').click()")
        assert page.run(dots) == before
        assert page.run("document.getElementById('unzoom').hidden") is True

    def test_a_link_of_a_table_selects(self, show, diverging):
        page = show(diverging)
        page.run("document.querySelectorAll('#isolation .link')[0].click()")
        assert text(page, "#detail-title") == diverging.isolation.modules[0].module

    def test_other_values_of_a_module(self, show, make_row, make_comparison):
        rows = [
            make_row("m", 0.5, value="kwargs.x"),
            make_row("m", 0.25, value="output.0"),
            make_row("m", 0.0, value="output.0", call=1),
            make_row("m", None, value="output.1", call=1, note="shape [1]; candidate [2]"),
        ]
        page = show(make_comparison(rows))
        lines = "document.querySelectorAll('.values tbody tr')"
        assert page.run(f"[...{lines}].map(line => line.innerText.split('\\t')[0])") == [
            *("#0 kwargs.x", "#0 output.0", "#1 output.0", "#1 output.1")
        ]
        page.run(f"{lines}[3].click()")
        assert "shape [1]; candidate [2]" in text(page, ".figures")
        assert "No values were kept" in text(page, "#detail")
        page.run(f"{lines}[0].click()")
        assert "Of arguments no values are kept." in text(page, "#detail")

    def test_what_was_not_compared(self, show, make_row, make_comparison):
        comparison = make_comparison([make_row("a"), make_row("b")])
        coverage = replace(
            comparison.coverage, reference_only=("gone.inner",), reasons={"gone.inner": "no such"}
        )
        page = show(replace(comparison, coverage=coverage))
        choose(page, "filter", "unseen")
        assert listed(page) == ["(root)", "gone", "gone.inner"]
        page.run("document.querySelectorAll('.node:not(.heads)')[2].click()")
        assert "Not compared: no such." in text(page, "#detail")

    @pytest.mark.parametrize("width", [1400, 360])
    def test_hostile_texts_do_nothing(self, show, make_row, make_comparison, width):
        page = show(*hostile(make_row, make_comparison), width=width)
        assert page.run("typeof window.stolen") == "undefined"
        assert text(page, "#detail-title") == HOSTILE
        assert page.run("document.querySelectorAll('img').length") == 0
        assert page.run("document.documentElement.scrollWidth") <= width

    @pytest.mark.parametrize("dark", [False, True])
    @pytest.mark.parametrize("width", [1400, 360])
    def test_on_a_phone_and_in_the_dark(self, show, diverging, width, dark):
        image = pytest.importorskip("PIL.Image")
        page = show(diverging, Run("stack", "edited"), width=width, height=800, dark=dark)
        assert page.run("document.documentElement.scrollWidth") <= width
        picture = np.asarray(image.open(io.BytesIO(page.picture())).convert("RGB"), dtype=float)
        assert picture.shape == (800, width, 3)
        ground = np.median(picture, axis=(0, 1)).mean()
        assert ground < 60 if dark else ground > 195
        red = (picture[..., 0] > 150) & (picture[..., 1:].max(axis=-1) < 140)
        assert red.sum() > 500  # the badge and the bar over the verdict
        contrast = np.abs(picture.mean(axis=-1) - ground) > 90
        assert contrast.mean() > 0.02  # there is text to read

    def test_values_come_up_from_below_on_a_phone(self, show, diverging):
        page = show(diverging, width=360, height=700)
        shown = "getComputedStyle(document.getElementById('detail')).display"
        assert page.run(shown) == "none"
        page.run("document.querySelectorAll('.node:not(.heads)')[4].click()")
        assert page.run(shown) == "block"
        assert page.run("document.getElementById('detail').getBoundingClientRect().bottom") == 700
        page.run("document.getElementById('close').click()")
        assert page.run(shown) == "none"

    def test_two_thousand_modules(self, show, large):
        assert len(large.coverage.paired_modules) == 2003
        page = show(large)
        assert text(page, "#count").endswith("of 2003 shown, 1001 differ")
        assert len(listed(page)) < 600
        assert text(page, "#detail-title") == "layers.250.up"
        page.run("document.getElementById('expand').click()")
        assert len(listed(page)) == 2003
        choose(page, "search", "layers.42*.down")
        assert listed(page) == [f"layers.{i}.down" for i in sorted([42, *range(420, 430)])]
        choose(page, "search", "")
        choose(page, "sort", "peir")
        assert len(listed(page)) == 2003

    def test_a_comparison_without_rows(self, show, make_comparison):
        page = show(make_comparison([]))
        assert text(page, "#detail-title") == "No module selected"
        assert page.run("document.getElementById('curve').hidden") is True
