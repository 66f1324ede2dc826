"""`trace_model check`: what it runs, prints and writes, and its exit code."""

import shlex
from pathlib import Path

import pytest
from lxml import etree

from tests.builders.checks import make_checks
from tracer.cli import main
from tracer.cli.check import Suite
from tracer.cli.parser import parse

XSD = etree.XMLSchema(etree.parse(Path(__file__).parents[2] / "builders" / "junit.xsd"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    make_checks(tmp_path)
    return tmp_path


@pytest.mark.covers
def test_one_that_fails_does_not_stop_the_others(capsys) -> None:
    assert main(["check", "--report", "all.xml", "--report", "all.md"]) == 2
    printed = capsys.readouterr()
    ends = [line.split(": ", 2)[2].split(" (")[0] for line in printed.err.splitlines()]
    assert ends == [
        *("good: passes", "gated.loose: no result", "gated.strict: no result", "bad: fails"),
        "ended: no result",
    ]
    table = printed.out[printed.out.index("check  ") :]
    rows = {line.split()[0]: line for line in table.splitlines() if line}
    assert rows["good"].endswith("agrees")
    assert "make it: trace_model check gated.loose --update-baseline" in rows["gated.loose"]
    assert "trace_model.toml: checks.gated.input-sets.loose: " in rows["gated.loose"]
    assert "nets.py:crash cannot be called: SystemExit: 7" in rows["ended"]
    assert printed.out.index("bad: diverges: ") < printed.out.index("Confirmed: ")
    assert printed.out.endswith(
        "1 of 5 checks passes; 1 fails: bad; 3 have no result: gated.loose, gated.strict, ended\n"
    )
    suites = etree.parse("all.xml")
    XSD.assertValid(suites)
    found = {suite.get("name"): suite for suite in suites.getroot()}
    assert list(found) == ["good", "gated.loose", "gated.strict", "bad", "ended"]
    counts = {name: (s.get("failures"), s.get("errors")) for name, s in found.items()}
    assert counts["good"] == ("0", "0")
    assert (counts["bad"], counts["ended"]) == (("1", "0"), ("0", "1"))
    assert suites.getroot().get("errors") == "3"
    page = Path("all.md").read_text()
    assert page.startswith("## ❌ `1 of 5 checks passes; ")
    assert "| ❌ fails | `bad` | `diverges: " in page
    assert "### Where" in page or "Confirmed" in page  # the report of the one that fails


@pytest.mark.parametrize(
    ("names", "code"), [(["good"], 0), (["good", "bad"], 1), (["ended", "bad"], 2)]
)
def test_the_exit_code_is_that_of_the_worst(names, code, capsys) -> None:
    assert main(["check", *names, "-q"]) == code
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.count("\n") == 1


@pytest.mark.covers
def test_an_error_of_its_own_is_worst(monkeypatch, capsys) -> None:
    def examine(request, command):
        if request.candidate == "nets.py:right":
            raise ZeroDivisionError("x")
        return whole(request, command)

    from tracer.cli import compare

    whole = compare.examine
    monkeypatch.setattr(compare, "examine", examine)
    assert main(["check", "good", "ended", "bad"]) == 3
    assert "an error of its own, ZeroDivisionError: x; please report it" in capsys.readouterr().out
    assert main(["check", "good", "bad", "-v"]) == 3
    printed = capsys.readouterr()
    assert "Traceback" in printed.err
    assert "Traceback" not in printed.out
    assert "coverage: " in printed.out  # the whole report of the other


def test_it_stops_where_it_is_interrupted(monkeypatch) -> None:
    def examine(request, command):
        raise KeyboardInterrupt

    monkeypatch.setattr("tracer.cli.compare.examine", examine)
    assert main(["check", "good"]) == 130


def test_a_printed_command_does_the_same(folder, monkeypatch, capsys) -> None:
    assert main(["check", "bad", "--print-command"]) == 0
    command = capsys.readouterr().out
    assert command == "trace_model compare nets.py:right --candidate nets.py:wrong\n"
    request = parse(["check", "bad"])
    suite = Suite.open(request)
    [check] = suite.configuration.select(["bad"])
    assert suite.request(check, request) == parse(shlex.split(command)[1:])
    assert main(["check", "gated", "--print-command", "--dtype", "float64"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "trace_model compare nets.py:right --candidate nets.py:wrong --baseline gated.loose.json "
        "--report gated.loose.md --max-peir '*=5' --dtype float64  # gated.loose",
        "trace_model compare nets.py:right --candidate nets.py:wrong --baseline gated.strict.json "
        "--report gated.strict.md --max-peir 2=1e-09 --dtype float64  # gated.strict",
    ]
    (folder / "below").mkdir()
    monkeypatch.chdir(folder / "below")
    assert main(["check", "bad", "--print-command"]) == 0
    assert capsys.readouterr().out == f"cd .. && {command}"
    assert main(["check", "good", "-q"]) == 0  # paths start from the file's folder
    assert Path.cwd() == folder / "below"


def test_the_environment_counts_before_a_check(monkeypatch, capsys) -> None:
    text = Path("trace_model.toml").read_text()
    Path("trace_model.toml").write_text(f"dtype = 'float64'\n{text}")
    assert main(["check", "bad", "--print-command"]) == 0
    monkeypatch.setenv("TRACE_MODEL_DTYPE", "bfloat16")
    assert main(["check", "bad", "--print-command"]) == 0
    assert main(["check", "bad", "--print-command", "--dtype", "float32"]) == 0
    printed = capsys.readouterr().out.splitlines()
    dtypes = [words[words.index("--dtype") + 1] for words in map(str.split, printed)]
    assert dtypes == ["float64", "bfloat16", "float32"]


def test_the_list(capsys) -> None:
    assert main(["check", "--list", "gated"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "gated.loose   nets.py:right against nets.py:wrong, baseline gated.loose.json",
        "gated.strict  nets.py:right against nets.py:wrong, baseline gated.strict.json",
    ]


def test_refused_before_anything_is_run(folder, monkeypatch, capsys) -> None:
    assert main(["check", "goood"]) == 2
    assert "has no check 'goood'; it has good, gated.loose" in capsys.readouterr().err
    with Path("trace_model.toml").open("a") as file:
        file.write("[checks.a]\nreport = 'x.md'\n[checks.b]\nreport = './x.md'\n")
    assert main(["check"]) == 2
    assert "./x.md is written by both a and b: put {name} into it" in capsys.readouterr().err
    (folder / "trace_model.toml").unlink()
    assert main(["check"]) == 2
    assert "no configuration in " in capsys.readouterr().err
