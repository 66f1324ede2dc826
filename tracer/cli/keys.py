"""The keys of a configuration: the options of a command, as its own parser declares them.

    Keys(commands["compare"]).arguments({"model": "tiny-llama", "batch": 2, "train": True})
    == ["tiny-llama", "--batch", "2", "--train"]

A key is an option without its dashes. What it takes, and what it may be, the parser says: an option
that is added there is a key here.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tracer.cli import types
from tracer.errors import UsageError, near_names

# What belongs to the command line alone: it says how to print or exit, or asks somebody.
_NOT_KEYS = (
    *("help", "json", "exit_skip", "quiet", "verbose", "log_level", "color"),
    *("breakpoints", "break_at", "break_when", "post_mortem", "debugger"),
)
# What these say depends on which files there are, and not on what was written.
_LOOK_AT_FILES = (types.file, types.folder, types.baseline, types.report)


class Keys:
    """The options of a command by their keys.

    Args:
        parser: of the command.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._actions = {
            _key(action): action for action in parser._actions if action.dest not in _NOT_KEYS
        }
        self._others = {
            _key(action): action for action in parser._actions if action.dest in _NOT_KEYS
        }

    def __contains__(self, key: str) -> bool:
        return key in self._actions

    def known(self, key: str, others: Sequence[str] = ()) -> str:
        """A key as its option is written; `_` stands for `-` as well.

        Args:
            others: names that may have been meant as well.

        Raises:
            UsageError: there is no such key.
        """
        name = key.replace("_", "-")
        if name in self._actions:
            return name
        if name in self._others:
            raise UsageError("this is an option of the command line alone: leave it out")
        raise UsageError(f"unknown key{near_names(name, [*self._actions, *others], 1)}")

    def value(self, key: str, text: str) -> Any:
        """What the parser makes of a text.

        Raises:
            UsageError: it makes no sense.
        """
        return _converted(self._actions[key], text)

    def arguments(self, options: Mapping[str, object]) -> list[str]:
        """The arguments that say the same on a command line.

        Raises:
            UsageError: as for `check`.
        """
        return [argument for key, value in options.items() for argument in self.check(key, value)]

    def check(self, key: str, value: object) -> list[str]:
        """The arguments for one key.

        Raises:
            UsageError: a value of another type than the option takes, or none that it takes.
        """
        action = self._actions[key]
        if isinstance(action, argparse._StoreTrueAction):
            if not isinstance(value, bool):
                raise UsageError(f"found {_kind(value)}, expected true or false")
            return [_option(action)] if value else []
        if action.nargs == "?" and isinstance(value, bool):
            return [_option(action)] if value else []
        items = _items(action, value)
        return [argument for item in items for argument in self._written(action, item)]

    def _written(self, action: argparse.Action, item: object) -> Iterator[str]:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            several = ", or an array of them" if _repeats(action) else ""
            raise UsageError(f"found {_kind(item)}, expected {_wanted(action)}{several}")
        text = item if isinstance(item, str) else repr(item)
        if action.type not in _LOOK_AT_FILES:
            made = _converted(action, text)
            if isinstance(made, int | float) and isinstance(item, str):
                raise UsageError(f"found the text {item!r}, expected a number without quotes")
            if not isinstance(made, int | float) and not isinstance(item, str):
                raise UsageError(f"found the number {text}, expected a text in quotes")
        elif not isinstance(item, str):
            raise UsageError(f"found the number {text}, expected a text in quotes")
        option = _option(action)
        if not option:
            yield text
        elif text.startswith("-"):
            yield f"{option}={text}"
        else:
            yield from (option, text)


def _key(action: argparse.Action) -> str:
    return _option(action).removeprefix("--") or action.dest


def _option(action: argparse.Action) -> str:
    """How an option is given; the empty string for what is given by its place."""
    return next((name for name in action.option_strings if name.startswith("--")), "")


def _wanted(action: argparse.Action) -> str:
    """What an option takes, in words."""
    if action.type is None:
        return "a text"
    try:
        is_number = action.type not in _LOOK_AT_FILES and isinstance(
            _converted(action, "1"), int | float
        )
    except UsageError:
        is_number = False
    return "a number" if is_number else str(action.metavar)


def _repeats(action: argparse.Action) -> bool:
    return isinstance(action, argparse._AppendAction)


def _items(action: argparse.Action, value: object) -> list[object]:
    """The values of an option; of one that takes NAME=VALUE a table is one for each name."""
    if not _repeats(action):
        return [value]
    if isinstance(value, dict) and "=" in str(action.metavar):
        items: list[object] = []
        for name, item in value.items():
            if isinstance(item, bool) or not isinstance(item, str | int | float):
                raise UsageError(f"found {_kind(item)} for {name!r}, expected {action.metavar}")
            items.append(f"{name}={item}")
        return items
    return value if isinstance(value, list) else [value]


def _converted(action: argparse.Action, text: str) -> Any:
    made: Any = text
    if callable(action.type):
        try:
            made = action.type(text)
        except argparse.ArgumentTypeError as error:
            raise UsageError(str(error)) from error
    if action.choices is not None and made not in action.choices:
        choices = list(map(str, action.choices))
        raise UsageError(
            f"found {text!r}, expected one of {', '.join(choices)}{near_names(text, choices)}"
        )
    return made


def _kind(value: object) -> str:
    """What a value is, in the words of TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    return (
        "an array"
        if isinstance(value, list)
        else "a table"
        if isinstance(value, dict)
        else "a date"
    )
