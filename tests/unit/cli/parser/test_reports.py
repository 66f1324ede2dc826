"""The options of `diff` and `history`."""

from pathlib import Path

import pytest

from tracer.cli.parser import parse
from tracer.cli.report_requests import DiffRequest, HistoryRequest


def test_diff(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    for path in (old, new):
        path.write_text("{}")
    assert parse(["diff", str(old), str(new)]) == DiffRequest(former=old, now=new)
    given = ["--fail-on", "coverage", "--baseline-any", "--exit-skip", "125", "--all"]
    assert parse(["diff", str(old), str(new), *given]) == DiffRequest(
        former=old, now=new, fail_on="coverage", baseline_any=True, exit_skip=125, all=True
    )


def test_history() -> None:
    assert parse(["history", "reports", "--module", "*.head"]) == HistoryRequest(
        folder=Path("reports"), module="*.head"
    )


def test_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["diff"], ["history"]):
        with pytest.raises(SystemExit) as stop:
            parse(given)
        assert stop.value.code == 2
    assert "the following arguments are required: DIR" in capsys.readouterr().err
