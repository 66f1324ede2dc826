"""Standard output and standard error: what goes there, and what is done where they are closed."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from io import TextIOWrapper
from typing import TextIO

from tracer.errors import UsageError
from tracer.text import visible

# Our packages, and libraries that do not obey the root logger, with the variables that they read
# when they are imported.
_OURS = ("tracer", "wrappers")
_OWN_LEVELS = {"transformers": "TRANSFORMERS_VERBOSITY", "huggingface_hub": "HF_HUB_VERBOSITY"}
_COLOURS: Mapping[str, Mapping[str, str | None]] = {
    "auto": {},
    "always": {"FORCE_COLOR": "1", "NO_COLOR": None},
    "never": {"FORCE_COLOR": None, "NO_COLOR": "1"},
}


@dataclass(frozen=True)
class Output:
    """How much is printed, and in which way.

    Attributes:
        quiet: the verdict in one line, and no progress.
        verbose: what is done on the way as well, and the traceback of an error of its own.
        log_level: from which level on trace_model and libraries log to standard error; None for
            what they do by themselves, with `verbose` our own from `info` on, and with `quiet` all
            from `error` on.
        color: one of `tracer.choices.COLORS`.
    """

    quiet: bool = False
    verbose: bool = False
    log_level: str | None = None
    color: str = "auto"

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Prints and logs in this way meanwhile, in worker processes too."""
        level = self.log_level or ("error" if self.quiet else None)
        variables = dict(_COLOURS[self.color])
        if level is not None:
            variables |= dict.fromkeys(_OWN_LEVELS.values(), level)
        with ExitStack() as changed:
            changed.enter_context(changed_environment(variables))
            if level is not None:
                names = ["", *(name for name in _OWN_LEVELS if name in sys.modules)]
                changed.enter_context(_logged(level, names))
            elif self.verbose:
                changed.enter_context(_logged("info", _OURS))
            if self.quiet:
                from tracer.reports.progress import silence

                changed.enter_context(silence())
            yield


DEFAULT = Output()


@contextmanager
def changed_environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Sets environment variables meanwhile; None stands for one that is not set."""
    former = {name: os.environ.get(name) for name in variables}
    try:
        _set(variables)
        yield
    finally:
        _set(former)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _logged(level: str, names: Sequence[str]) -> Iterator[None]:
    """Logs to standard error what loggers are given from a level on.

    Args:
        names: of the loggers; with the root, "", warnings of Python's are of the level `warning`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in names]
    heads = loggers[:1] if "" in names else loggers  # the root has what the others are given
    former = [logger.level for logger in loggers]
    for head in heads:
        head.addHandler(handler)
    for logger in loggers:
        logger.setLevel(level.upper())
    logging.captureWarnings("" in names)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, was in zip(loggers, former, strict=True):
            logger.setLevel(was)
        for head in heads:
            head.removeHandler(handler)


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
