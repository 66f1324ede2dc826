"""Trials and their results, and the file that keeps them.

A study is a list of trials; each is one line of the file once it has ended, so that a study that is
killed goes on where it was:

    {"format": 1, "study": "mask-fill", "workload": {...}, "environment": {...}}
    {"trial": {"settings": {"weight": "uint8"}, "seed": 0}, "metrics": {"loss": 1.31}, ...}
    {"trial": {"settings": {"weight": "uint4"}, "seed": 0}, "error": "RuntimeError: ...", ...}
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wrappers.errors import StudyError

FORMAT = 1

Settings = Mapping[str, Any]
"""What is tried: names and values that JSON can hold."""


@dataclass(frozen=True)
class Trial:
    """One set of settings with one seed.

    Attributes:
        settings: what is tried.
        seed: of all that is drawn: the calibration set, and what the study draws besides.
    """

    settings: Settings
    seed: int

    @property
    def key(self) -> str:
        """The same for the same settings and seed, whatever their order."""
        return json.dumps([dict(self.settings), self.seed], sort_keys=True)


@dataclass(frozen=True)
class Result:
    """What a trial has given.

    Attributes:
        trial: what was tried.
        metrics: figures by name; lists where there is one for each document or layer.
        error: why there are none, in one line; "" for a trial that has succeeded.
        seconds: how long it took.
    """

    trial: Trial
    metrics: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0

    def number(self, name: str) -> float:
        """One figure of a trial that has succeeded."""
        return float(self.metrics[name])


class Results:
    """The results of a study so far, in the order in which they came.

    Args:
        path: a file; it is made with its first result.
        head: what all trials have in common: the study, the workload and the environment.

    Raises:
        StudyError: the file is that of another study or of a newer format, is damaged before its
            last line, or cannot be read or written.
    """

    def __init__(self, path: str | Path, head: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.head = {"format": FORMAT, **head}
        self._found: dict[str, Result] = {}
        if not self.path.parent.is_dir():
            raise StudyError(f"there is no folder {self.path.parent} for the results {path}")
        if self.path.exists():
            self._read()
        else:
            self._append(self.head)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._found.values())

    def __len__(self) -> int:
        return len(self._found)

    def of(self, trials: Iterable[Trial]) -> list[Result]:
        """The results of these trials, in their order; those that have none are left out."""
        return [self._found[t.key] for t in trials if t.key in self._found]

    def missing(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those of the trials that have no result, each once."""
        wanted = {trial.key: trial for trial in trials}
        return [trial for key, trial in wanted.items() if key not in self._found]

    def add(self, result: Result) -> None:
        """Keeps a result, on disk when this returns."""
        self._append(_plain(asdict(result)))
        self._found[result.trial.key] = result

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StudyError(f"cannot write to {self.path}: {error.strerror}") from error

    def _read(self) -> None:
        try:
            raw = self.path.read_bytes()
        except OSError as error:
            raise StudyError(f"cannot read {self.path}: {error.strerror}") from error
        whole = raw[: raw.rfind(b"\n") + 1]
        lines = [self._parsed(line, number) for number, line in enumerate(whole.splitlines(), 1)]
        if not lines:
            os.truncate(self.path, 0)
            self._append(self.head)
            return
        self._check_head(lines[0])
        for line in lines[1:]:
            result = Result(Trial(**line.pop("trial")), **line)
            self._found[result.trial.key] = result
        if len(whole) < len(raw):  # killed while it was writing
            os.truncate(self.path, len(whole))

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            parsed = json.loads(line)
        except ValueError as error:
            raise StudyError(f"{self.path} is damaged in line {number}: {error}") from error
        if not isinstance(parsed, dict) or not ({"format", "trial"} & parsed.keys()):
            raise StudyError(f"{self.path} holds no results of a study: see its line {number}")
        return parsed

    def _check_head(self, head: Mapping[str, Any]) -> None:
        if head.get("format", 0) > FORMAT:
            raise StudyError(
                f"{self.path} has format {head['format']}, and this version reads up to {FORMAT}: "
                "give another file or install a newer version"
            )
        # JSON knows no tuples; and another machine may go on with a study.
        own = json.loads(json.dumps(self.head))
        for key in ("study", "workload"):
            if head.get(key) != own.get(key):
                raise StudyError(
                    f"{self.path} holds results of another study ({_differing(head, own, key)}): "
                    "give another file, or the same options"
                )


def _plain(value: Any) -> Any:
    """A value as strict JSON has it: numbers that are not finite are words, which float() reads."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _differing(found: Mapping[str, Any], own: Mapping[str, Any], key: str) -> str:
    theirs, ours = found.get(key), own.get(key)
    if isinstance(theirs, dict) and isinstance(ours, dict):
        name = next(n for n in {**ours, **theirs} if theirs.get(n) != ours.get(n))
        if name == "checksum":
            return "a model or a text of other contents"
        return f"{name} {theirs.get(name)!r}, and now {ours.get(name)!r}"
    return f"{key} {theirs!r}, and now {ours!r}"
