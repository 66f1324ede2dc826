"""`trace_model record`, `show`, and traces on either side of `compare`."""

import json
import math
from pathlib import Path

import pytest
import torch

import tracer


class TestRecord:
    @pytest.mark.covers
    def test_what_is_printed_and_written(self, tmp_path: Path, run) -> None:
        out = tmp_path / "a.trace"
        ran = run("record", "random-llama", "--out", out, "--seed", 5)
        assert ran.code == 0
        assert ran.out == f"{out}: 58 calls, 80 tensors, 0.87 MiB of values\n"
        header = tracer.open_trace(out).header
        assert header["seed"] == 5
        assert header["command"] == f"trace_model record random-llama --out {out} --seed 5"
        assert header["name"] == "random-llama"
        assert any(note.startswith("inputs:") for note in header["notes"])
        out = tmp_path / "b.trace"
        less = ("--values", "fingerprints", "--include", "*.mlp", "--include", "lm_head")
        assert run("record", "tiny-llama", "--out", out, *less).code == 0
        recorded = tracer.open_trace(out)
        assert (recorded.values, len(recorded.called)) == ("fingerprints", 5)

    @pytest.mark.covers
    def test_a_candidate_instead_of_the_model(self, tmp_path: Path, run, compare) -> None:
        out = tmp_path / "a.trace"
        quantized = ("--candidate", "quantized", "--calibrate", 1)
        assert run("record", "tiny-llama", "--out", out, *quantized).code == 0
        recorded = tracer.open_trace(out)
        assert recorded.header["model"] == "QuantLlamaForCausalLM"
        assert "calibrated on" in recorded.header["notes"][-1]
        ran = compare("tiny-llama", "--candidate", out)
        assert ran.code == 0  # differences are expected
        assert "as expected of a quantised candidate" in ran.words
        assert compare("tiny-llama", "--candidate", out, "--tolerance", 1e-3).code == 1

    @pytest.mark.parametrize(("arguments", "message"), [
        ("--out nowhere/a.trace", "it first"),
        ("--out a --include x", "matches none of the 59"),
    ])  # fmt: skip
    def test_wrong_use(self, tmp_path, monkeypatch, refused, arguments: str, message: str) -> None:
        monkeypatch.chdir(tmp_path)
        assert message in refused("record", "tiny-llama", *arguments.split())
        assert not any(tmp_path.iterdir())


