"""What input may ask for, and what the command line makes of errors that nobody expected."""

import stat
import sys
from pathlib import Path

import pytest

import tracer.cli
from tracer.cli import main
from tracer.errors import UsageError
from tracer.execution.limits import (
    check_memory,
    check_rule,
    in_bytes,
    read_json,
    time_limit,
    user_path,
)
from tracer.reports import check_path
from tracer.text import visible


@pytest.mark.parametrize("text", ["[" * 201 + "]" * 201, "[" * 10**5, "{", b"\xff"])
def test_no_json(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        read_json(text)


def test_json_of_some_depth() -> None:
    assert read_json("[" * 150 + "]" * 150)


@pytest.mark.parametrize("name", ["x" * 300, "~nouser9/x", "a\0b"])
def test_no_path(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be used as a path"):
        user_path(name)


@pytest.mark.parametrize("rule", [("(", "x"), ("a", r"\g<zz>"), ("a{99999999999}", "x")])
def test_no_rule(rule: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="no valid regular expression"):
        check_rule(*rule)


def test_sizes() -> None:
    assert in_bytes(3_200_000_000_000) == "3.2 TB"
    with pytest.raises(UsageError, match="would need 1e"):
        check_memory(10**24, "it")


def test_time() -> None:
    with pytest.raises(UsageError, match="it takes more than"), time_limit("it", 0.05):
        while True:
            pass


def test_visible() -> None:
    assert visible("a\x1b[31m\n\ud800") == "a\u241b[31m\n\ufffd"


def test_reports_replace_files_only(tmp_path: Path) -> None:
    (tmp_path / "closed.md").touch(stat.S_IRUSR)
    (tmp_path / "nowhere.md").symlink_to("none/a.md")
    for name in ("closed.md", "x" * 260 + ".md"):
        with pytest.raises(UsageError):
            check_path(tmp_path / name)
    assert check_path(tmp_path / "new.md").is_absolute()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ZeroDivisionError("x"), 3, "an error of its own, ZeroDivisionError"),
        (GeneratorExit(), 3, "an error of its own"),
        (MemoryError(), 2, "out of memory"),
        (OSError(28, "No space left on device"), 2, "standard output: No space left"),
        (SystemExit(1), 2, "has ended the program"),
        (RecursionError("deep"), 3, "RecursionError"),
    ],
)
def test_the_last_resort(error, code, said, monkeypatch, capsys) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(tracer.cli, "_run", fail)
    monkeypatch.setattr(tracer.cli, "let_go", lambda: None)
    assert main(["compare", "random-llama"]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    monkeypatch.setenv("TRACE_MODEL_DEBUG", "1")
    main(["compare", "random-llama"])
    assert ("Traceback" in capsys.readouterr().err) == (not isinstance(error, SystemExit))


def test_no_standard_output(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["compare", "random-llama"]) == 2
    assert "standard output is closed" in capsys.readouterr().err
