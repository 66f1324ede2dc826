"""`trace_model quantize`, and what it writes as a candidate."""

import json
from pathlib import Path

import pytest

from tracer.cli import main

EXAMPLE = Path(__file__).parents[3] / "examples" / "recipes" / "tiny-llama.toml"
SHORT = "[calibration]\ndata = 'random'\ncount = 1\nlength = 8\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved random-llama, which has no checkpoint that could be named."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "recipe.toml").write_text(f"{SHORT}[decode]\nsteps = 2")
    options = ["--config", str(folder / "recipe.toml"), "--out", str(folder / "out"), "-q"]
    assert main(["quantize", "random-llama", *options]) == 0
    return folder / "out"


@pytest.mark.covers
def test_a_candidate_that_is_quantised(saved, tmp_path, capsys) -> None:
    report = tmp_path / "report.json"
    options = ["--candidate", str(saved), "--sequence-length", "8", "--report", str(report)]
    options += ["--isolate", "model.layers.0.mlp"]
    assert main(["compare", "random-llama", *options]) == 0
    printed = capsys.readouterr().out
    assert f"against {saved} (variant prefill)" in " ".join(printed.split())
    assert "without `up_proj.act_out` (uint8 activation): relative L2" in printed
    assert json.loads(report.read_text())["isolation"]


@pytest.mark.covers
def test_a_decode_model(saved, capsys) -> None:
    short = ["random-llama", "--sequence-length", "8", "--isolate", "none"]
    assert main(["compare", *short, "--candidate", str(saved / "decode"), "-q"]) == 0
    assert main(["compare", *short, "--candidate", str(saved), "--steps", "2", "-q"]) == 0
    assert main(["compare", *short, "--candidate", str(saved / "decode"), "--steps", "2"]) == 2
    assert "is a decode model, and steps begin with a prefill" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["random-llama", "--seed", "1"], "was made of another checkpoint"),
    (["tiny-qwen3-vl"], "was made of a transformers"),
    (["random-llama", "--dtype", "bfloat16"], "load it with dtype float32"),
    (["random-llama", "--train"], "wrapped models have no training mode"),
    (["random-llama", "--weight", "uint4"], "--weight goes with --candidate quantized"),
    (["random-llama", "--map-input", "a=b"], "--map-input names the arguments of another model"),
])  # fmt: skip
def test_what_does_not_go_with_it(saved, capsys, arguments, message) -> None:
    assert main(["compare", *arguments, "--candidate", str(saved)]) == 2
    assert message in capsys.readouterr().err


def test_a_saved_model_is_no_model_to_compare_with(saved, capsys) -> None:
    assert main(["compare", str(saved)]) == 2
    assert "give the model that it was made of, and this folder as --candidate" in (
        capsys.readouterr().err
    )


@pytest.mark.covers
def test_a_reference(saved, tmp_path, capsys) -> None:
    assert main(["compare", "random-llama", "--reference", str(saved)]) == 2
    assert f"record random-llama --candidate {saved} --out run.trace" in capsys.readouterr().err
    short = ["random-llama", "--sequence-length", "8", "-q"]
    trace = str(tmp_path / "run.trace")
    assert main(["record", *short, "--candidate", str(saved), "--out", trace]) == 0
    given = ["random-llama", "--reference", trace, "--candidate", str(saved), "-q"]
    assert main(["compare", *given, "--isolate", "none", "--max-peir", "*=0"]) == 0


def test_a_graph_of_it(saved, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    part = ["random-llama", "--part", "mlp", "--candidate"]
    assert main(["export", *part, str(saved / "decode"), "--out", "saved.pt2"]) == 0
    assert "float32 [1, 1, 64]" in capsys.readouterr().out
    assert main(["export", *part, "sdpa", "--out", "other.pt2"]) == 2
    assert "or the folder of a saved quantised model" in capsys.readouterr().err


def test_a_damaged_one(saved, tmp_path, capsys) -> None:
    (tmp_path / "quantized.json").write_text("{")
    assert main(["compare", "random-llama", "--candidate", str(tmp_path)]) == 2
    assert "quantized.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "message"), [
    (["--out", "nowhere/out"], "does not exist; create it first"),
    ([], "the following arguments are required: --out"),
    (["--out", "out", "--export", "onnx"], "invalid choice: 'onnx'"),
    (["--out", "out", "--per-layer"], "give --export pt2|circle"),
])  # fmt: skip
def test_what_is_refused(tmp_path, monkeypatch, capsys, options, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(SHORT)
    assert main(["quantize", "random-llama", "--config", "recipe.toml", *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


def test_a_recipe_with_a_mistake(tmp_path, capsys) -> None:
    (tmp_path / "recipe.toml").write_text("[quantization]\nwieght = 'uint4'")
    options = ["--config", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out")]
    assert main(["quantize", "random-llama", *options]) == 2
    assert "unknown key 'wieght'; expected one of" in capsys.readouterr().err


@pytest.mark.covers
def test_the_example(tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["quantize", "tiny-llama", "--config", str(EXAMPLE), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "calibrated on the inputs themselves and 7 sequences of 64 tokens" in printed
    assert "\nfloat: perplexity 4.0909" in printed and "\nquantized: perplexity 4.2" in printed
    assert {path.name for path in (out / "decode").iterdir()} >= {"quantized.json"}
    assert main(["quantize", "tiny-llama", "--config", str(EXAMPLE), "--out", str(out)]) == 2
    assert "holds a saved model already" in capsys.readouterr().err
