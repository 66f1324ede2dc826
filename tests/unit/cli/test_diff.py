"""`trace_model diff`: two reports, and no model."""

from pathlib import Path

import pytest

from tracer.cli import main
from tracer.comparison.identity import Identity, SideIdentity
from tracer.reports import Run, save


@pytest.fixture
def report(tmp_path: Path, make_row, make_comparison, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")

    def write(name: str, peir: float, dtype: str = "float32", **run: object) -> str:
        rows = [make_row("a", 0.0), make_row("head", peir)]
        side = SideIdentity("Net", dtype, False)
        identity = Identity(side, side, {}, {})
        path = tmp_path / name
        save(make_comparison(rows, identity=identity), path, run=Run("m", "c", **run))
        return str(path)

    return write


def test_what_has_changed(report, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = report("old.json", 0.1, exit_code=0), report("new.json", 0.3, exit_code=1)
    assert main(["diff", old, new]) == 1
    printed = capsys.readouterr().out
    assert printed.splitlines()[1].startswith(f"{new}, ")
    assert ", exit code 1: m against c" in printed
    assert "gate: fails (--fail-on regression)" in printed
    assert "  worse " in printed
    assert main(["diff", new, old]) == 0
    assert "  better " in capsys.readouterr().out
    assert main(["diff", old, old]) == 0
    assert "2 outputs in common with" in capsys.readouterr().out


def test_what_fails(report, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = report("old.json", 0.1), report("new.json", 0.1)
    assert main(["diff", old, new, "--fail-on", "divergence"]) == 1
    expected = report("expected.json", 0.1, quantized=True, differences_expected=True)
    assert main(["diff", old, expected]) == 0
    assert "the models diverge" not in capsys.readouterr().out.split("expected.json", 1)[1]
    worse = report("worse.json", 0.9)
    assert main(["diff", old, worse, "--fail-on", "never"]) == 0


def test_of_different_comparisons(report, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = report("old.json", 0.1), report("new.json", 0.1, dtype="bfloat16")
    assert main(["diff", old, new]) == 2
    assert "the reference computes in float32, and here in bfloat16" in capsys.readouterr().err
    assert main(["diff", old, new, "--exit-skip", "125"]) == 125
    assert main(["diff", old, new, "--baseline-any"]) == 0
    assert "let pass by --baseline-any: " in capsys.readouterr().out


def test_every_change(report, make_row, make_comparison, tmp_path, capsys) -> None:
    paths = []
    for name, peir in (("a.json", 0.1), ("b.json", 0.5)):
        paths.append(str(tmp_path / name))
        make_comparison([make_row(f"m{i}", peir) for i in range(12)]).save(paths[-1])
    main(["diff", *paths])
    assert "2 more: 2 worse" in capsys.readouterr().out
    main(["diff", *paths, "--all"])
    printed = capsys.readouterr().out
    assert printed.count("\n  worse ") == 12
    assert "more: " not in printed


def test_bad_files(report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.json").write_text("{}")
    assert main(["diff", str(tmp_path / "bad.json"), report("new.json", 0.1)]) == 2
    assert "is no report of trace_model" in capsys.readouterr().err
    assert main(["diff", str(tmp_path / "none.json"), report("new.json", 0.1)]) == 2
    assert "there is no file" in capsys.readouterr().err
