"""Standard output and standard error: what goes there, and what is done where they are closed."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import TextIOWrapper
from typing import TextIO

from tracer.errors import UsageError
from tracer.text import visible


def check_open() -> None:
    """Checks that there is a standard output, and lets it show what it cannot encode.

    Raises:
        UsageError: it is closed.
    """
    if sys.stdout is None:
        raise UsageError("standard output is closed: redirect it to a file, or to /dev/null")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def alone(is_json: bool) -> Iterator[TextIO]:
    """The stream for a JSON report, and nothing of what models and libraries print meanwhile.

    That goes to standard error, from C code and other processes too.
    """
    out = sys.stdout
    if not is_json:
        yield out
        return
    descriptor = _descriptor(out)
    kept = None if descriptor != 1 else os.dup(1)
    try:
        if kept is not None and sys.stderr is not None:
            out.flush()
            os.dup2(sys.stderr.fileno(), 1)
            out = os.fdopen(kept, "w", encoding="utf-8", closefd=False)
        with redirect_stdout(sys.stderr):
            yield out
            out.flush()
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def say(message: str) -> None:
    """Prints a line to standard error, if there is one that can be written to."""
    if sys.stderr is not None:
        try:
            print(f"trace_model: {visible(message)}", file=sys.stderr)
        except OSError:  # full, or closed by its reader: the exit code is left to say it
            let_go(sys.stderr)


def let_go(stream: TextIO | None = None) -> None:
    """Keeps the interpreter from trying to flush what cannot be written when it ends.

    Args:
        stream: standard output by default.
    """
    stream = sys.stdout if stream is None else stream
    if _descriptor(stream) is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None
