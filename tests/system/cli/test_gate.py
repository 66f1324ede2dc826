"""`trace_model compare` with a gate: exit codes, what is printed, and bad input."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tracer.cli import main
from tracer.models.builtin import build

QUANTIZED = ("--candidate", "quantized", "--calibrate", "1", "--isolate", "none")


def compare(*arguments: object) -> int:
    return main(["compare", "random-llama", "--sequence-length", "8", *map(str, arguments)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what former runs have left: reports, and a trace of the quantised candidate."""
    folder = tmp_path_factory.mktemp("made")
    assert compare(*QUANTIZED, "--report", folder / "quantized.json") == 0
    record = ["record", "random-llama", "--sequence-length", "8", *QUANTIZED[:4]]
    trace = str(folder / "quantized.trace")
    assert main([*record, "--values", "fingerprints", "--out", trace]) == 0
    same, worse = folder / "same", folder / "worse"
    build("random-llama", seed=0).save_pretrained(same)
    shutil.copytree(same, worse)
    weights = load_file(worse / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"][3] *= 1.5
    save_file(weights, worse / "model.safetensors", metadata={"format": "pt"})
    assert compare("--candidate", same, "--report", folder / "same.json") == 0
    assert compare("--candidate", worse, "--report", folder / "worse.json") == 1
    yield folder
    shutil.rmtree(folder)


class TestExitCodes:
    def test_as_in_the_baseline(self, made, capsys, monkeypatch):
        monkeypatch.chdir(made)
        assert compare("--candidate", "worse", "--baseline", "worse.json") == 0
        printed = capsys.readouterr().out
        assert "diverges at model.layers.3.mlp.up_proj, " in printed
        assert ", as in worse.json" in printed
        assert printed.index("Confirmed: ") < printed.index("gate: passes (--fail-on regression)")

    def test_a_weight_that_was_changed(self, made, capsys):
        arguments = ("--candidate", made / "worse", "--baseline", made / "same.json")
        assert compare(*arguments) == 1
        printed = " ".join(capsys.readouterr().out.split())
        assert "`model.layers.3.mlp.up_proj`, relative L2 0 → " in printed
        assert compare(*arguments, "--fail-on", "coverage") == 0
        assert compare(*arguments, "--fail-on", "never") == 0

    def test_a_candidate_that_is_better(self, made, capsys):
        assert compare("--candidate", made / "same", "--baseline", made / "worse.json") == 0
        assert " better" in capsys.readouterr().out

    @pytest.mark.parametrize("baseline", ["quantized.json", "quantized.trace"])
    def test_quantised(self, made, capsys, baseline):
        arguments = (*QUANTIZED, "--baseline", made / baseline)
        assert compare(*arguments) == 0
        assert "none has changed" in " ".join(capsys.readouterr().out.split())
        assert compare(*arguments, "--weight", "uint4", "--json") == 1
        found = json.loads(capsys.readouterr().out)["gate"]
        assert found["reasons"][0]["where"].startswith("`model.embed_tokens`, relative L2 ")
        assert found["changes"][0]["before"]["estimated"] is (baseline == "quantized.trace")

    def test_limits(self, made, capsys):
        assert compare(*QUANTIZED, "--max-peir", "lm_head=0.9") == 0
        assert "1 output is within the limit lm_head=0.9" in capsys.readouterr().out
        assert compare(*QUANTIZED, "--max-peir", "lm_head=0.01") == 1
        # The last one that matches counts, also where a glob comes back.
        limits = ("--max-peir", "*=0.9", "--max-peir", "lm_head=0.01", "--max-peir", "*=0.9")
        assert compare(*QUANTIZED, *limits) == 0

    def test_limits_in_the_place_of_the_tolerance(self, made):
        arguments = ("--candidate", made / "worse")
        assert compare(*arguments, "--max-peir", "*=0.5") == 0
        assert compare(*arguments, "--max-peir", "*=0.5", "--max-peir", "lm_head=1e-4") == 1

    def test_coverage(self, made, capsys, tmp_path):
        report = json.loads((made / "same.json").read_text())
        report["coverage"]["paired_modules"].append("model.layers.4")
        (tmp_path / "more.json").write_text(json.dumps(report))
        arguments = ("--candidate", made / "same", "--baseline", tmp_path / "more.json")
        assert compare(*arguments, "--fail-on", "coverage") == 1
        printed = " ".join(capsys.readouterr().out.split())
        assert "1 of 60 modules gone, `model.layers.4`" in printed
        assert "fails: less was compared than in " in printed

    def test_an_output_that_is_not_there_any_more(self, made, capsys):
        """Fused attention gives no attention weights."""
        assert compare("--candidate", "sdpa", "--baseline", made / "same.json") == 1
        assert "4 of 71 outputs gone or of another shape" in " ".join(
            capsys.readouterr().out.split()
        )

    def test_a_recording_that_was_ended_has_no_gate(self, made, capsys, tmp_path):
        cut = tmp_path / "cut.trace"
        shutil.copytree(made / "quantized.trace", cut)
        lines = (cut / "events.jsonl").read_bytes().splitlines(keepends=True)
        (cut / "events.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
        arguments = ["compare", "random-llama", "--candidate", str(cut)]
        baseline = ["--baseline", str(made / "quantized.json")]
        assert main([*arguments, *baseline]) == 2
        assert main([*arguments, "--fail-on", "never"]) == 2
        assert "gate:" not in capsys.readouterr().out


class TestWrongUse:
    def refused(self, capsys, *arguments: object) -> str:
        assert compare(*arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        return printed.err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--fail-on", "coverage"], "--fail-on coverage is checked against a --baseline"),
            (["--fail-on", "regression"], "or limits (--max-peir), and there are none"),
            (["--fail-on", "worse"], "invalid choice: 'worse'"),
            (["--max-peir", "lm_head"], "'lm_head': expected GLOB=PEIR, such as"),
            (["--max-peir", "=0.1"], "'=0.1': expected GLOB=PEIR"),
            (["--max-peir", "lm_head=big"], "'big': expected a ratio of at least 0"),
            (["--max-peir", "lm_head=-1"], "'-1': expected a ratio of at least 0"),
            (["--max-peir", "lm_haed=0.1"], "did you mean 'lm_head'"),
            (["--baseline", "none.json"], "there is no file or trace none.json: expected a report"),
            (["--baseline", "none.trace"], "there is no trace none.trace"),
            (["--baseline", "pyproject.toml"], "pyproject.toml is no JSON, or it is cut off"),
        ],
    )
    def test_before_anything_is_compared(self, capsys, arguments, message):
        assert message in self.refused(capsys, "--candidate", "sdpa", *arguments)

    def test_a_report_over_the_baseline(self, made, capsys, monkeypatch):
        monkeypatch.chdir(made)
        (made / "link.json").symlink_to(made / "same.json")
        for report in ("same.json", made / "link.json"):
            arguments = ("--candidate", "sdpa", "--baseline", "same.json", "--report", report)
            assert "would write over the baseline" in self.refused(capsys, *arguments)
        (made / "link.json").unlink()

    def test_a_baseline_of_other_inputs(self, made, capsys):
        arguments = ("--candidate", "sdpa", "--baseline", made / "same.json")
        assert main(["compare", "random-llama", *map(str, arguments)]) == 2
        assert "compare the same models on the same inputs" in capsys.readouterr().err
        trace = ("--baseline", str(made / "quantized.trace"))
        assert main(["compare", "random-llama", "--candidate", "sdpa", *trace]) == 2
        printed = capsys.readouterr().err
        assert "was recorded on other inputs than these: give the options" in printed
        assert "(trace_model record random-llama --sequence-length 8 " in printed
