"""What input may ask for: paths, depth of nesting, memory, time.

Whatever is read of users (checkpoints, traces, baselines, options) goes through these, so that none
of it ends in an exception of Python's own, takes all memory or never ends.
"""

import json
import os
import re
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tracer.errors import UsageError
from tracer.text import brief, cut

MOST_NESTED = 200
LARGEST_INTEGER = 2**63 - 1
_SECONDS = 5.0
LONGEST_NAME = 10_000
_UNITS = ("B", "KB", "MB", "GB", "TB", "PB", "EB")


def read_json(data: bytes | str) -> Any:
    """A JSON value that is nested at most `MOST_NESTED` levels.

    Raises:
        ValueError: it is no JSON, no UTF-8, or nested deeper.
    """
    too_deep = ValueError(f"it is nested more than {MOST_NESTED} levels deep")
    try:
        value = json.loads(data)
    except RecursionError:
        raise too_deep from None
    level = [value]
    for _ in range(MOST_NESTED):
        parts = (
            each.values() if isinstance(each, dict) else each
            for each in level
            if isinstance(each, dict | list)
        )
        level = [part for inside in parts for part in inside]
        if not level:
            return value
    raise too_deep


def user_path(name: str | Path) -> Path:
    """A path that a user gave, its `~` replaced, which may or may not exist.

    Raises:
        UsageError: there cannot be a file of this name, or it cannot be looked for.
    """
    try:
        path = Path(name).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else brief(error)
        raise UsageError(
            f"{cut(str(name), 80)!r} cannot be used as a path: {reason}; give another"
        ) from error
    return path


def check_rule(pattern: str, replacement: str) -> None:
    """Checks a rename rule, its replacement too, which `re` looks at only where something matches.

    Raises:
        UsageError: one of them cannot be used.
    """
    try:
        re.compile(pattern)
        re.compile(f"{pattern}\n|").sub(replacement, "")
    except (re.error, IndexError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"rename rule {cut(pattern, 80)!r} -> {cut(replacement, 80)!r} is no valid regular "
            f"expression with its replacement: {brief(error)}; expected REGEX=REPLACEMENT as in "
            "Python's re.sub"
        ) from error


def what_it_is(path: Path) -> str:
    """What stands at a path where a regular file is expected; "" for a regular file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a link to nowhere" if path.is_symlink() else "nothing"
    except OSError as error:
        return f"out of reach ({error.strerror})"
    kinds = {
        "a directory": stat.S_ISDIR,
        "a pipe": stat.S_ISFIFO,
        "a socket": stat.S_ISSOCK,
        "a device": _is_device,
    }
    return next((kind for kind, is_kind in kinds.items() if is_kind(mode)), "")


def _is_device(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def is_text(text: str) -> bool:
    """Whether a text can be encoded, which one that was read as bytes may not."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def check_memory(size: int, what: str) -> None:
    """Checks that this machine could hold as many bytes, before they are asked for.

    Raises:
        UsageError: it could not.
    """
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > available:
        raise UsageError(
            f"{what} would need {in_bytes(size)}, and this machine has {in_bytes(available)}: ask "
            "for less"
        )


def in_bytes(size: int) -> str:
    """A number of bytes in words: "3.2 TB"."""
    power = min((len(str(size)) - 1) // 3, len(_UNITS) - 1)
    return f"{size // 1000 ** max(power - 1, 0) / (1000 if power else 1):.3g} {_UNITS[power]}"


@contextmanager
def time_limit(what: str, seconds: float = _SECONDS) -> Iterator[None]:
    """Ends what takes more of this process's time than that, such as a regular expression.

    It is a signal that ends it, so that there is no limit outside the main thread, nor where the
    system has no such timer.

    Raises:
        UsageError: the time is over.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise UsageError(f"{what} takes more than {seconds:.3g} seconds: give a simpler one")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