class TestCompare:
    @pytest.mark.covers
    def test_the_model_itself(self, trace: Path, compare) -> None:
        ran = compare("tiny-llama", "--reference", trace)
        assert (ran.code, ran.err) == (0, "")
        head = f"{trace} (recorded LlamaForCausalLM, float32, cpu) against tiny-llama ("
        assert head in ran.words
        assert "every compared value is equal" in ran.out
        assert ran.report["coverage"]["recordings"] == []
        assert all(row["peir"] == 0.0 for row in ran.report["rows"])

    @pytest.mark.covers
    @pytest.mark.parametrize("arguments", [
        "tiny-llama --candidate TRACE", "TRACE --candidate tiny-llama", "TRACE --candidate TRACE",
        "tiny-llama --reference TRACE --candidate wrapped",
    ])  # fmt: skip
    def test_on_the_other_side_and_on_both(self, trace: Path, compare, arguments: str) -> None:
        ran = compare(*arguments.replace("TRACE", str(trace)).split())
        assert (ran.code, ran.err) == (0, "")
        assert ran.report["verdict"]["agrees"] is True

    @pytest.mark.covers
    def test_a_broken_copy(self, trace: Path, broken: Path, compare) -> None:
        ran = compare(broken, "--reference", trace)
        assert ran.code == 1
        assert ran.report["verdict"]["origin"]["module"] == "model.layers.2.mlp.up_proj"
        assert ran.report["verdict"]["confirmed"] is True
        assert "its checksum is not the recorded one" in ran.words

    @pytest.mark.covers
    def test_values_of_both(self, trace: Path, broken: Path, compare, refused) -> None:
        ran = compare(trace, "--candidate", broken, "--focus", "*.2.mlp.up_proj")
        assert ran.code == 1
        assert "values of model.layers.2.mlp.up_proj, call 0" in ran.out
        message = refused("compare", trace, "--candidate", trace, "--focus", "nothing")
        assert "--focus 'nothing' matches none of the 59 modules of" in message

    @pytest.mark.covers
    def test_a_recording_that_was_ended_is_no_agreement(self, trace, tmp_path, compare) -> None:
        short = tmp_path / "short.trace"
        short.mkdir()
        for file in trace.iterdir():
            (short / file.name).write_bytes(file.read_bytes())
        events = (short / "events.jsonl").read_bytes()
        (short / "events.jsonl").write_bytes(events[: len(events) // 2])
        ran = compare("tiny-llama", "--reference", short)
        assert ran.code == 2
        assert "no verdict" in ran.out
        assert "was ended early" in ran.out

    @pytest.mark.covers
    def test_fingerprints(self, tmp_path: Path, broken: Path, run, compare) -> None:
        out = tmp_path / "baseline.trace"
        assert run("record", "tiny-llama", "--out", out, "--values", "fingerprints").code == 0
        assert compare("tiny-llama", "--reference", out).code == 0
        ran = compare(broken, "--reference", out)
        assert ran.code == 1
        assert ran.report["verdict"]["origin"]["module"] == "model.layers.2.mlp.up_proj"
        assert "estimated from fingerprints" in json.dumps(ran.report)

    @pytest.mark.covers
    def test_steps(self, tmp_path: Path, run, compare) -> None:
        out = tmp_path / "steps.trace"
        assert run("record", "tiny-llama", "--out", out, "--steps", 2).code == 0
        ran = compare("tiny-llama", "--reference", out, "--steps", 2)
        assert (ran.code, {row["call"] for row in ran.report["rows"]}) == (0, {0, 1, 2})

    @pytest.mark.covers
    def test_a_decode_step_is_compared_in_python(self, tmp_path: Path, run, refused) -> None:
        out = tmp_path / "decode.trace"
        decode = ("--candidate", "wrapped", "--variant", "decode")
        assert run("record", "tiny-llama", "--out", out, *decode).code == 0
        message = refused("compare", "tiny-llama", "--reference", out)
        assert "was recorded with other inputs than tensors by name" in message

    @pytest.mark.covers
    def test_images(self, tmp_path: Path, run, compare) -> None:
        out = tmp_path / "images.trace"
        assert run("record", "tiny-qwen3-vl", "--out", out).code == 0
        assert compare("tiny-qwen3-vl", "--reference", out).code == 0

    @pytest.mark.parametrize(("arguments", "message"), [
        ("tiny-llama --reference none.trace", "there is no trace none.trace"),
        ("tiny-llama --reference TRACE --prompt x", "--prompt says what the"),
        ("tiny-llama --reference TRACE --noise-floor", "it is a recording"),
    ])  # fmt: skip
    def test_wrong_use(self, trace: Path, refused, arguments: str, message: str) -> None:
        assert message in refused("compare", *arguments.replace("TRACE", str(trace)).split())


@pytest.mark.slow
def test_a_trace_of_a_photo(tmp_path: Path, run, compare, refused, shared_data: Path) -> None:
    """The processor gives the model its vocabulary, the trace what it is run on."""
    out = tmp_path / "a.trace"
    model = ("tiny-qwen3-vl", "--processor", shared_data / "qwen_processor" / "qwen3vl")
    photo = ("--image", shared_data / "images" / "chelsea.png", "--max-pixels", 4_000)
    assert run("record", *model, *photo, "--out", out, "--values", "outputs").code == 0
    ran = compare(*model, "--reference", out)
    assert ran.code == 0
    assert "every compared value is equal" in ran.out
    message = refused("compare", *model, *photo, "--reference", out)
    assert "--image says what the model is run on" in message


class TestShow:
    @pytest.mark.covers
    @pytest.mark.parametrize("width", [80, 200])
    @pytest.mark.parametrize("form", [(), ("--tree",)])
    def test_a_model_and_a_trace(self, trace, monkeypatch, run, width, form) -> None:
        monkeypatch.setenv("COLUMNS", str(width))
        live, again = run("show", "tiny-llama", "--batch", 2, *form), run("show", trace, *form)
        assert ((live.code, live.err, again.code), again.out) == ((0, "", 0), live.out)
        assert all(len(line) <= width for line in live.out.splitlines())

    @pytest.mark.covers
    def test_points_of_fingerprints_have_no_figure_for_each_channel(self, tmp_path, run) -> None:
        options = ("--candidate", "quantized", "--calibrate", 1, "--include", "lm_head")
        shown = []
        for values in ("all", "fingerprints"):
            out = tmp_path / f"{values}.trace"
            run("record", "tiny-llama", "--out", out, *options, "--values", values)
            table = run("show", out).out
            shown.append([line for line in table.splitlines() if "channels" in line])
        assert shown[0] == shown[1] != []
        sizes = [path.stat().st_size for path in tmp_path.glob("*.trace/header.json")]
        assert max(sizes) > 2 * min(sizes)

    @pytest.mark.covers
    def test_quantization_points(self, run) -> None:
        options = ("--candidate", "quantized", "--calibrate", 1, "--include", "*.mlp.act_fn")
        ran = run("show", "tiny-llama", *options)
        assert ran.code == 0
        assert "sigmoid  uint8 per_tensor_asymmetric" in ran.out
        assert ran.out.count("zero_point") == 4 * 4

    @pytest.mark.covers
    def test_values_as_torch_prints_them(self, run) -> None:
        try:
            ran = run(
                *("show", "tiny-llama", "--include", "lm_head", "--focus", "lm_head"),
                *("--print-options", "precision=2", "--print-options", "sci_mode=true"),
            )
            loaded = tracer.models.load("tiny-llama")
            with torch.no_grad():
                text = str(loaded.model(**loaded.inputs).logits)
        finally:
            torch.set_printoptions(profile="default", sci_mode=None)
        assert ran.code == 0
        assert all(line in ran.out for line in text.splitlines())
        assert "e-0" in text

    @pytest.mark.covers
    def test_json(self, run) -> None:
        ran = run("show", "tiny-llama", "--json")
        assert ran.code == 0
        document = json.loads(ran.out)
        assert len(document["calls"]) == 58
        mean = document["calls"][0]["outputs"][0]["mean"]
        loaded = tracer.models.load("tiny-llama")
        with torch.no_grad():
            expected = loaded.model(**loaded.inputs).logits.double().mean().item()
        assert math.isclose(mean, expected, rel_tol=1e-9)

    @pytest.mark.parametrize(("arguments", "message"), [
        ("tiny-llama --include none", "matches none of the 59 modules"),
        ("none.trace", "there is no trace none.trace"),
    ])  # fmt: skip
    def test_wrong_use(self, refused, arguments: str, message: str) -> None:
        assert message in refused("show", *arguments.split())
