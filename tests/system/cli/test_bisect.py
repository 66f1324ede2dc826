"""`git bisect run trace_model compare ... --exit-skip 125` on a real repository of ten commits."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ORIGINAL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))

def build():
    return nn.Sequential(Block(), Block()).eval(), {"input": torch.linspace(-1, 1, 16).view(2, 8)}
"""
WRONG, BROKEN = 8, 5  # the commits, from 1: the first that diverges, and one that does not import


def git(folder: Path, *arguments: str) -> str:
    ran = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {
            "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b.c", "GIT_COMMITTER_NAME": "A",
            "GIT_COMMITTER_EMAIL": "a@b.c", "GIT_CONFIG_GLOBAL": os.devnull,
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, list[str]]:
    """A port of a model in ten commits, and their names."""
    folder = tmp_path / "port"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "original.py").write_text(ORIGINAL)
    commits = []
    for number in range(1, 11):
        port = ORIGINAL + f"\n# commit {number}\n"
        if number >= WRONG:
            port = port.replace("x + self.down", "x - self.down")
        if number == BROKEN:
            port = f"import torch_of_tomorrow\n{port}"
        (folder / "port.py").write_text(port)
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", f"commit {number}")
        commits.append(git(folder, "rev-parse", "HEAD").strip())
    return folder, commits


def bisect(folder: Path, commits: list[str], *options: str) -> str:
    """The commit that git calls the first bad one."""
    command = "import sys; from tracer.cli import main; sys.exit(main(sys.argv[1:]))"
    compare = ("compare", "original.py:build", "--candidate", "port.py:build")
    git(folder, "bisect", "start", commits[-1], commits[0])
    said = git(folder, "bisect", "run", sys.executable, "-c", command, *compare, *options)
    git(folder, "bisect", "reset")
    (line,) = (line for line in said.splitlines() if "is the first bad commit" in line)
    return line.split()[0]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.slow
class TestBisect:
    def test_the_commit_is_found_beside_one_that_does_not_import(self, repository):
        folder, commits = repository
        assert bisect(folder, commits, "--exit-skip", "125") == commits[WRONG - 1]

    def test_without_the_option_the_one_that_does_not_import_is_named(self, repository):
        folder, commits = repository
        assert bisect(folder, commits) == commits[BROKEN - 1]
