"""The versions that a report is of, and when and at which commit it was written."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

import tracer
from tracer.environment import commit, environment


def test_what_it_ran_on() -> None:
    found = environment()
    assert (found["trace_model"], found["torch"]) == (tracer.__version__, torch.__version__)
    assert {"python", "transformers", "platform"} <= found.keys()
    assert all(found.values())
    age = datetime.now(UTC) - datetime.fromisoformat(found["date"])
    assert timedelta(seconds=-1) < age < timedelta(minutes=1)


def git(folder: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    command = ["git", *settings, *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_commit_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert commit() == {}
    git(tmp_path, "init", "-q")
    assert commit() == {}  # nothing has been committed
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag is no name of it")
    head = git(tmp_path, "rev-parse", "HEAD")
    found = commit()
    assert found["commit"] == head
    assert datetime.fromisoformat(found["commit_date"]).tzinfo is not None
    (tmp_path / "a").write_text("2")
    assert commit()["commit"] == f"{head}-dirty"


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == {}
