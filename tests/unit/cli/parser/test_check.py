"""The options of `trace_model check`."""

from pathlib import Path

import pytest

from tracer.cli.parser import parse
from tracer.cli.requests import CheckRequest
from tracer.errors import UsageError


def test_what_is_given(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse(["check"]) == CheckRequest()
    request = parse(["check", "a", "b.c", "--dtype", "float64", "--report", "x.xml"])
    assert request == CheckRequest(
        names=("a", "b.c"), dtype="float64", report=(Path("x.xml").absolute(),)
    )
    assert parse(["check", "--list"]).listing


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--report x.html", "expected .xml or .md; other reports are those of a check"),
        ("--list --print-command", "not allowed with argument --list"),
        ("--file none.toml", "there is no file none.toml"),
        ("--dtype int8", "invalid choice: 'int8'"),
        ("--lst", "did you mean '--list'"),
    ],
)
def test_refused(given, message, capsys) -> None:
    with pytest.raises(SystemExit):
        parse(["check", *given.split()])
    assert message in capsys.readouterr().err


def test_what_runs_nothing_writes_no_report(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--list writes no --report"):
        parse(["check", "--list", "--report", "x.md"])
