"""How far a comparison is: in which phase, in which run of it, and after how many calls.

>>> class Shown:
...     def phase(self, name: str, run: int, runs: int | None) -> None:
...         print(in_words(name, run, runs))  # "comparing", "confirming, run 2", "isolating 3 of 7"
...
...     def __call__(self, finished: int) -> None:
...         print(finished)  # pairs of calls that have ended in this run
>>> tracer.compare(reference, candidate, inputs, progress=Shown())

A plain function is told the calls of the comparison itself only, as further runs count anew.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable


@runtime_checkable
class PhasedProgress(Protocol):
    """What is told of phases too."""

    def __call__(self, finished: int) -> None:
        """A pair of calls has ended.

        Args:
            finished: how many have, in this run.
        """
        ...

    def phase(self, name: str, run: int, runs: int | None) -> None:
        """A run of both models begins, or what is done with one module after it; calls are counted
        from 1 in each.

        Args:
            name: what it is for: "comparing", "confirming", "zooming", "isolating", ...
            run: which run of this phase, from 1.
            runs: how many the phase has; None where that is not known beforehand.
        """
        ...


class Phases:
    """Tells a function, or a `PhasedProgress`, how far a comparison is."""

    def __init__(self, told: Callable[[int], None] | None = None) -> None:
        self._told = told
        self._name = ""
        self._runs: int | None = None
        self._run = 0
        self._is_comparing = False

    def begin(self, name: str, runs: int | None = None) -> None:
        """Says what the next runs are for, and how many there will be where that is known."""
        self._name, self._runs, self._run = name, runs, 0
        self._is_comparing = False

    def begin_comparing(self) -> None:
        """Says that the next runs are the comparison itself."""
        self.begin("comparing")
        self._is_comparing = True

    def next_run(self) -> Callable[[int], None] | None:
        """Says that a run begins, and returns what is to be told its calls."""
        self._run += 1
        if isinstance(self._told, PhasedProgress):
            self._told.phase(self._name, self._run, self._runs)
            return self._told
        return self._told if self._is_comparing else None


def in_words(name: str, run: int, runs: int | None) -> str:
    """A phase in words: "isolating 3 of 7"; without numbers where there is but one run."""
    if runs is None:
        return name if run == 1 else f"{name}, run {run}"
    return name if runs == 1 else f"{name} {run} of {runs}"
