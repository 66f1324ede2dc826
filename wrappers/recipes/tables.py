"""Tables of a TOML file become dataclasses, with every key and value checked.

A key is a field with `-` for `_`. What is wrong is named with its place, what is allowed there, and
the nearest right name.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from trace_model.annotations import found, in_words, matches
from wrappers.errors import RecipeError, WrappersError

Made = TypeVar("Made")


def table(kind: type[Made], given: Any, place: str, folder: Path) -> Made:
    """A dataclass of a table.

    Args:
        kind: the dataclass; a field of the type Path is relative to the folder.
        given: the table.
        place: where it stands, for messages.
        folder: that of the file.

    Raises:
        RecipeError: it is no table, or a key or a value is none that the dataclass takes.
    """
    if not isinstance(given, Mapping):
        raise RecipeError(f"{place} is {found(given)}; expected a table")
    fields = {spec.name: spec for spec in dataclasses.fields(kind) if spec.init}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise RecipeError(f"{place}: unknown key {key!r}{choices(key, map(_key, fields))}")
        values[name] = _value(value, hints[name], f"{place}: {key}", folder)
    for name, spec in fields.items():
        needed = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if needed and name not in values:
            raise RecipeError(f"{place} lacks {_key(name)}: it takes {in_words(hints[name])}")
    try:
        return kind(**values)
    except WrappersError as error:
        raise RecipeError(f"{place}: {error}") from error


def choices(name: str, known: Iterable[str]) -> str:
    """What is allowed instead, and what was probably meant."""
    names = list(known)
    near = difflib.get_close_matches(str(name).casefold(), names, n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f"; expected {'one of ' if len(names) > 1 else ''}{', '.join(names)}{meant}"


def _key(name: str) -> str:
    return name.replace("_", "-")


def _value(value: Any, hint: Any, place: str, folder: Path) -> Any:
    """A value of TOML as its field takes it."""
    value = _frozen(value)
    if isinstance(value, str) and matches(Path(), hint) and not matches("", hint):
        return folder / Path(value).expanduser()
    are_texts = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    if are_texts and matches((Path(),), hint) and not matches(("",), hint):
        return tuple(folder / Path(item).expanduser() for item in value)
    if not matches(value, hint):
        allowed = _allowed(hint)
        said = choices(str(value), allowed) if allowed else f"; expected {in_words(hint)}"
        raise RecipeError(f"{place} is {_found(value)}{said}")
    return value


def _allowed(hint: Any) -> list[str]:
    """The texts that a field may be, where these are listed."""
    if get_origin(hint) is Literal:
        return [part for part in get_args(hint) if isinstance(part, str)]
    return [text for part in get_args(hint) for text in _allowed(part)]


def _found(value: Any) -> str:
    return repr(list(value)) if isinstance(value, tuple) else found(value)


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return value
