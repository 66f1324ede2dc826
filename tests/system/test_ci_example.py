"""The workflow of examples/ci: its commands, run as they stand, pass and catch a regression."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tracer.cli.configuration import Configuration
from tracer.cli.keys import Keys
from tracer.cli.parser import make_parser, parse
from tracer.cli.requests import CheckRequest

REPOSITORY = Path(__file__).parents[2]
CI = REPOSITORY / "examples" / "ci"
WORKFLOW: dict[Any, Any] = yaml.safe_load((CI / "trace_model.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = WORKFLOW["jobs"]["gate"]["steps"]

# Instead of GitHub's own command: it keeps what it was given.
GH = """#!/bin/sh
printf '%s\\n' "$@" > comment.arguments
"""


def run(folder: Path, *change: str) -> dict[str, int]:
    """Runs the commands of all steps but the installation; the exit codes by step.

    Args:
        change: what stands in the checks, and what is to stand there instead.
    """
    shutil.copytree(CI, folder / "examples" / "ci")
    if change:
        checks = folder / WORKFLOW["env"]["CONFIGURATION"]
        checks.write_text(checks.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    gh = folder / "bin" / "gh"
    gh.parent.mkdir()
    gh.write_text(GH)
    gh.chmod(0o755)
    given = {
        "PATH": f"{gh.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "GITHUB_EVENT_NAME": "pull_request",
        "CI": "true",
    }
    codes = {}
    for step in STEPS:
        if "run" in step and step["name"] != "Install":
            own = {"GH_TOKEN": "token", "NUMBER": "7"} if "env" in step else {}
            shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
            environment = os.environ | WORKFLOW["env"] | given | own
            finished = subprocess.run(
                shell, cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            # An exception would exit with 1 as well.
            assert finished.returncode in (0, 1), finished.stderr
            assert "Traceback" not in finished.stderr, finished.stderr
            codes[step["name"]] = finished.returncode
    return codes


@pytest.mark.skipif(shutil.which("bash") is None, reason="the workflow's commands are for bash")
@pytest.mark.slow
class TestCommands:
    def test_as_it_stands_it_passes(self, tmp_path):
        assert run(tmp_path) == {"Check": 0, "Summary": 0, "Comment": 0}
        summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
        assert summary.startswith("## ✅ `3 of 3 checks pass`")
        assert "| ✅ passes | `attention.padded` | `agrees` |" in summary
        assert "and no worse than in baseline.json` |" in summary
        assert (tmp_path / "comment.arguments").read_text().split()[:3] == ["pr", "comment", "7"]
        assert {path.suffix for path in tmp_path.glob("trace_model.*")} == {".md", ".xml"}
        reports = {path.name for path in (tmp_path / "examples" / "ci").glob("report-*")}
        names = "quantized", "attention.short", "attention.padded"
        assert reports == {f"report-{name}{end}" for name in names for end in (".html", ".json")}

    def test_a_regression_fails(self, tmp_path):
        """Weights of fewer bits, and a candidate that says nothing else of it."""
        change = 'weight = "uint8"', 'weight = "uint4"\nisolate = "none"\nbaseline-any = true'
        assert run(tmp_path, *change)["Check"] == 1
        summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
        assert summary.startswith("## ❌ `2 of 3 checks pass; 1 fails: quantized`")
        assert "| ✅ passes | `attention.short` | `agrees` |" in summary
        assert "outputs are worse than in baseline.json" in summary
        assert "| worse | `model.embed_tokens` |" in summary
        assert "beyond the limit lm\\_head=0.2: most `lm_head`" in summary


def test_the_command_that_makes_the_baseline():
    """It stands in the text beside the workflow."""
    text = (CI / "README.md").read_text(encoding="utf-8")
    command = text[text.index("    trace_model check") :].split("\n\n")[0]
    made = parse(shlex.split(command)[1:])
    assert isinstance(made, CheckRequest)
    assert made.update_baseline
    configuration = Configuration.read(REPOSITORY / made.file, Keys(make_parser()[1]["compare"]))
    [check] = configuration.select(made.names)
    assert check.options["baseline"] == "baseline.json"
    (step,) = (step["run"] for step in STEPS if step.get("name") == "Check")
    held = parse(shlex.split(step.replace("$CONFIGURATION", WORKFLOW["env"]["CONFIGURATION"]))[1:])
    assert held.file == made.file


def test_what_the_steps_and_the_baseline_hold():
    after = [
        step for step in STEPS if step.get("name") in ("Summary", "Comment", "Keep the reports")
    ]
    assert len(after) == 3
    assert all(step["if"].startswith("always()") for step in after)
    text = (CI / "baseline.json").read_text(encoding="utf-8")
    assert len(text) < 110_000
    assert '"/' not in text
