"""`trace_model compare` with a gate: exit codes, what is printed, and bad input."""

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tracer.cli import main
from tracer.models.builtin import build

QUANTIZED = ("--candidate", "quantized", "--calibrate", "1", "--isolate", "none")


SHORT = ("random-llama", "--sequence-length", "8")


@pytest.fixture(scope="session")
def gate(compare):
    """Compares with a gate; what it did."""
    return functools.partial(compare, *SHORT)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what former runs have left: reports, and a trace of the quantised candidate."""

    def leave(*arguments: object) -> int:
        return main(["compare", *SHORT, *map(str, arguments)])

    folder = tmp_path_factory.mktemp("made")
    assert leave(*QUANTIZED, "--report", folder / "quantized.json") == 0
    record = ["record", "random-llama", "--sequence-length", "8", *QUANTIZED[:4]]
    trace = str(folder / "quantized.trace")
    assert main([*record, "--values", "fingerprints", "--out", trace]) == 0
    same, worse = folder / "same", folder / "worse"
    build("random-llama", seed=0).save_pretrained(same)
    shutil.copytree(same, worse)
    weights = load_file(worse / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"][3] *= 1.5
    save_file(weights, worse / "model.safetensors", metadata={"format": "pt"})
    assert leave("--candidate", same, "--report", folder / "same.json") == 0
    assert leave("--candidate", worse, "--report", folder / "worse.json") == 1
    yield folder
    shutil.rmtree(folder)


@pytest.mark.covers
class TestExitCodes:
    @pytest.mark.covers
    def test_as_in_the_baseline(self, made, gate, monkeypatch):
        monkeypatch.chdir(made)
        ran = gate("--candidate", "worse", "--baseline", "worse.json")
        assert ran.code == 0
        printed = ran.out
        assert "diverges: `weight` of `model.layers.3.mlp.up_proj` differs" in printed
        assert ", as in worse.json" in printed
        assert printed.index("Confirmed: ") < printed.index("gate: passes (--fail-on regression)")

    @pytest.mark.covers
    def test_another_candidate(self, made, gate):
        arguments = ("--candidate", made / "worse", "--baseline", made / "same.json")
        arguments = (*arguments, "--baseline-any")
        ran = gate(*arguments)
        assert ran.code == 1
        assert "`model.layers.3.mlp.up_proj`, relative L2 0 → " in ran.words
        assert gate(*arguments, "--fail-on", "coverage").code == 0
        assert gate(*arguments, "--fail-on", "never").code == 0
        arguments = ("--candidate", made / "same", "--baseline", made / "worse.json")
        ran = gate(*arguments, "--baseline-any")
        assert ran.code == 0
        assert " better" in ran.out

    @pytest.mark.covers
    @pytest.mark.parametrize("baseline", ["quantized.json", "quantized.trace"])
    def test_quantised(self, made, gate, baseline):
        arguments = (*QUANTIZED, "--baseline", made / baseline)
        ran = gate(*arguments)
        assert ran.code == 0
        assert "none has changed" in ran.words
        ran = gate(*arguments, "--weight", "uint4", "--baseline-any")
        assert ran.code == 1
        assert "the candidate is quantised to uint8, and here to uint4, uint8" in ran.words
        found = ran.report["gate"]
        assert found["reasons"][0]["where"].startswith("`model.embed_tokens`, relative L2 ")
        assert found["changes"][0]["before"]["estimated"] is (baseline == "quantized.trace")

    @pytest.mark.covers
    def test_limits(self, made, gate):
        ran = gate(*QUANTIZED, "--max-peir", "lm_head=0.9")
        assert ran.code == 0
        assert "1 output is within the limit lm_head=0.9" in ran.out
        assert gate(*QUANTIZED, "--max-peir", "lm_head=0.01").code == 1
        # The last one that matches counts, also where a glob comes back.
        limits = ("--max-peir", "*=0.9", "--max-peir", "lm_head=0.01", "--max-peir", "*=0.9")
        assert gate(*QUANTIZED, *limits).code == 0
        arguments = ("--candidate", made / "worse")
        assert gate(*arguments, "--max-peir", "*=0.5").code == 0
        limits = ("--max-peir", "*=0.5", "--max-peir", "lm_head=1e-4")
        assert gate(*arguments, *limits).code == 1

    @pytest.mark.covers
    def test_limits_beside_peir(self, made, gate):
        ran = gate(*QUANTIZED, "--min-sqnr", "lm_head=10", "--max-l2", "*=0.9")
        assert ran.code == 0
        assert "1 output is within the limit lm_head: SQNR >= 10 dB: SQNR at least " in ran.words
        assert gate(*QUANTIZED, "--min-cosine", "lm_head=0.9999").code == 1
        assert {limit["measure"] for limit in ran.report["gate"]["limits"]} == {
            *("relative_l2", "sqnr")
        }

    @pytest.mark.slow
    def test_divergence_is_obeyed_of_a_quantised_candidate(self, made, gate):
        ran = gate(*QUANTIZED)
        assert ran.code == 0
        assert "Exit code 0: no limit was given." in ran.words
        assert ran.report["run"]["exit_code"] == 0
        ran = gate(*QUANTIZED, "--fail-on", "divergence")
        assert ran.code == 1
        assert "no limit was given" not in ran.words
        assert ran.report["run"]["exit_code"] == 1
        assert gate(*QUANTIZED, "--max-peir", "*=0.9", "--fail-on", "divergence").code == 0

    def test_coverage(self, made, gate, tmp_path):
        report = json.loads((made / "same.json").read_text())
        report["coverage"]["paired_modules"]["model.layers.4"] = "model.layers.4"
        (tmp_path / "more.json").write_text(json.dumps(report))
        arguments = ("--candidate", made / "same", "--baseline", tmp_path / "more.json")
        ran = gate(*arguments, "--fail-on", "coverage")
        assert ran.code == 1
        assert "1 of 60 modules gone, `model.layers.4`" in ran.words
        assert "fails: less was compared than in " in ran.words

    @pytest.mark.covers
    def test_a_recording_that_was_ended_has_no_gate(self, made, compare, tmp_path):
        cut = tmp_path / "cut.trace"
        shutil.copytree(made / "quantized.trace", cut)
        lines = (cut / "events.jsonl").read_bytes().splitlines(keepends=True)
        (cut / "events.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
        for options in (("--baseline", made / "quantized.json"), ("--fail-on", "never")):
            ran = compare("random-llama", "--candidate", cut, *options)
            assert ran.code == 2
            assert "gate:" not in ran.out


@pytest.mark.covers
class TestWrongUse:
    @pytest.mark.covers
    def test_limits_and_baselines_that_do_not_fit(self, refused, made):
        message = refused("compare", *SHORT, "--candidate", "sdpa", "--max-peir", "lm_haed=0.1")
        assert "did you mean 'lm_head'" in message
        arguments = ("compare", "random-llama", "--candidate", "sdpa", "--baseline")
        message = refused(*arguments, made / "same.json", "--baseline-any")
        assert "compare the same models on the same inputs" in message
        message = refused(*arguments, made / "quantized.trace")
        assert "was recorded on other inputs than these: give the options" in message
        assert "(trace_model record random-llama --sequence-length 8 " in message

    @pytest.mark.parametrize(("options", "said"), [
        ("--weight int16", "`weight` is uint8, and here int16"),
        ("--seed 1", "`seed` is 0, and here 1; the input `input_ids` holds other values"),
        ("--calibrate 2", "`calibrate` is 1, and here 2"),
        ("--variant prefill_reference", "`variant` is prefill, and here prefill_reference"),
        ("--dtype float64", "the reference computes in float32, and here in float64"),
        ("--steps 2", "the reference runs for no decode steps, and here 2"),
        ("--batch 2", "the input `input_ids` is int64 [1, 8], and here int64 [2, 8]"),
    ])  # fmt: skip
    def test_a_baseline_of_another_comparison(self, refused, made, options: str, said: str):
        arguments = ("compare", *SHORT, *QUANTIZED, *options.split(), "--baseline")
        message = refused(*arguments, made / "quantized.json")
        assert " is of another comparison: " in message
        assert said in message
        assert "--baseline-any" in message

    @pytest.mark.covers
    def test_of_another_model(self, refused, made):
        arguments = ("compare", "tiny-llama", *SHORT[1:], *QUANTIZED, "--baseline")
        message = refused(*arguments, made / "quantized.json")
        assert "the reference has other weights (relative L2 " in message

    @pytest.mark.covers
    def test_an_older_report_is_checked_as_far_as_it_says(self, refused, gate, made, tmp_path):
        report = json.loads((made / "quantized.json").read_text())
        del report["identity"], report["run"]["exit_code"], report["environment"]["date"]
        old = tmp_path / "old.json"
        old.write_text(json.dumps(report))
        ran = gate(*QUANTIZED, "--baseline", old)
        assert ran.code == 0
        assert "does not say of which weights of the reference and which inputs it is" in ran.words
        arguments = ("compare", *SHORT, *QUANTIZED, "--weight", "int16", "--baseline", old)
        assert "`weight` is uint8, and here int16" in refused(*arguments)
        arguments = ("compare", "tiny-llama", *SHORT[1:], *QUANTIZED, "--baseline", old)
        assert "`reference` is random-llama, and here tiny-llama" in refused(*arguments)
