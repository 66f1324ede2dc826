"""Trials and their results, and the file that keeps them.

A study is a list of trials; each is one line of the file once it has ended, so that a study that is
killed goes on where it was:

    {"format": 1, "study": "mask-fill", "workload": {...}, "environment": {...}}
    {"trial": {"settings": {"weight": "uint8"}, "seed": 0}, "metrics": {"loss": 1.31}, ...}
    {"trial": {"settings": {"weight": "uint4"}, "seed": 0}, "error": "RuntimeError: ...", ...}

A trial that is run again adds another line, and the last one counts.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wrappers.errors import StudyError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
# What numbers depend on besides the workload, and so has to stay while a study lasts.
_VERSIONS = ("trace_model", "torch", "transformers")

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
    """The results of a study so far, in the order in which their trials first ended.

    Args:
        path: a file; it is made when a run begins or a first result is added.
        head: what all trials have in common: the study, the workload and the environment.

    Attributes:
        head: that of the file where there is one, so that it says what its trials were run with.

    Raises:
        StudyError: the file is that of another study, of other versions or of a newer format, is
            damaged before its last line, or cannot be read or written.
    """

    def __init__(self, path: str | Path, head: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.head = {"format": FORMAT, **head}
        self._found: dict[str, Result] = {}
        self._whole = 0  # bytes of whole lines; more was being written when a run was killed
        self._is_torn = False
        if not self.path.parent.is_dir():
            raise StudyError(
                f"directory {self.path.parent} of the results does not exist; create it first"
            )
        self._read()

    def __iter__(self) -> Iterator[Result]:
        return iter(self._found.values())

    def __len__(self) -> int:
        return len(self._found)

    def of(self, trials: Iterable[Trial]) -> list[Result]:
        """The results of these trials, in their order; those that have none are left out."""
        return [self._found[t.key] for t in trials if t.key in self._found]

    def missing(self, trials: Iterable[Trial], *, or_failed: bool = False) -> list[Trial]:
        """Those of the trials that have no result, or none but an error, each once."""
        wanted = {trial.key: trial for trial in trials}
        there = {key for key, found in self._found.items() if not (or_failed and found.error)}
        return [trial for key, trial in wanted.items() if key not in there]

    def add(self, result: Result) -> None:
        """Keeps a result, on disk when this returns; one of the same trial is replaced."""
        self._append(_plain(asdict(result)))
        self._found[result.trial.key] = result

    def forget_failed(self) -> None:
        """Drops the results of trials that failed; in the file they stay, before new ones."""
        self._found = {key: found for key, found in self._found.items() if not found.error}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs from writing to the file; what it has got meanwhile is read.

        Raises:
            StudyError: another run is writing to it; or as when it is opened.
        """
        try:
            file = self.path.open("ab")
        except OSError as error:
            raise StudyError(f"cannot write to {self.path}: {error.strerror}") from error
        with file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise StudyError(
                        f"another run is writing to {self.path}: wait for its end, or give "
                        "another file"
                    ) from error
                except OSError as error:
                    raise StudyError(
                        f"cannot lock {self.path}, which keeps other runs from writing to it: "
                        f"{error.strerror}; give a file on another file system"
                    ) from error
            self._read()
            yield

    def _append(self, line: Mapping[str, Any]) -> None:
        lines = [line] if self._whole else [self.head, line]
        text = "".join(json.dumps(each) + "\n" for each in lines).encode()
        try:
            with self.path.open("ab") as file:
                if self._is_torn:
                    file.truncate(self._whole)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StudyError(f"cannot write to {self.path}: {error.strerror}") from error
        self._whole, self._is_torn = self._whole + len(text), False

    def _read(self) -> None:
        try:
            raw = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise StudyError(f"cannot read {self.path}: {error.strerror}") from error
        self._whole = raw.rfind(b"\n") + 1
        self._is_torn = self._whole < len(raw)
        if not self._whole:
            self._check_beginning(raw)
            return
        first, *lines = raw[: self._whole].splitlines()
        head = self._parsed(first, 1, "format")
        self._check_head(head)
        self.head = head
        for number, line in enumerate(lines, 2):
            result = self._result(self._parsed(line, number, "trial"), number)
            self._found[result.trial.key] = result

    def _check_beginning(self, raw: bytes) -> None:
        """Of a file with no whole line, which may be a head that was being written."""
        begin = json.dumps({"format": FORMAT}).encode()[:-1]
        if not (begin.startswith(raw) or raw.startswith(begin)):
            raise StudyError(f"{self.path} holds no results of a study: give another file")

    def _parsed(self, line: bytes, number: int, key: str) -> dict[str, Any]:
        try:
            parsed = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StudyError(f"{self.path} is damaged in line {number}: {error}") from error
        if not isinstance(parsed, dict) or key not in parsed:
            raise StudyError(
                f"{self.path} holds no results of a study: see its line {number}, which has "
                f"no {key!r}"
            )
        return parsed

    def _result(self, line: Mapping[str, Any], number: int) -> Result:
        try:
            result = Result(**{**line, "trial": Trial(**line["trial"])})
        except TypeError as error:
            raise StudyError(f"{self.path} is damaged in line {number}: {error}") from error
        trial = result.trial
        for name, value, kind in (
            ("settings", trial.settings, dict),
            ("seed", trial.seed, int),
            ("metrics", result.metrics, dict),
            ("error", result.error, str),
            ("seconds", result.seconds, int | float),
        ):
            if not isinstance(value, kind):
                raise StudyError(f"{self.path} is damaged in line {number}: {name} is {value!r}")
        return result

    def _check_head(self, head: dict[str, Any]) -> None:
        if not isinstance(head["format"], int):
            raise StudyError(f"{self.path} is damaged in line 1: format is {head['format']!r}")
        if head["format"] > FORMAT:
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
        self._check_versions(head.get("environment", {}), own.get("environment", {}))

    def _check_versions(self, environment: Any, own: Mapping[str, Any]) -> None:
        if not isinstance(environment, dict):
            raise StudyError(f"{self.path} is damaged in line 1: environment is {environment!r}")
        for name in _VERSIONS:
            begun, now = environment.get(name), own.get(name)
            if None not in (begun, now) and begun != now:
                raise StudyError(
                    f"{self.path} was begun with {name} {begun}, and now it is {now}: give "
                    "another file, or install that version"
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
