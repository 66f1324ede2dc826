"""The workflow of examples/ci: its commands, run as they stand, pass and catch a regression."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tracer.cli.parser import parse
from tracer.cli.types import limit

REPOSITORY = Path(__file__).parents[2]
CI = REPOSITORY / "examples" / "ci"
WORKFLOW: dict[Any, Any] = yaml.safe_load((CI / "trace_model.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = WORKFLOW["jobs"]["gate"]["steps"]

# Instead of GitHub's own command: it keeps what it was given.
GH = """#!/bin/sh
printf '%s\\n' "$@" > comment.arguments
"""


def run(folder: Path, **changed: str) -> dict[str, int]:
    """Runs the commands of all steps but the installation; the exit codes by step."""
    (folder / "examples").symlink_to(REPOSITORY / "examples")
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
            environment = os.environ | WORKFLOW["env"] | given | own | changed
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
        assert run(tmp_path) == {"Compare": 0, "Summary": 0, "Comment": 0}
        summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
        assert summary.startswith("## ⚠️ diverges at model.embed\\_tokens")
        assert "and no worse than in examples/ci/baseline.json" in summary
        assert "71 outputs in common with examples/ci/baseline.json: none has changed" in summary
        assert (tmp_path / "comment.arguments").read_text().split()[:3] == ["pr", "comment", "7"]
        assert {path.suffix for path in tmp_path.glob("trace_model.*")} == {
            *(".md", ".html", ".xml", ".json")
        }

    def test_a_regression_fails(self, tmp_path):
        """Weights of fewer bits, which stand for a change of the code that makes it worse."""
        weaker = WORKFLOW["env"]["QUANTIZED"].replace("--weight uint8", "--weight uint4")
        weaker += " --baseline-any"
        assert run(tmp_path, QUANTIZED=weaker)["Compare"] == 1
        summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
        assert summary.startswith("## ❌ fails: ")
        assert "outputs are worse than in examples/ci/baseline.json" in summary
        assert "| worse | `model.embed_tokens` |" in summary
        assert "beyond the limit lm\\_head=0.2: most `lm_head`" in summary


def test_every_option_is_known():
    """Also those of the command that makes the baseline, in the text beside the workflow."""
    text = (CI / "README.md").read_text(encoding="utf-8")
    command = text[text.index("    trace_model compare") :].split("\n\n")[0].replace("\\\n", " ")
    made = parse(command.split()[1:])
    (compare,) = (step["run"] for step in STEPS if step.get("name") == "Compare")
    for name, value in WORKFLOW["env"].items():
        compare = compare.replace(f"${name}", value)
    held = parse(compare.split()[1:])
    assert held.max_peir == (limit("lm_head=0.2"),)
    # What makes model, candidate and inputs is the same.
    for name in ("model", "candidate", "activation", "weight", "sequence_length", "calibrate"):
        assert getattr(made, name) == getattr(held, name)
    assert made.report == (Path("examples/ci/baseline.json").absolute(),)


def test_what_the_steps_and_the_baseline_hold():
    after = [
        step for step in STEPS if step.get("name") in ("Summary", "Comment", "Keep the reports")
    ]
    assert len(after) == 3
    assert all(step["if"].startswith("always()") for step in after)
    text = (CI / "baseline.json").read_text(encoding="utf-8")
    assert len(text) < 110_000
    assert '"/' not in text
