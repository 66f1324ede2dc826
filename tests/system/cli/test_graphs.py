"""Files with exported graphs on the command line: as either side, shown, recorded, refused."""

import pytest
import torch

from tests.builders.exported import exported, planted
from tracer.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a program, one with a mistake in it, and one that is none."""
    place = tmp_path_factory.mktemp("graphs")
    program = exported()
    torch.export.save(program, place / "right.pt2")
    torch.export.save(planted(program, "wrong scale"), place / "wrong.pt2")
    (place / "broken.pt2").write_bytes(b"no archive")
    return place


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.covers
def test_both_sides_are_given_what_a_program_was_exported_with(capsys) -> None:
    assert main(["compare", "right.pt2", "--candidate", "right.pt2"]) == 0
    assert "inputs: of right.pt2: ids, mask" in capsys.readouterr().out


@pytest.mark.covers
def test_a_wrong_graph_is_named_on_either_side(capsys) -> None:
    assert main(["compare", "right.pt2", "--candidate", "wrong.pt2"]) == 1
    printed = capsys.readouterr().out
    assert "scores = scores * 0.35" in printed
    assert "Confirmed" in printed
    assert main(["compare", "right.pt2", "--reference", "wrong.pt2"]) == 1
    assert "`blocks.1.attn`" in capsys.readouterr().out


@pytest.mark.covers
def test_show_and_record(capsys, tmp_path) -> None:
    assert main(["show", "right.pt2", "--tree"]) == 0
    assert "attn (Attention)" in capsys.readouterr().out
    trace = str(tmp_path / "run.trace")
    assert main(["record", "right.pt2", "--out", trace]) == 0
    assert main(["compare", "right.pt2", "--candidate", trace]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "right.pt2", "--candidate", "broken.pt2"], "is no archive"),
        (["compare", "right.pt2", "--candidate", "none.pt2"], "there is no file none.pt2"),
        (["compare", "random-llama", "--candidate", "right.pt2"], "takes"),
        (["compare", "right.pt2", "--candidate", "wrong.pt2", "--train"], "has no mode"),
        (["show", "right.pt2", "--batch", "2"], "leave out what describes others"),
        (["show", "broken.pt2"], "is no archive"),
    ],
)
def test_what_does_not_fit_is_one_sentence(capsys, arguments, said) -> None:
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]
    assert "Traceback" not in "".join(lines)
