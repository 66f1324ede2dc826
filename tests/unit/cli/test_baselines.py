"""`trace_model check --update-baseline`: what it writes, and what it says of it."""

import json
import sys
from pathlib import Path

import pytest

from tests.builders.checks import make_checks
from tracer.cli import main


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_checks(tmp_path)
    return tmp_path


def changed(former: str, now: str) -> None:
    file = Path("trace_model.toml")
    file.write_text(file.read_text().replace(former, now))


@pytest.mark.covers
def test_new_unchanged_and_worse(capsys) -> None:
    assert main(["check", "--update-baseline"]) == 0
    loose, *strict = capsys.readouterr().out.splitlines()
    assert loose == "gated.loose.json: new, 4 outputs"
    assert strict[0] == "gated.strict.json: new, 4 outputs"
    assert strict[1].startswith("  the check will fail: 1 of 1 outputs is beyond the limit 2=1e-09")
    assert not Path("gated.loose.md").exists()  # reports are those of a check
    assert main(["check", "gated", "-q"]) == 1
    assert "1 fails: gated.strict" in capsys.readouterr().out

    assert main(["check", "gated.loose", "--update-baseline"]) == 0
    assert capsys.readouterr().out == "gated.loose.json: none has changed, of 4 outputs\n"

    nets = Path("nets.py")
    for name, module in list(sys.modules.items()):  # another process would read it anew
        if getattr(module, "__file__", None) == str(nets.resolve()):
            del sys.modules[name]
    nets.write_text(nets.read_text().replace("make(1.5)", "make(3.25)"))  # the code gets worse
    changed('"*" = 5', '"0" = 5')
    assert main(["check", "gated.loose", "-q"]) == 1
    capsys.readouterr()
    assert main(["check", "gated.loose", "--update-baseline"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "gated.loose.json: 2 worse, of 4 outputs"
    assert "outputs are worse than in gated.loose.json" in said[1]
    assert main(["check", "gated.loose", "-q"]) == 0


@pytest.mark.covers
def test_nothing_is_written_unless_all_come_to_a_result(capsys) -> None:
    assert main(["check", "gated", "--update-baseline"]) == 0
    before = Path("gated.loose.json").read_bytes()
    changed("[checks.gated.input-sets.strict]", '[checks.gated.input-sets.strict]\ndtype="auto"')
    changed('max-peir = { "2" = 1e-9 }', 'candidate = "nets.py:crash"')
    capsys.readouterr()
    assert main(["check", "gated", "--update-baseline"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("trace_model: gated.strict: nets.py:crash cannot be called")
    assert said[1] == "trace_model: no baseline was written, as not all checks came to a result"
    assert Path("gated.loose.json").read_bytes() == before


@pytest.mark.covers
def test_of_something_else(capsys) -> None:
    assert main(["check", "gated.loose", "--update-baseline"]) == 0
    report = json.loads(Path("gated.loose.json").read_text())
    for row in report["rows"]:
        row["module"] = f"other.{row['module']}"
    Path("gated.loose.json").write_text(json.dumps(report))
    capsys.readouterr()
    assert main(["check", "gated.loose", "--update-baseline"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "gated.loose.json: 4 outputs, and the former one was of something else"
    assert main(["check", "gated.loose", "-q"]) == 0


@pytest.mark.parametrize(
    ("names", "former", "now", "message"),
    [
        (["good"], "", "", "checks.good has no baseline to update"),
        (["gated"], "{name}.json", "{name}.xml", "gated.loose.xml: expected FILE.json"),
        (["gated"], "{name}.json", "one.json", "is the baseline of both gated.loose and gated.st"),
        (["gated"], "{name}.json", "none/x.json", "does not exist; create it first"),
        ([], 'baseline = "{name}.json"', "", 'no check has a baseline = "FILE.json"'),
    ],
)
def test_refused(names, former, now, message, capsys) -> None:
    changed(former, now) if former else None
    assert main(["check", *names, "--update-baseline"]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
