"""What a long run shows on standard error: on a terminal a bar, gone at its end; else a plain line
each minute.

    isolating 3 of 7 ━━━━━━━━━━━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━━ 120 calls 0:00:41

    trace_model: isolating 3 of 7, 120 of about 180 calls, after 2 min

Only a true terminal is animated: FORCE_COLOR colours the lines and moves nothing, NO_COLOR takes
the colours from both.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, track

from tracer.measurement.progress import in_words

# A run that is over before then needs no bar.
_PATIENCE = 1.0  # seconds
# How often there is a line where nothing is animated.
_INTERVAL = 60.0  # seconds


_is_silent = ContextVar("_is_silent", default=False)


@contextmanager
def silence() -> Iterator[None]:
    """Shows nothing of the progress meanwhile."""
    token = _is_silent.set(True)
    try:
        yield
    finally:
        _is_silent.reset(token)


@contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner with a text."""
    console = _console()
    with console.status(text) if _animates(console) else _Lines(console, lambda: text):
        yield


@contextmanager
def call_counter(text: str, expected: int) -> Iterator["CallCounter"]:
    """A bar that comes up once the run has taken a while.

    Args:
        text: what goes on, until a phase is told.
        expected: about how many calls there will be in each run.

    Yields:
        What to tell, as `compare` does with its `progress`.
    """
    console = _console()
    with ExitStack() as stack:
        if _animates(console):
            yield _Bar(text, expected, console, stack)
        else:
            yield CallCounter(text, expected, console, stack)


class CallCounter:
    """Is told of phases and calls, and says each minute how far they are."""

    def __init__(self, text: str, expected: int, console: Console, stack: ExitStack) -> None:
        """Begins to wait; what it starts ends with the stack."""
        self._text, self._expected, self._finished = text, expected, 0
        self._console, self._stack = console, stack
        self._begun = False

    def __call__(self, finished: int) -> None:
        """A pair of calls has ended."""
        self._finished = finished
        self._expected = max(self._expected, finished)
        self._show()

    def phase(self, name: str, run: int, runs: int | None) -> None:
        """A run begins; see `tracer.measurement.progress`."""
        # What was a guess is known once a run has ended.
        self._expected = self._finished or self._expected
        self._text, self._finished = in_words(name, run, runs), 0
        self._show()

    def _show(self) -> None:
        if not self._begun:  # nothing is said where a debugger is open, as nothing is told
            self._begun = True
            self._stack.enter_context(_Lines(self._console, self._words))

    def _words(self) -> str:
        calls = f", {self._finished} of about {self._expected} calls" if self._finished else ""
        return f"{self._text}{calls}"


class _Bar(CallCounter):
    """The same as a bar."""

    def __init__(self, text: str, expected: int, console: Console, stack: ExitStack) -> None:
        super().__init__(text, expected, console, stack)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed} calls"),
        )
        self._bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._task: TaskID = self._bar.add_task(text, total=expected)
        self._since = time.monotonic()
        stack.callback(self._bar.stop)

    def _show(self) -> None:
        if time.monotonic() - self._since > _PATIENCE:
            self._bar.start()
        self._bar.update(
            self._task,
            description=self._text,
            completed=self._finished,
            total=self._expected,
        )


@contextmanager
def trial_counter(text: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar over the trials of a study; where there is no terminal, a line for each of them.

    Yields:
        A function to call with each that has ended, how many have, and how many are wanted.
    """
    console = _console()
    if not _animates(console):

        def tell_in_lines(what: str, ended: int, wanted: int) -> None:
            console.print(f"{text}: {ended} of {wanted}: {what}", markup=False, soft_wrap=True)

        yield tell_in_lines
        return
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}")
    bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
    task = bar.add_task(text, total=None, what="")

    def tell(what: str, ended: int, wanted: int) -> None:
        bar.update(task, completed=ended, total=wanted, what=f"{ended} of {wanted}: {what}")

    with bar:
        yield tell


def tracked(items: Iterable[Any]) -> Iterable[Any]:
    """Hands on what it is given and shows how far it is."""
    console = _console()
    if _animates(console):
        yield from track(items, "calibrating", console=console, transient=True)
        return
    ended = 0
    with _Lines(console, lambda: f"calibrating, {ended} done"):
        for item in items:
            yield item
            ended += 1


class _Lines:
    """Prints a line each minute until it ends, whatever takes the time."""

    def __init__(self, console: Console, words: Callable[[], str]) -> None:
        self._console, self._words = console, words
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._print, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _print(self) -> None:
        minutes = 0
        style = None if self._console.no_color else "cyan"
        while not self._ended.wait(_INTERVAL):
            minutes += 1
            line = f"trace_model: {self._words()}, after {minutes} min"
            self._console.print(line, style=style, markup=False, soft_wrap=True)


def _console() -> Console:
    return Console(stderr=True, highlight=False, quiet=_is_silent.get())


def _animates(console: Console) -> bool:
    """Whether lines can be drawn anew: on a true terminal, whatever variables say of colours."""
    return console.file.isatty() and not console.is_dumb_terminal and not console.quiet
