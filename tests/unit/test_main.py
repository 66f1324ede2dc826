"""`python -m tracer` is `trace_model`."""

import subprocess
import sys
from pathlib import Path

import tracer


def test_it_is_the_command_line() -> None:
    command = [sys.executable, "-m", "tracer"]
    root = Path(__file__).parents[2]
    for given, code, said in (
        (["--version"], 0, f"trace_model {tracer.__version__}"),
        (["compare", "tiny-llama", "--foc"], 2, "unknown option or argument '--foc'"),
    ):
        ran = subprocess.run([*command, *given], cwd=root, capture_output=True, text=True)
        assert ran.returncode == code
        assert said in ran.stdout + ran.stderr
