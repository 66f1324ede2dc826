"""What results show of themselves: one line as text, and in a notebook a page that is shut in."""

import re
import sys
import types
from pathlib import Path

import lxml.html
import pytest
import torch
from torch import nn

import tracer
from tests.builders import browser
from tracer.reports import notebook
from wrappers import evaluate

HOSTILE = "</iframe></pre><script>top.stolen=1</script><img src=x onerror=top.stolen=1>\"'"


class Net(nn.Module):
    """Its second layer has a name that is dangerous to show."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.register_module(HOSTILE.replace(".", "_"), nn.Linear(4, 4))
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.children()
        return second(first(x) * self.factor)


def compared(**options: object) -> tracer.Comparison:
    torch.manual_seed(0)
    reference, candidate = Net(), Net(1.5)
    candidate.load_state_dict(reference.state_dict())
    return tracer.compare(reference, candidate, torch.randn(2, 4), **options)


@pytest.fixture(scope="module")
def diverging() -> tracer.Comparison:
    comparison = compared(isolate="leaves")
    return comparison.judged(tracer.gate(comparison, max_peir={"first": 1.0}))


@pytest.fixture(scope="module")
def shown(diverging: tracer.Comparison) -> dict[str, object]:
    """One of each that a notebook shows as a page."""
    return {
        "comparison": diverging,
        "verdict": diverging.verdict,
        "isolation": diverging.isolation,
        "gate": diverging.gate,
        "flow": tracer.flow(Net(), torch.ones(1, 4)),
    }


KINDS = ("comparison", "verdict", "isolation", "gate", "flow")


def frame_of(found: object) -> lxml.html.HtmlElement:
    """The one element that a notebook is given."""
    [frame] = lxml.html.fragments_fromstring(found._repr_html_())
    return frame


@pytest.mark.parametrize("kind", KINDS)
class TestPages:
    def test_it_is_one_frame_that_is_shut_in(self, kind, shown):
        frame = frame_of(shown[kind])
        assert frame.tag == "iframe"
        # With `allow-same-origin` beside it a script could take the sandbox off.
        assert frame.get("sandbox") == ("allow-scripts" if kind == "comparison" else "")
        document = lxml.html.document_fromstring(frame.get("srcdoc"))
        [policy] = document.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")
        assert policy.startswith("default-src 'none'")
        assert not document.xpath("//img | //link[not(starts-with(@href, 'data:'))] | //iframe")
        assert not document.xpath("//@onerror | //@src")
        if kind != "comparison":
            assert not document.xpath("//script")

    def test_it_has_a_light_and_a_dark_scheme(self, kind, shown):
        document = frame_of(shown[kind]).get("srcdoc")
        assert "@media (prefers-color-scheme: dark)" in document
        assert "color-scheme: light dark" in document

    def test_its_text_is_one_short_line(self, kind, shown):
        said = repr(shown[kind])
        assert said.isprintable()
        assert len(said) < 420
        assert said.startswith(f"<{type(shown[kind]).__name__}: ")


def text_of(found: object) -> str:
    document = lxml.html.document_fromstring(frame_of(found).get("srcdoc"))
    return document.text_content()


def test_pages_hold_what_a_terminal_shows(shown, diverging):
    [verdict, isolation, gate, flow] = [text_of(shown[kind]) for kind in KINDS[1:]]
    first = diverging.verdict.explanation.splitlines()[0]
    assert " ".join(first.split()) in " ".join(verdict.split())
    assert "where the error is introduced (leaves)" in isolation
    assert "gate: fails (--fail-on divergence)" in gate
    assert re.search(r"^  first \(Linear\) .*float32 1x4 ", flow, re.MULTILINE)
    assert diverging.verdict.explanation.splitlines()[0][:20] in text_of(diverging)


def test_what_is_marked_keeps_its_style(shown):
    document = lxml.html.document_fromstring(frame_of(shown["gate"]).get("srcdoc"))
    [marked] = document.xpath("//span[@class='bold red']")
    assert marked.text == "gate: fails (--fail-on divergence)"


def test_the_frame_is_as_high_as_its_text_up_to_a_limit():
    def height(lines: int) -> int:
        made = notebook.page(["\n".join("x" * lines)])
        return int(re.search(r"height: (\d+)px", made)[1])

    assert height(3) - height(2) == height(2) - height(1) > 10
    assert height(100) == height(1000) < 1000


def test_what_is_no_result_is_refused():
    with pytest.raises(TypeError, match="expected a result of the tracer's, found a dict"):
        notebook.html({})


class TestLines:
    def test_models_that_agree(self):
        model = nn.Linear(2, 2)
        comparison = tracer.compare(model, model, torch.ones(1, 2))
        assert repr(comparison) == (
            "<Comparison: agrees; 1 of 1 modules, 1 calls, 4 elements compared>"
        )
        assert repr(comparison.verdict) == "<Verdict: agrees>"
        assert repr(comparison.coverage) == f"<Coverage: {comparison.coverage}>"
        assert repr(comparison.rows[-1]) == (
            "<Row: output of the root module, float32 [1, 2], PEIR 0, agrees>"
        )
        assert repr(tracer.Baseline.of(comparison)) == (
            "<Baseline: the baseline, agrees, 1 outputs of 1 modules>"
        )

    def test_models_that_diverge(self):
        torch.manual_seed(0)
        reference = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        candidate = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        candidate.load_state_dict(reference.state_dict())
        with torch.no_grad():
            candidate[1].weight += 1.0
        comparison = tracer.compare(reference, candidate, torch.ones(1, 2), isolate="leaves")
        peir = f"{comparison.verdict.symptom.peir:.3g}"
        assert repr(comparison.verdict) == (
            f"<Verdict: diverges; first visible at output of 1, PEIR {peir}; origin 1, confirmed>"
        )
        assert "modules (leaves), most by 1, 100.0%>" in repr(comparison.isolation)
        assert repr(comparison).startswith("<Comparison: diverges")
        gate = tracer.gate(comparison)
        assert repr(gate) == "<Gate: fails: the models diverge (fail_on='divergence')>"

    def test_what_zoom_finds(self, diverging):
        assert repr(diverging.zoomed).startswith("<Zoomed: wrong in the root at ")

    def test_flow_and_captured_values(self):
        model = nn.Sequential(nn.Linear(2, 3))
        flow = tracer.flow(model, torch.ones(1, 2))
        assert repr(flow) == "<Flow: Sequential, 2 calls of 2 modules>"
        assert repr(flow.calls[1]) == (
            "<FlowCall 0 of 0 (Linear): input float32 [1, 2] -> output float32 [1, 3]>"
        )
        [*_, captured] = tracer.capture(model, model, torch.ones(1, 2), include="0")
        assert repr(captured) == "<Captured: output of 0, float32 [1, 3]>"

    def test_perplexity_has_its_value(self):
        found = evaluate.Perplexity(losses=(1.0, 2.0), tokens=(1, 2), windows=2)
        assert repr(found) == "Perplexity(value=2.7183, tokens=3, documents=2, windows=2)"
        assert repr(evaluate.Perplexity((), (), 0)).startswith("Perplexity(value=None, ")

    def test_generation_check(self):
        same, other = evaluate.Continuation((1, 2), (1, 2)), evaluate.Continuation((1, 2), (1, 3))
        found = evaluate.GenerationCheck((same, other))
        assert repr(found) == (
            "<GenerationCheck: 1 of 2 texts identical, 75.0% of the tokens equal>"
        )
        assert repr(evaluate.GenerationCheck(())) == "<GenerationCheck: 0 of 0 texts identical>"


class _Display:
    """What IPython would show."""

    def __init__(self) -> None:
        self.bundles: list[dict[str, str]] = []

    def __call__(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> "_Display":
        assert raw
        assert display_id
        self.bundles.append(bundle)
        return self

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.bundles.append(bundle)


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> _Display:
    """A notebook's kernel around the test."""
    shell = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = _Display()
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    return ipython.display.display


