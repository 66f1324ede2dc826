"""The guide of checks, walked as it is printed: its file, its commands, what they print."""

import contextlib
import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from lxml import etree

from tracer.cli import main

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "checks.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(toml|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FIGURE = re.compile(r"\d[\d.e+-]*")


def steps(block: str) -> list[tuple[str, list[str]]]:
    """The commands of a block, each with the lines that are shown under it."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def run(command: str, code: int) -> tuple[str, int]:
    """What a command prints, and its exit code; that of the last one is known."""
    if command == "echo $?":
        return f"{code}\n", code
    if not command.startswith("trace_model "):
        subprocess.run(["bash", "-ec", command], check=True)
        return "", 0
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(shlex.split(command)[1:])
    return printed.getvalue(), code


def plain(text: str) -> str:
    """A line without its figures, which differ between machines, and with single spaces."""
    return " ".join(_FIGURE.sub("N", text).split())


def check_shown(shown: list[str], printed: str) -> None:
    """That lines were printed in this order; what stands after ... is left out."""
    lines = iter(printed.splitlines())
    for line in shown:
        begin, _, _ = line.partition("...")
        if begin:
            assert any(plain(known).startswith(plain(begin)) for known in lines), (line, printed)


@pytest.mark.slow
def test_every_command_as_printed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    code, commands = 0, []
    for kind, block in _BLOCK.findall(GUIDE):
        if kind == "toml":
            Path("pyproject.toml").write_text(block)
            continue
        for command, shown in steps(block):
            printed, code = run(command, code)
            check_shown(shown, printed)
            commands.append(command)
    assert len(commands) > 10
    suites = etree.parse("checks.xml").getroot()
    names = [suite.get("name") for suite in suites]
    assert names == ["attention.short", "attention.padded", "quantized"]
    failing = [suite.get("name") for suite in suites if int(suite.get("failures"))]
    assert failing == ["quantized"]
    assert Path("checks.md").read_text().startswith("## ❌ `2 of 3 checks pass")
