"""Completion in a shell, asked as bash asks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.checks import make_checks

pytest.importorskip("argcomplete")

ROOT = Path(__file__).parents[3]


def completed(line: str, folder: Path) -> list[str]:
    answer = folder / "answer"
    asked = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "COMP_LINE": line,
        "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }  # fmt: skip
    environment = os.environ | asked
    command = [sys.executable, "-m", "tracer"]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdin=subprocess.DEVNULL)
    return [name.strip() for name in answer.read_text().split("\n")]


def test_names_of_commands_checks_and_choices(tmp_path) -> None:
    make_checks(tmp_path)
    assert completed("trace_model ch", tmp_path) == ["check"]
    assert completed("trace_model check ga", tmp_path) == ["gated.loose", "gated.strict"]
    assert completed("trace_model compare x --dtype bf", tmp_path) == ["bfloat16"]
    found = completed("trace_model compare ", tmp_path)
    assert {"tiny-llama", "nets.py", "--candidate"} <= set(found)
    (tmp_path / "trace_model.toml").write_text("checks = [")
    assert "gated.loose" not in completed("trace_model check g", tmp_path)
