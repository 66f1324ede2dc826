"""The versions of what a comparison ran on, and when and at which commit it did."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata

import torch

import tracer

# Seconds that git may take; a repository on a slow disk is not worth more.
_PATIENCE = 10.0


def environment() -> dict[str, str]:
    """The versions by name, the platform, the date, and the commit where there is one.

    The commit is that of the working directory's repository, with "-dirty" where files that it
    knows were changed; `commit_date` is when it was made.
    """
    return {
        "trace_model": tracer.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "platform": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **commit(),
    }


def commit() -> dict[str, str]:
    """The commit that the working directory is at, and its date; empty where git knows of none."""
    name = _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    date = _git("log", "-1", "--format=%cI")
    return {"commit": name, "commit_date": date} if name and date else {}


def _git(*arguments: str) -> str:
    """What git prints; empty where it is not installed, or the folder is in no repository."""
    try:
        ran = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""
