"""`trace_model history`: what is printed of a folder of reports."""

from pathlib import Path

import pytest

from tracer.cli import main
from tracer.reports import Run, save


@pytest.fixture
def folder(tmp_path: Path, make_row, make_comparison) -> Path:
    for place, peir in enumerate((1e-7, 0.01, 0.25)):
        comparison = make_comparison([make_row("head", 0.0), make_row("", peir)])
        run = Run("a", "b", exit_code=int(peir > 1e-5))
        save(comparison, tmp_path / f"{place}.json", run=run)
    (tmp_path / "other.json").write_text("[]")
    return tmp_path


def test_a_table_and_a_curve(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", str(folder)]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert lines[0] == ["a", "against", "b"]
    assert lines[2] == ["date", "commit", "code", "verdict", "PEIR", "SQNR", "cosine", "report"]
    found = [(line[3], line[4], line[5], line[-1]) for line in lines[3:6]]
    assert found == [
        ("0", "agrees", "1.00e-07", "0.json"), ("1", "diverges", "1.00e-02", "1.json"),
        ("1", "diverges", "2.50e-01", "2.json"),
    ]  # fmt: skip
    assert "reports, the oldest first" in printed
    assert "no reports of trace_model: other.json" in printed


def test_of_other_outputs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", str(folder), "--module", "head"]) == 0
    printed = capsys.readouterr().out
    assert "figures of outputs of head" in printed
    assert main(["history", str(folder), "--module", "haed"]) == 2
    assert "did you mean 'head'?" in capsys.readouterr().err