class TestBar:
    def test_a_short_run_shows_none(self, display):
        bar = notebook.Bar("comparing", 3)
        bar(1)
        bar.close()
        assert display.bundles == []

    def test_a_long_run_shows_one_that_stays(self, display, monkeypatch):
        monkeypatch.setattr(notebook, "_PATIENCE", -1.0)
        bar = notebook.Bar("<b>", 3)
        bar(1)
        bar(2)  # too soon to be drawn
        bar(5)
        bar.close()
        [first, last] = display.bundles
        assert first["text/plain"].startswith("<b>: 1 of 3 calls, ")
        assert last["text/plain"].startswith("<b>: 5 of 5 calls, ")
        assert first["text/html"].startswith('<progress value="1" max="3"></progress> &lt;b&gt;: 1')

    @pytest.mark.parametrize(("phase", "said"), [
        (("confirming", 1, None), "confirming"),
        (("confirming", 2, None), "confirming, run 2"),
        (("zooming", 1, 1), "zooming"),
        (("isolating", 1, 7), "isolating 1 of 7"),
    ])  # fmt: skip
    def test_it_names_the_phase(self, phase, said, display, monkeypatch):
        monkeypatch.setattr(notebook, "_PATIENCE", -1.0)
        bar = notebook.Bar("comparing", 3)
        bar.phase(*phase)
        assert display.bundles[-1]["text/plain"].startswith(f"{said}: 0 of 3 calls, ")

    @pytest.mark.covers
    def test_of_a_comparison(self, display, monkeypatch):
        monkeypatch.setattr(notebook, "_PATIENCE", -1.0)
        compared(progress=True)
        assert display.bundles[0]["text/plain"].startswith("comparing: ")
        assert ": 3 of 3 calls, " in display.bundles[-1]["text/plain"]
        display.bundles.clear()
        told: list[int] = []
        compared(progress=told.append)
        compared(progress=False)
        assert told[:3] == [1, 2, 3]
        assert display.bundles == []

    def test_what_is_printed_has_the_width_of_a_notebook(self, display, capsys, diverging):
        diverging.show()
        printed = capsys.readouterr().out.splitlines()
        assert max(map(len, printed)) <= notebook.WIDTH


def test_no_notebook_in_a_terminal(monkeypatch):
    assert not notebook.is_shown_in()
    terminal = types.ModuleType("IPython")
    terminal.get_ipython = types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "IPython", terminal)
    assert not notebook.is_shown_in()


@pytest.mark.slow
@pytest.mark.skipif(browser.executable() is None, reason="there is no Chromium to open pages in")
def test_no_frame_reaches_the_notebook(shown, tmp_path: Path):
    frames = "".join(found._repr_html_() for found in shown.values())
    spy = '<iframe sandbox="allow-scripts" srcdoc="<script>top.stolen = 1</script>"></iframe>'
    file = tmp_path / "notebook.html"
    file.write_text(f"<!DOCTYPE html><html data-ready='1'><body>{frames}{spy}</body></html>")
    with browser.page(tmp_path / "profile") as page:
        page.open(file)
        loaded = "new Promise(done => setTimeout(() => done(window.stolen ?? 'nothing'), 1000))"
        assert page.run(loaded) == "nothing"
        inner = "[...document.querySelectorAll('iframe')].map(frame => frame.contentDocument)"
        assert page.run(inner) == [None] * (len(shown) + 1)
        assert page.requests == [file.as_uri()]
