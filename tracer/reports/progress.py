"""What a long run shows while it lasts: on a terminal only, on standard error, gone at its end."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, track

# A run that is over before then needs no bar.
_PATIENCE = 1.0  # seconds


@contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner with a text."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


@contextmanager
def call_counter(text: str, expected: int) -> Iterator[Callable[[int], None]]:
    """A bar that comes up once the run has taken a while.

    Args:
        expected: about how many calls there will be.

    Yields:
        A function to call with the number of finished calls.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda finished: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} calls")
    bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
    task = bar.add_task(text, total=expected)
    begin = time.monotonic()

    def tell(finished: int) -> None:
        if time.monotonic() - begin > _PATIENCE:
            bar.start()
        bar.update(task, completed=finished, total=max(expected, finished))

    try:
        yield tell
    finally:
        bar.stop()


@contextmanager
def trial_counter(text: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar over the trials of a study; where there is no terminal, a line for each of them.

    Yields:
        A function to call with each that has ended, how many have, and how many are wanted.
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:

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
    console = Console(stderr=True)
    return track(
        items, "calibrating", console=console, transient=True, disable=not console.is_terminal
    )
