"""The example notebook runs in a real kernel, and its cells show what they are there to show."""

from pathlib import Path
from typing import Any

import pytest

reason = "notebooks are executed by nbclient and ipykernel, which are not installed"
nbformat = pytest.importorskip("nbformat", reason=reason)
nbclient = pytest.importorskip("nbclient", reason=reason)
pytest.importorskip("ipykernel", reason=reason)

NOTEBOOK = Path(__file__).parents[2] / "examples" / "two_models.ipynb"
# The bar comes up at once, so that a fast machine shows it as well.
AT_ONCE = "from tracer.reports import notebook\n\nnotebook._PATIENCE = -1.0\n"


@pytest.fixture(scope="module")
def cells() -> dict[str, list[Any]]:
    """The outputs of each cell of code by its last line."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    [first, *_] = [cell for cell in notebook.cells if cell.cell_type == "code"]
    first.source = AT_ONCE + first.source
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    return {
        cell.source.splitlines()[-1]: cell.outputs
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def shown(cells: dict[str, list[Any]], last_line: str) -> dict[str, str]:
    """What the value of a cell's last line is shown as, by MIME type."""
    [found] = [out.data for out in cells[last_line] if out.output_type == "execute_result"]
    return dict(found)


def printed(cells: dict[str, list[Any]], last_line: str, stream: str) -> str:
    return "".join(out.text for out in cells[last_line] if out.get("name") == stream)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
class TestNotebook:
    def test_a_comparison_is_the_report_to_explore(self, cells):
        found = shown(cells, "comparison")
        assert found["text/plain"].startswith("<Comparison: diverges")
        assert "\n" not in found["text/plain"]
        assert found["text/html"].startswith('<iframe sandbox="allow-scripts"')
        assert "model.layers.1.self_attn" in found["text/html"]

    def test_a_comparison_shows_a_bar(self, cells):
        [bar] = [out.data for out in cells["comparison"] if out.output_type == "display_data"]
        assert " of 59 calls, " in bar["text/plain"]
        assert bar["text/html"].startswith('<progress value="')

    def test_a_comparison_in_text(self, cells):
        text = printed(cells, "comparison.show()", "stdout")
        assert "verdict" in text
        assert {out.output_type for out in cells["comparison.show()"]} == {"stream"}

    @pytest.mark.parametrize(("last_line", "text", "page"), [
        ("comparison.isolation", "<Isolation: 58 modules (leaves), most by ", "where the error is"),
        (
            'tracer.gate(comparison, max_peir={"lm_head": 0.05}, differences_expected=True)',
            "<Gate: passes (fail_on=", "gate: passes",
        ),
        (
            'tracer.flow(quantized, loaded.inputs, include="model.layers.0*")',
            "<Flow: QuantLlamaForCausalLM, 13 calls of 13 modules>", "QuantLinear",
        ),
    ])  # fmt: skip
    def test_the_rest_is_text_in_a_frame(self, cells, last_line, text, page):
        found = shown(cells, last_line)
        assert found["text/plain"].startswith(text)
        assert found["text/html"].startswith('<iframe sandbox=""')
        assert page in found["text/html"]

    def test_perplexity_is_its_value(self, cells):
        last_line = (
            "[evaluate.perplexity(model, text, bos=1) for model in (loaded.model, quantized)]"
        )
        found = shown(cells, last_line)["text/plain"]
        assert found.count("Perplexity(value=2.8") == 2

    def test_calibrating_shows_a_bar_of_the_users_own(self, cells):
        assert "100%" in printed(cells, "comparison.isolation", "stderr")
