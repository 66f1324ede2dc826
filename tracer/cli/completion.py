"""Completion in a shell, by argcomplete (extra `completion`).

eval "$(register-python-argcomplete trace_model)"                       # bash, zsh
register-python-argcomplete --shell fish trace_model | source           # fish
"""

import os
from argparse import Action, ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracer.choices import BUILT_IN, CANDIDATES
from tracer.cli.configuration import Configuration, find
from tracer.cli.keys import Keys
from tracer.errors import TracerError

_NAMES = {"model": tuple(BUILT_IN), "candidate": tuple(CANDIDATES)}


def complete(parser: ArgumentParser, commands: Mapping[str, ArgumentParser]) -> None:
    """Answers the shell and ends the process, where it is a shell that asks.

    Args:
        parser: of the command line.
        commands: the parsers of its commands.
    """
    if "_ARGCOMPLETE" not in os.environ:
        return
    from argcomplete import autocomplete
    from argcomplete.completers import FilesCompleter

    files = FilesCompleter()

    def checks(prefix: str, parsed_args: Any, **_: object) -> list[str]:
        file = getattr(parsed_args, "file", None)
        return _checks(Keys(commands["compare"]), file)

    def names_or_files(prefix: str, action: Action, **_: object) -> list[str]:
        return [*_NAMES[action.dest], *files(prefix)]

    for command in commands.values():
        for action in command._actions:
            if action.dest in _NAMES:
                vars(action)["completer"] = names_or_files
            elif action.dest == "names":
                vars(action)["completer"] = checks
    autocomplete(parser)


def _checks(keys: Keys, file: Path | None) -> list[str]:
    """The names of the checks; none where the configuration cannot be read."""
    try:
        file = file or find(Path.cwd())
        return [] if file is None else list(Configuration.read(file, keys).checks)
    except TracerError:
        return []
