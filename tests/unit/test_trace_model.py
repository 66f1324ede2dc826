"""The alias package: ours, whatever comes first on the path, and nothing until it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

import trace_model
import tracer
import wrappers

ROOT = Path(__file__).parents[2]


def run(program: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a folder, whose modules come before ours."""
    (folder / "program.py").write_text(program)
    path = [str(folder), str(ROOT)]
    program = f"import sys; sys.path[:0] = {path!r}; exec(open('program.py').read())"
    return subprocess.run(
        [sys.executable, *options, "-c", program],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_it_holds_both_packages():
    assert trace_model.tracer is tracer
    assert trace_model.wrappers is wrappers
    assert {"tracer", "wrappers"} <= set(dir(trace_model))
    with pytest.raises(AttributeError, match="module 'trace_model' has no attribute 'tracing'"):
        trace_model.tracing  # noqa: B018


def test_nothing_is_imported_before_it_is_used(tmp_path):
    program = """
import trace_model
loaded = [name for name in ("tracer", "wrappers", "torch") if name in sys.modules]
assert not loaded, loaded
assert trace_model.tracer.UsageError
assert "wrappers" not in sys.modules and "torch" not in sys.modules
"""
    finished = run(program, tmp_path, "-W", "error")
    assert finished.returncode == 0, finished.stderr


def test_a_module_of_the_users_own_does_not_come_first(tmp_path):
    (tmp_path / "tracer.py").write_text("is_of_the_user = True\n")
    program = """
from trace_model import tracer as ours
assert not hasattr(ours, "is_of_the_user")
import tracer, tracer.errors
assert tracer is ours
assert tracer.errors.UsageError is ours.UsageError
"""
    finished = run(program, tmp_path)
    assert finished.returncode == 0, finished.stderr


def test_where_the_users_own_was_imported_before_a_sentence_says_so(tmp_path):
    place = tmp_path / "wrappers.py"
    place.write_text("")
    finished = run("import wrappers\nimport trace_model\ntrace_model.wrappers\n", tmp_path)
    assert finished.stderr.splitlines()[-1].startswith(
        "ImportError: another module named 'wrappers' was imported before trace_model.wrappers, "
        f"from {place}, and a process has room for one: "
    )


def test_a_failed_import_leaves_nothing_behind(tmp_path, monkeypatch):
    (tmp_path / "tracer").mkdir()
    (tmp_path / "tracer" / "__init__.py").write_text("raise RuntimeError('broken')\n")
    monkeypatch.setattr(trace_model, "_HOME", tmp_path)
    monkeypatch.delitem(sys.modules, "tracer")
    with pytest.raises(RuntimeError, match="broken"):
        trace_model._own("tracer")
    assert "tracer" not in sys.modules


def test_the_command_line_as_a_module(tmp_path):
    (tmp_path / "tracer.py").write_text("raise RuntimeError('another tracer')\n")
    for package in ("tracer", "wrappers", "trace_model"):
        assert (ROOT / package / "py.typed").is_file()
    finished = subprocess.run(
        [sys.executable, "-m", "trace_model", "--version"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert tracer.__version__ in finished.stdout
