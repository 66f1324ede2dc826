"""Every script of `benchmarks/` runs on its smallest setting and prints its table."""

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks import kv_cache, memory, perplexity, quantised_perplexity, speed
from tracer.execution.module_state import module_states_kept

REPOSITORY = Path(__file__).parents[2]
# The script, its options, and what it prints.
SMALLEST: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "exported_graphs": (
        ["--only", "Llama MLP", "--formats", "pt2", "--float"],
        ["| Llama MLP | float | pt2 | 5 of 5 | agrees | 0 | 1e-05 |"],
    ),
    "fake_quantize": (["--runs", "1"], ["one token", "a large weight", "torch/ours"]),
    "gate_margins": (
        ["random-llama", "--sequence-length", "4", "--candidates", "1", "--processors", "1"],
        ["random-llama", "relative_l2", "peir"],
    ),
    "localisation": (
        ["--only", "dropout left on"],
        ["all    1         100.0 %", "Nothing was missed.", "No exact line was missed."],
    ),
    "localisation --blind": (
        ["--blind", "--family", "llama", "--mutants", "2"],
        ["family  mutants", "right rewrites", "0"],
    ),
    "mask_fill": (["--seeds", "1", "--sequence-length", "4"], ["-120", "-inf, unclamped"]),
    "memory": (["--layers", "1", "--runs", "wrapped", "samples"], ["wrapped ", "samples "]),
    "noise": (
        ["random-llama", "--sequence-length", "4", "--without-compile"],
        ["sdpa", "agrees", "rows beyond 1e-05"],
    ),
    "overhead": (
        ["--runs", "1", "--sequence", "16"],
        ["traced comparison", "peak memory beyond the two models"],
    ),
    "quantized_forward": (["--runs", "1"], ["32/8", "attention"]),
    "quantized_logits": (["random-llama"], ["prefill_reference  uint8       uint4"]),
    "reliability": (
        ["--cases", "1", "--modules", "2"],
        [
            "safetensors header        1",
            "all                       9",
            "what-if                     2        0",
        ],
    ),
    "reports": (
        ["--runs", "1", "--blocks", "20", "--sequence", "16"],
        [".html", ".json", "KB, written in"],
    ),
    "speed": (
        ["--runs", "1", "--only", "tiny-llama", "--without-commands"],
        ["tiny-llama ", "a pair of calls of tiny tensors", "NumPy, in chunks"],
    ),
    "variants": (
        ["--runs", "1", "--heads", "4/2", "--lengths", "16"],
        ["4/2", "quantised: prefill_reference is up to", "capacity 1024: float"],
    ),
}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Scripts set these for their whole process."""
    threads, enabled = torch.get_num_threads(), torch.is_grad_enabled()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(enabled)


@pytest.mark.slow
@pytest.mark.no_cover  # what they use is covered by its own tests
@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.filterwarnings("default")  # as in a process of its own
def test_the_smallest_setting(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = SMALLEST[name]
    importlib.import_module(f"benchmarks.{name.partition(' ')[0]}").main(arguments)
    printed = capsys.readouterr().out
    assert [text for text in expected if text not in printed] == [], printed


@pytest.mark.slow
def test_perplexity(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    perplexity.main([str(shared_data), "--cases", "1"])
    assert "described 3.548, off +0.000" in capsys.readouterr().out


@pytest.mark.slow
def test_quantised_perplexity(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smallest = ["--checkpoint", "stories260K", "--only", "alone", "--weight", "int4"]
    quantised_perplexity.main([str(shared_data), *smallest])
    printed = capsys.readouterr().out
    assert "activations int16, weights int4: float 3.548" in printed
    assert "rounding alone                      4.663" in printed


@pytest.mark.covers
def test_kv_cache(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smallest = ["--checkpoint", "stories260K", "--tokens", "48", "--only", "int4, no window"]
    kv_cache.main([str(shared_data), *smallest])
    printed = capsys.readouterr().out
    assert "stories260K, " in printed and "1280.0 bytes" in printed
    assert " %    260.0 bytes" in printed


def test_figures_are_put_into_a_page(tmp_path: Path) -> None:
    found = {
        "machine": "a machine",
        "comparisons": {
            "a model": {"traced": 1.5, "goal": 1.25, "hooks": 1.1, "debug_mode": 3.0},
        },
        "pair": {"microseconds": 90.4, "plain_microseconds": 7.0, "goal": 100.0},
        "isolation": {"leaves": {"ratio": 2.96, "goal": 3.0, "without_causes": 1.0}},
        "statistics": {"NumPy": 4.431},
        "commands": {
            "trace_model compare x": {"seconds": 2.46, "goal": 2.5},
            "importing": {"seconds": 1.0, "goal": None},
        },
    }
    figures, page = tmp_path / "figures.json", tmp_path / "page.md"
    figures.write_text(json.dumps(found))
    page.write_text(f"before\n{speed.BEGIN}old\n{speed.END}after\n")
    speed.main(["--from", str(figures), "--page", str(page)])
    text = page.read_text()
    assert text.startswith(f"before\n{speed.BEGIN}")
    assert text.endswith(f"{speed.END}after\n")
    for row in (
        "| a model | 1.50 | 1.25 | 1.10 | 3.00 |",
        "takes 90 us",
        "| leaves | 3.0 | 3 | 1.0 |",
        "| NumPy | 4.43 |",
        "| trace_model compare x | 2.5 | 2.5 |",
        "| importing | 1.0 |  |",
    ):
        assert row in text
    assert "old" not in text
    page.write_text("no place")
    with pytest.raises(SystemExit, match="has no lines"):
        speed.main(["--from", str(figures), "--page", str(page)])


def test_every_script_is_run() -> None:
    scripts = {path.stem for path in (REPOSITORY / "benchmarks").glob("*.py")}
    by_themselves = {"perplexity", "quantised_perplexity", "kv_cache"}
    assert scripts == {*(name.partition(" ")[0] for name in SMALLEST), *by_themselves}


class TestMemory:
    """What a comparison holds in tensors does not grow with the number of layers.

    Apart from copies of what modules keep from call to call, such as the scalars of observers.
    """

    @pytest.mark.covers
    @pytest.mark.parametrize("run", ["wrapped", "copy", "isolated"])
    def test_flat_in_depth(self, run: str) -> None:
        peaks, copies = [], []
        for layers in (2, 4):
            model, inputs = memory.llama(layers, 16)
            candidate = memory.candidate_of(run, model)
            with memory.LiveTensors() as kept, module_states_kept((model, candidate)):
                copies.append(kept.peak)
            with memory.LiveTensors() as live:
                memory.RUNS[run](model, candidate, inputs)
            peaks.append(live.peak)
        assert peaks[0] - copies[0] == peaks[1] - copies[1] > 0

    def test_what_is_kept_is_counted_and_what_is_gone_is_not(self) -> None:
        with memory.LiveTensors() as live:
            kept = [torch.zeros(256) for _ in range(4)]
            assert live.peak == 4 * 1024
            for _ in range(4):
                torch.zeros(256).add_(1.0).view(16, 16)
            assert live.peak == 5 * 1024
            kept[0] + 1.0
            assert live.peak == 5 * 1024
