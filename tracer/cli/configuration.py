"""The configuration: named checks, and what stands for options that were not given.

    # pyproject.toml; trace_model.toml holds the same without `tool.trace_model`
    [tool.trace_model]
    device = "cuda"                     # for every command

    [tool.trace_model.checks.port]      # `trace_model check port`
    model = "models/original"
    candidate = "port.py:build"
    max-peir = { lm_head = 0.01 }

    [tool.trace_model.checks.port.input-sets.padded]    # `trace_model check port.padded`
    batch = 2
    padding = "left"

What an option is given counts before the environment, that before the configuration, and that
before the default.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracer.choices import VARIABLES
from tracer.cli.keys import Keys
from tracer.errors import UsageError, near_names
from tracer.text import brief

_FILES = ("trace_model.toml", "pyproject.toml")
_TABLE = "tool.trace_model"
_CHECKS, _SETS = "checks", "input-sets"
# Of these keys a value may hold the name of the check.
_NAMED, _PLACE = ("report", "baseline"), "{name}"
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Check:
    """A comparison that the configuration names: a check, or one of its input sets.

    Attributes:
        name: of the check, with that of the input set after a dot.
        place: its table in the file.
        options: what it gives, by keys of `Keys`; the model first.
    """

    name: str
    place: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Configuration:
    """What a configuration file holds.

    Attributes:
        file: from the root.
        checks: by their names, in the order of the file.
    """

    file: Path
    checks: Mapping[str, Check]

    @classmethod
    def read(cls, file: Path, keys: Keys) -> "Configuration":
        """Reads a file.

        Args:
            keys: those of a check.

        Raises:
            UsageError: it cannot be read, or a key, a type or a value in it is none that is known.
        """
        place, table = _table(file)
        checks = {check.name: check for check in _checks(file, place, table, keys)}
        if not checks:
            raise UsageError(f"{file.name} has no checks: expected [{place}{_CHECKS}.NAME] in it")
        return cls(file.absolute(), checks)

    def select(self, names: Sequence[str]) -> list[Check]:
        """The checks of these names, each with all its input sets; all for no names.

        Raises:
            UsageError: there is no check of a name.
        """
        groups: dict[str, list[Check]] = {}
        for check in self.checks.values():
            groups.setdefault(check.name.partition(".")[0], []).append(check)
        groups |= {check.name: [check] for check in self.checks.values()}
        for name in names:
            if name not in groups:
                raise UsageError(
                    f"{self.file.name} has no check {name!r}; it has {', '.join(self.checks)}"
                    f"{near_names(name, groups)}"
                )
        chosen = {check.name for name in names or groups for check in groups[name]}
        return [check for check in self.checks.values() if check.name in chosen]


def find(folder: Path) -> Path | None:
    """The configuration of a folder, or else of the nearest one above it.

    Raises:
        UsageError: a file that may be it cannot be read.
    """
    for above in (folder, *folder.parents):
        for name in _FILES:
            file = above / name
            if file.is_file() and (name != "pyproject.toml" or _has_table(file)):
                return file
    return None


def standing(keys: Keys, *, with_file: bool = True) -> dict[str, Any]:
    """What environment and configuration give for options that a command line does not give.

    Args:
        keys: those of the command.
        with_file: the configuration counts, too.

    Raises:
        UsageError: what they give is none that is known.
    """
    given: dict[str, Any] = {}
    file = find(Path.cwd()) if with_file else None
    place, table = _table(file) if file is not None else ("", {})
    written = {name.replace("_", "-"): value for name, value in table.items()}
    for name, variable in VARIABLES.items():
        if name not in keys:
            continue
        if text := os.environ.get(variable):
            try:
                given[name] = keys.value(name, text)
            except UsageError as error:
                raise UsageError(f"the environment variable {variable}: {error}") from error
        elif file is not None and name in written:
            _check(file, f"{place}{name}", keys, name, written[name])
            text = written[name]
            given[name] = keys.value(name, str(file.parent / text) if name == "cache" else text)
    return given


def _has_table(file: Path) -> bool:
    return "trace_model" in _parsed(file).get("tool", {})


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is no valid TOML: {brief(error)}") from error


def _table(file: Path) -> tuple[str, dict[str, Any]]:
    """What a file holds for trace_model, and what stands before a key of it."""
    table, place = _parsed(file), ""
    if file.name == "pyproject.toml":
        for name in _TABLE.split("."):
            table = table.get(name, {})
        place = f"{_TABLE}."
    if not isinstance(table, dict):
        raise UsageError(f"{file.name}: {_TABLE}: expected a table")
    return place, table


def _checks(file: Path, place: str, table: Mapping[str, Any], keys: Keys) -> Iterator[Check]:
    """The checks of a file, each with what holds for all."""
    common = _options(file, place, table, keys, others=(_CHECKS,))
    for name, check in _tables(file, f"{place}{_CHECKS}", table.get(_CHECKS, {})):
        here = f"{place}{_CHECKS}.{name}."
        own = common | _options(file, here, check, keys, others=(_SETS,))
        sets = list(_tables(file, f"{here}{_SETS}", check.get(_SETS, check.get("input_sets", {}))))
        if not sets:
            yield _made(file, name, own, here)
        for set_name, options in sets:
            there = f"{here}{_SETS}.{set_name}."
            given = _options(file, there, options, keys)
            yield _made(file, f"{name}.{set_name}", own | given, there)


def _tables(file: Path, place: str, given: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Named tables."""
    if not isinstance(given, dict):
        raise UsageError(f"{file.name}: {place}: expected tables by name, such as [{place}.NAME]")
    for name, table in given.items():
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{file.name}: {place}.{name!r}: expected a name of letters, digits, - and _"
            )
        if not isinstance(table, dict):
            raise UsageError(
                f"{file.name}: {place}.{name}: expected a table, such as [{place}.{name}]"
            )
        yield name, table


def _options(
    file: Path,
    place: str,
    table: Mapping[str, Any],
    keys: Keys,
    others: Sequence[str] = (),
) -> dict[str, Any]:
    """The options of a table by their keys."""
    found: dict[str, Any] = {}
    for written, value in table.items():
        if written.replace("_", "-") in others:
            continue
        here = f"{place}{written}"
        try:
            key = keys.known(written, others)
        except UsageError as error:
            raise UsageError(f"{file.name}: {here}: {error}") from error
        if key in found:
            raise UsageError(f"{file.name}: {here}: {key} is given twice in this table")
        _check(file, here, keys, key, value)
        found[key] = value
    return found


def _check(file: Path, place: str, keys: Keys, key: str, value: object) -> None:
    try:
        keys.check(key, value)
    except UsageError as error:
        raise UsageError(f"{file.name}: {place}: {error}") from error


def _made(file: Path, name: str, given: Mapping[str, Any], place: str) -> Check:
    if "model" not in given:
        raise UsageError(f'{file.name}: {place[:-1]}: no model: add model = "..."')
    options = {
        key: _with_name(value, name) if key in _NAMED else value
        for key, value in {"model": given["model"], **given}.items()
    }
    return Check(name, place[:-1], options)


def _with_name(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [item.replace(_PLACE, name) for item in value]
    return value.replace(_PLACE, name)
