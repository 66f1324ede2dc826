"""Writes reference/cli.md: what the command line's own parser says of its commands and options.

python docs/make_cli_reference.py
"""

import contextlib
import io
import os
from pathlib import Path

from tracer.cli import main as trace_model

PAGE = Path(__file__).parent / "reference" / "cli.md"
COMMANDS = (
    *("compare", "check", "record", "show", "diff", "history"),
    *("quantize", "export", "ablate"),
)


def page() -> str:
    """The whole page, as Markdown."""
    parts = ["# Command line", "Made by `docs/make_cli_reference.py`; do not edit."]
    for command in ("", *COMMANDS):
        title = f"trace_model {command}".strip()
        parts.append(f"## {title}\n\n```text\n{_help(command)}```")
    return "\n\n".join(parts) + "\n"


def _help(command: str) -> str:
    printed = io.StringIO()
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(printed):
            trace_model([command, "--help"] if command else ["--help"])
    finally:
        os.environ.pop("COLUMNS")
        if width is not None:
            os.environ["COLUMNS"] = width
    return printed.getvalue()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
