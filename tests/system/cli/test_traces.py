"""`trace_model record`, `show`, and traces on either side of `compare`."""

import json
import math
from pathlib import Path

import pytest
import torch

import tracer
from tracer.cli import main


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of the tiny Llama."""
    path = tmp_path_factory.mktemp("traces") / "run.trace"
    assert main(["record", "tiny-llama", "--out", str(path), "--batch", "2"]) == 0
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The exit code, and what was printed where."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


class TestRecord:
    def test_what_is_printed_and_written(self, tmp_path: Path, capsys) -> None:
        out = tmp_path / "a.trace"
        code, printed, _ = run(capsys, "record", "random-llama", "--out", out, "--seed", 5)
        assert code == 0
        header = tracer.open_trace(out).header
        assert header["seed"] == 5
        assert header["command"] == f"trace_model record random-llama --out {out} --seed 5"
        assert header["name"] == "random-llama"
        assert any(note.startswith("inputs:") for note in header["notes"])
        assert printed == f"{out}: 58 calls, 80 tensors, 0.87 MiB of values\n"

    def test_less(self, tmp_path: Path, capsys) -> None:
        out = tmp_path / "a.trace"
        code, _, _ = run(
            *(capsys, "record", "tiny-llama", "--out", out, "--values", "fingerprints"),
            *("--include", "*.mlp", "--include", "lm_head"),
        )
        assert code == 0
        recorded = tracer.open_trace(out)
        assert recorded.values == "fingerprints"
        assert len(recorded.called) == 5

    def test_a_candidate_in_the_models_place(self, tmp_path: Path, capsys) -> None:
        out = tmp_path / "a.trace"
        code, _, _ = run(
            *(capsys, "record", "tiny-llama", "--out", out, "--candidate", "quantized"),
            *("--calibrate", 1),
        )
        assert code == 0
        recorded = tracer.open_trace(out)
        assert recorded.header["model"] == "QuantLlamaForCausalLM"
        assert "calibrated on" in recorded.header["notes"][-1]
        code, printed, _ = run(capsys, "compare", "tiny-llama", "--candidate", out)
        assert code == 0  # differences are expected
        assert "as expected of a quantised candidate" in printed
        code, _, _ = run(capsys, "compare", "tiny-llama", "--candidate", out, "--tolerance", 1e-3)
        assert code == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["record", "tiny-llama"], "required: --out"),
            (
                ["record", "tiny-llama", "--out", "nowhere/a.trace"],
                "the directory nowhere of",
            ),
            (["record", "tiny-lama", "--out", "a.trace"], "did you mean 'tiny-llama'"),
            (["record", "tiny-llama", "--out", "a", "--include", "x"], "matches none of the 59"),
            (["record", "tiny-llama", "--out", "a", "--values", "some"], "invalid choice"),
            (["record", "tiny-llama", "--out", "a", "--variant", "x"], "goes with --candidate"),
            (["record", "tiny-llama", "--out", "a", "--inclde", "x"], "did you mean '--include'"),
        ],
    )
    def test_wrong_use(self, tmp_path, monkeypatch, capsys, arguments, message) -> None:
        monkeypatch.chdir(tmp_path)
        code, printed, error = run(capsys, *arguments)
        assert (code, printed) == (2, "")
        assert message in error
        assert error.count("\n") == 1
        assert not any(tmp_path.iterdir())

    def test_nothing_is_overwritten(self, trace: Path, capsys) -> None:
        code, _, error = run(capsys, "record", "tiny-llama", "--out", trace)
        assert code == 2
        assert "exists already" in error


class TestCompare:
    def test_the_model_itself(self, trace: Path, capsys) -> None:
        code, printed, error = run(capsys, "compare", "tiny-llama", "--reference", trace)
        assert (code, error) == (0, "")
        assert f"{trace} (recorded LlamaForCausalLM, float32, cpu) against tiny-llama (" in (
            " ".join(printed.split())
        )
        assert "every compared value is equal" in printed

    def test_on_the_other_side_and_on_both(self, trace: Path, capsys) -> None:
        for arguments in (
            ("tiny-llama", "--candidate", trace),
            (trace, "--candidate", "tiny-llama"),
            (trace, "--candidate", trace),
            ("tiny-llama", "--reference", trace, "--candidate", "wrapped"),
        ):
            code, printed, error = run(capsys, "compare", *arguments)
            assert (code, error) == (0, ""), arguments
            assert "The models agree" in printed

    def test_a_broken_copy(self, trace: Path, broken: Path, capsys) -> None:
        code, printed, _ = run(capsys, "compare", broken, "--reference", trace)
        assert code == 1
        assert "diverges at model.layers.2.mlp.up_proj" in printed
        assert "its checksum is not the recorded one" in " ".join(printed.split())
        assert "Confirmed: with the reference's output" in printed

    def test_values_of_both(self, trace: Path, broken: Path, capsys) -> None:
        code, printed, _ = run(
            capsys, "compare", trace, "--candidate", broken, "--focus", "*.2.mlp.up_proj"
        )
        assert code == 1
        assert "values of model.layers.2.mlp.up_proj, call 0" in printed
        code, _, error = run(capsys, "compare", trace, "--candidate", trace, "--focus", "nothing")
        assert code == 2
        assert "--focus 'nothing' matches none of the 59 modules of" in error

    def test_json(self, trace: Path, capsys) -> None:
        code, printed, _ = run(capsys, "compare", "tiny-llama", "--reference", trace, "--json")
        assert code == 0
        report = json.loads(printed)
        assert report["coverage"]["recordings"] == []
        assert all(row["peir"] == 0.0 for row in report["rows"])

    def test_a_recording_that_was_ended_is_no_agreement(self, trace, tmp_path, capsys) -> None:
        short = tmp_path / "short.trace"
        short.mkdir()
        for file in trace.iterdir():
            (short / file.name).write_bytes(file.read_bytes())
        events = (short / "events.jsonl").read_bytes()
        (short / "events.jsonl").write_bytes(events[: len(events) // 2])
        code, printed, _ = run(capsys, "compare", "tiny-llama", "--reference", short)
        assert code == 2
        assert "no verdict" in printed
        assert "was ended early" in printed

    def test_fingerprints(self, tmp_path: Path, broken: Path, capsys) -> None:
        out = tmp_path / "baseline.trace"
        assert run(capsys, "record", "tiny-llama", "--out", out, "--values", "fingerprints")[0] == 0
        assert run(capsys, "compare", "tiny-llama", "--reference", out)[0] == 0
        code, printed, _ = run(capsys, "compare", broken, "--reference", out)
        assert code == 1
        assert "diverges at model.layers.2.mlp.up_proj" in printed
        assert (
            "estimated from fingerprints"
            in run(capsys, "compare", broken, "--reference", out, "--json")[1]
        )

    def test_steps(self, tmp_path: Path, capsys) -> None:
        out = tmp_path / "steps.trace"
        assert run(capsys, "record", "tiny-llama", "--out", out, "--steps", 2)[0] == 0
        code, printed, _ = run(
            capsys, "compare", "tiny-llama", "--reference", out, "--steps", 2, "--json"
        )
        assert code == 0
        assert {row["call"] for row in json.loads(printed)["rows"]} == {0, 1, 2}

    def test_a_decode_step_is_compared_in_python(self, tmp_path: Path, capsys) -> None:
        out = tmp_path / "decode.trace"
        decode = ("--candidate", "wrapped", "--variant", "decode")
        assert run(capsys, "record", "tiny-llama", "--out", out, *decode)[0] == 0
        code, _, error = run(capsys, "compare", "tiny-llama", "--reference", out)
        assert code == 2
        assert "was recorded with other inputs than tensors by name" in error

    def test_images(self, tmp_path: Path, capsys) -> None:
        out = tmp_path / "images.trace"
        assert run(capsys, "record", "tiny-qwen3-vl", "--out", out)[0] == 0
        assert run(capsys, "compare", "tiny-qwen3-vl", "--reference", out)[0] == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["TRACE"], "is a trace, which is compared with a model or another trace"),
            (["TRACE", "--candidate", "wrapped"], "which is compared with a model or another"),
            (["TRACE", "--reference", "TRACE"], "is a trace, as --reference is"),
            (["tiny-llama", "--reference", "tiny-llama"], "is no trace: expected a folder"),
            (["tiny-llama", "--reference", "none.trace"], "there is no trace none.trace"),
            (["tiny-llama", "--candidate", "none.trace"], "there is no trace none.trace"),
            (["tiny-qwen3-vl", "--reference", "TRACE"], "was recorded with"),
            (["tiny-llama", "--reference", "TRACE", "--prompt", "x"], "--prompt says what the"),
            (["tiny-llama", "--reference", "TRACE", "--noise-floor"], "it is a recording"),
            (["tiny-llama", "--candidate", "TRACE", "--isolate", "leaves"], "is a recording"),
        ],
    )
    def test_wrong_use(self, trace: Path, capsys, arguments, message) -> None:
        given = [str(trace) if word == "TRACE" else word for word in arguments]
        code, _, error = run(capsys, "compare", *given)
        assert code == 2
        if given[0] == "tiny-qwen3-vl":
            message = "was recorded from another model"
        assert message in error
        assert error.count("\n") == 1


def test_a_trace_of_a_photo(tmp_path: Path, capsys, shared_data: Path) -> None:
    """The processor gives the model its vocabulary, the trace what it is run on."""
    out = tmp_path / "a.trace"
    processor = ("--processor", shared_data / "qwen_processor" / "qwen3vl")
    photo = ("--image", shared_data / "images" / "chelsea.png", "--max-pixels", 4_000)
    model = ("tiny-qwen3-vl", *processor)
    code, _, _ = run(capsys, "record", *model, *photo, "--out", out, "--values", "outputs")
    assert code == 0
    code, printed, _ = run(capsys, "compare", *model, "--reference", out)
    assert code == 0
    assert "every compared value is equal" in printed
    code, _, error = run(capsys, "compare", *model, *photo, "--reference", out)
    assert code == 2
    assert "--image says what the model is run on" in error


class TestShow:
    @pytest.mark.parametrize("width", [80, 200])
    @pytest.mark.parametrize("form", [(), ("--tree",)])
    def test_a_model_and_a_trace(self, trace, monkeypatch, capsys, width, form) -> None:
        monkeypatch.setenv("COLUMNS", str(width))
        code, live, error = run(capsys, "show", "tiny-llama", "--batch", 2, *form)
        assert (code, error) == (0, "")
        code, again, _ = run(capsys, "show", trace, *form)
        assert code == 0
        assert again == live
        assert all(len(line) <= width for line in live.splitlines())

    def test_points_of_fingerprints_have_no_figure_for_each_channel(self, tmp_path, capsys) -> None:
        options = ("--candidate", "quantized", "--calibrate", 1, "--include", "lm_head")
        shown = []
        for values in ("all", "fingerprints"):
            out = tmp_path / f"{values}.trace"
            run(capsys, "record", "tiny-llama", "--out", out, *options, "--values", values)
            _, table, _ = run(capsys, "show", out)
            shown.append([line for line in table.splitlines() if "channels" in line])
        assert shown[0] == shown[1] != []
        sizes = [path.stat().st_size for path in tmp_path.glob("*.trace/header.json")]
        assert max(sizes) > 2 * min(sizes)

    def test_quantization_points(self, capsys) -> None:
        code, printed, _ = run(
            *(capsys, "show", "tiny-llama", "--candidate", "quantized", "--calibrate", 1),
            *("--include", "*.mlp.act_fn"),
        )
        assert code == 0
        assert "sigmoid  uint8 per_tensor_asymmetric" in printed
        assert printed.count("zero_point") == 4 * 4

    def test_values_as_torch_prints_them(self, capsys) -> None:
        try:
            code, printed, _ = run(
                *(capsys, "show", "tiny-llama", "--include", "lm_head", "--focus", "lm_head"),
                *("--print-options", "precision=2", "--print-options", "sci_mode=true"),
            )
            loaded = tracer.models.load("tiny-llama")
            with torch.no_grad():
                text = str(loaded.model(**loaded.inputs).logits)
        finally:
            torch.set_printoptions(profile="default", sci_mode=None)
        assert code == 0
        assert all(line in printed for line in text.splitlines())
        assert "e-0" in text

    def test_json(self, capsys) -> None:
        code, printed, _ = run(capsys, "show", "tiny-llama", "--json")
        assert code == 0
        document = json.loads(printed)
        assert len(document["calls"]) == 58
        mean = document["calls"][0]["outputs"][0]["mean"]
        loaded = tracer.models.load("tiny-llama")
        with torch.no_grad():
            expected = loaded.model(**loaded.inputs).logits.double().mean().item()
        assert math.isclose(mean, expected, rel_tol=1e-9)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["tiny-llama", "--tree", "--json"], "not allowed with argument"),
            (["tiny-llama", "--print-options", "width=3"], "expected KEY=VALUE with one of"),
            (["tiny-llama", "--print-options", "precision=x"], "expected KEY=VALUE with one of"),
            (["tiny-llama", "--include", "none"], "matches none of the 59 modules"),
            (["none.trace"], "there is no trace none.trace"),
            (["none"], "unknown model 'none'"),
        ],
    )
    def test_wrong_use(self, capsys, arguments, message) -> None:
        code, printed, error = run(capsys, "show", *arguments)
        assert (code, printed) == (2, "")
        assert message in error
