"""`trace_model export`."""

import importlib.util

import pytest
import torch

from tracer.cli import main

SHORT = ["export", "random-llama", "--calibrate", "0", "--sequence-length", "8"]


def test_a_part_is_written_and_its_inputs_are_said(tmp_path, capsys) -> None:
    file = tmp_path / "mlp.pt2"
    options = ["--to", "pt2", "--part", "mlp", "--layer", "2", "--tokens", "4", "--out", str(file)]
    assert main([*SHORT, *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "calibrated on the inputs themselves"
    assert printed[2] == f"{file}: {file.stat().st_size:,} bytes, called with"
    assert printed[3] == "  hidden states: float32 [1, 4, 64]"
    program = torch.export.load(file).module()
    assert program(torch.ones(1, 4, 64)).shape == (1, 4, 64)


@pytest.mark.slow
def test_a_decode_step_of_the_model(tmp_path, capsys) -> None:
    file = tmp_path / "decode.pt2"
    assert main([*SHORT, "--variant", "decode", "--past", "3", "--out", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "  token ids: int64 [1, 1]\n" in printed
    assert "  past value 3: float32 [1, 4, 3, 8]\n" in printed


@pytest.mark.parametrize(("options", "message"), [
    (["--out", "a.onnx"], "--out a.onnx: expected a file that ends in .pt2 or .circle"),
    (["--to", "pt2", "--out", "a.circle"], "--out a.circle: expected a file that ends in .pt2"),
    (["--out", "nowhere/a.pt2"], "directory nowhere does not exist; create it first"),
    (["--out", "a.pt2", "--steps", "2"], "--steps generates, and one graph is exported"),
    (["--out", "a.pt2", "--layer", "2"], "--layer goes with --part layer, attention or mlp"),
    (["--out", "a.pt2", "--part", "mlp", "--past", "2"], "--past goes with attention"),
    (["--out", "a.pt2", "--candidate", "sdpa"], "--calibrate goes with --candidate quantized"),
    (["--out", "a.pt2", "--part", "layer", "--layer", "9"], "expected 0 to 3"),
    ([], "the following arguments are required: --out"),
])  # fmt: skip
def test_what_is_refused(options, message, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*SHORT, *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_circle_without_its_converter(capsys, monkeypatch, tmp_path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "tracer.cli.parser.export.find_spec", lambda name: None if name == "tico" else find(name)
    )
    assert main([*SHORT, "--out", str(tmp_path / "a.circle")]) == 2
    assert "pip install 'tico>=0.3'" in capsys.readouterr().err
