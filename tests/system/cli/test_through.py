"""`compare --through`, and files of other formats on the command line."""

import pytest

from tests.builders import onnx_files
from tracer.cli import main

SOURCE = """
from tests.builders.onnx_files import inputs, net

def build():
    return net(), inputs()
"""


@pytest.fixture(autouse=True)
def _there(tmp_path, monkeypatch) -> None:
    (tmp_path / "port.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.covers
def test_each_stage_is_compared_with_the_one_before(capsys) -> None:
    assert main(["compare", "port.py:build", "--through", "pt2"]) == 0
    printed = capsys.readouterr().out
    assert "there are no wrappers for Net" in printed
    assert "float -> exported: agrees" in printed
    assert "exported -> run: agrees" in printed
    assert "Every stage agrees with the one before" in printed


@pytest.mark.covers
def test_the_first_stage_that_is_wrong_is_named(capsys, monkeypatch) -> None:
    from tracer.cli import through

    def write(model, program, inputs, file) -> None:
        import torch

        model.second.down.weight.data.mul_(1.5)
        torch.export.save(torch.export.export(model, (), inputs), file)
        model.second.down.weight.data.div_(1.5)

    monkeypatch.setattr(through, "_write", write)
    assert main(["compare", "port.py:build", "--through", "pt2"]) == 1
    printed = capsys.readouterr().out
    assert "float -> exported: agrees" in printed
    assert "The error comes in at the stage `run`:" in printed
    assert "`second.down`" in printed


def test_stages_are_its_own(capsys) -> None:
    assert main(["compare", "port.py:build", "--through", "pt2", "--candidate", "sdpa"]) == 2
    assert "--through makes its own stages of MODEL" in capsys.readouterr().err


@pytest.mark.covers
def test_an_onnx_file_is_a_candidate(capsys, tmp_path) -> None:
    onnx_files.write(onnx_files.model_of(onnx_files.net()), tmp_path / "right.onnx")
    assert main(["compare", "port.py:build", "--candidate", "right.onnx"]) == 0
    model = onnx_files.model_of(onnx_files.net())
    onnx_files.node_of(model, "second_c").attribute[0].i = 1
    onnx_files.write(model, tmp_path / "wrong.onnx")
    capsys.readouterr()
    assert main(["compare", "port.py:build", "--candidate", "wrong.onnx"]) == 1
    printed = capsys.readouterr().out
    assert "`second`" in printed
    assert "Confirmed" in printed
    assert main(["show", "wrong.onnx", "--tree"]) == 2
    assert "--inputs" in capsys.readouterr().err
    (tmp_path / "broken.onnx").write_bytes(b"\x08")
    assert main(["compare", "port.py:build", "--candidate", "broken.onnx"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
