"""How much is printed: what each setting does meanwhile, and that it is as before afterwards."""

import logging
import os
import warnings

import pytest

from tracer.cli import main
from tracer.cli.streams import Output
from tracer.reports.progress import trial_counter


def said(capsys: pytest.CaptureFixture[str], *, warns: bool) -> str:
    """What reaches standard error of what is logged and warned of."""
    for name in ("tracer.cli", "another"):
        logging.getLogger(name).info("info of %s", name)
        logging.getLogger(name).error("error of %s", name)
    if warns:
        warnings.warn("a warning", stacklevel=2)
    return capsys.readouterr().err


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("output", "logged", "kept"),
    [
        (Output(verbose=True), ["info of tracer.cli", "error of tracer.cli"], ["info of another"]),
        (Output(quiet=True), ["error of another"], ["info of tracer.cli", "a warning"]),
        (Output(log_level="warning"), ["error of another", "a warning"], ["info of tracer.cli"]),
        (Output(log_level="info"), ["info of tracer.cli", "info of another", "a warning"], []),
        (Output(quiet=True, log_level="info"), ["info of another"], []),
    ],
)
def test_levels(output, logged, kept, capsys) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    with output.in_force():
        text = said(capsys, warns=not output.verbose)
    assert all(text.count(f"{line}\n") == 1 for line in logged), text
    assert not any(line in text for line in kept), text
    assert (root.level, list(root.handlers)) == before
    assert not logging.getLogger("tracer").handlers


@pytest.mark.parametrize(
    ("color", "expected"),
    [("auto", ("0", None)), ("always", ("1", None)), ("never", (None, "1"))],
)
def test_colour(color, expected, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "0")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Output(color=color).in_force():
        assert (os.environ.get("FORCE_COLOR"), os.environ.get("NO_COLOR")) == expected
    assert (os.environ.get("FORCE_COLOR"), os.environ.get("NO_COLOR")) == ("0", None)


def test_no_progress(capsys) -> None:
    for quiet in (True, False):
        with Output(quiet=quiet).in_force(), trial_counter("study") as tell:
            tell("a trial", 1, 2)
        assert ("a trial" in capsys.readouterr().err) is not quiet


@pytest.mark.covers
def test_what_compare_prints(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    given = ["compare", "random-llama", "--candidate", "sdpa", "--sequence-length", "4"]
    assert main([*given, "-q"]) == 0
    assert capsys.readouterr() == ("agrees\n", "")
    assert main([*given, "-v", "--color", "always"]) == 0
    printed = capsys.readouterr()
    assert "\x1b[" in printed.out
    assert "model=random-llama, candidate=sdpa, sequence_length=4" in printed.err


def test_a_traceback_of_an_error_of_its_own(capsys, monkeypatch) -> None:
    def compare(*_):
        raise ZeroDivisionError("x")

    monkeypatch.setattr("tracer.cli.compare.compare", compare)
    for options, shown in (([], False), (["--verbose"], True)):
        assert main(["compare", "random-llama", *options]) == 3
        assert ("Traceback" in capsys.readouterr().err) is shown
