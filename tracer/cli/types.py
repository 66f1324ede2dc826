"""The types of the command line's options.

Each takes the text that was given, and raises ArgumentTypeError where it makes no sense: argparse
turns it into an error of its own.
"""

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from tracer.errors import UsageError
from tracer.execution.limits import LARGEST_INTEGER, check_rule, user_path, what_it_is
from tracer.models.locate import is_trace
from tracer.reports import check_path
from tracer.text import cut


def tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a ratio of at least 0, such as 1e-5")
    return value


def rule(text: str) -> tuple[str, str]:
    pattern, separator, replacement = text.rpartition("=")
    if not separator or not pattern:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected REGEX=REPLACEMENT, such as '^decoder\\.=model.'"
        )
    try:
        check_rule(pattern, replacement)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return pattern, replacement


def argument(text: str) -> tuple[str, str]:
    own, _, name = text.partition("=")
    if not (own.isidentifier() and name.isidentifier()):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected OWN_NAME=NAME, the candidate's name of an argument and the "
            "model's, such as tokens=input_ids"
        )
    return own, name


def count(least: int, most: int = LARGEST_INTEGER) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(
                f"{cut(text, 40)!r}: expected a whole number from {least} up"
            )
        if value > most:
            raise argparse.ArgumentTypeError(f"{cut(text, 40)!r}: expected at most {most:,}")
        return value

    return convert


seed = count(-LARGEST_INTEGER)


def file(text: str) -> Path:
    path = user_path(text)
    found = what_it_is(path)
    if found:
        what = f"there is no file {text}" if found == "nothing" else f"{text} is {found}: no file"
        raise argparse.ArgumentTypeError(what)
    return path


def folder(text: str) -> Path:
    """A folder that is there, or can be made."""
    path = user_path(text).absolute()
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file: expected a folder")
    return path


# What torch.set_printoptions takes, and of what type.
PRINT_OPTIONS: Mapping[str, Callable[[str], object]] = {
    "precision": count(0, 20),
    "threshold": tolerance,
    "edgeitems": count(1, 10**6),
    "linewidth": count(1, 10**6),
    "sci_mode": lambda text: {"true": True, "false": False}[text.lower()],
}


def print_option(text: str) -> tuple[str, object]:
    key, _, value = text.partition("=")
    try:
        return key, PRINT_OPTIONS[key](value)
    except (KeyError, argparse.ArgumentTypeError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected KEY=VALUE with one of {', '.join(PRINT_OPTIONS)}, such as "
            "precision=2 or sci_mode=false"
        ) from error


def baseline(text: str) -> Path:
    path = user_path(text)
    if not (path.is_file() or is_trace(text)):
        raise argparse.ArgumentTypeError(
            f"there is no file or trace {text}: expected a report that --report FILE.json has "
            "written, or a folder of `trace_model record`"
        )
    return path


def limit(text: str) -> tuple[str, float]:
    glob, separator, value = text.rpartition("=")
    if not separator or not glob:
        raise argparse.ArgumentTypeError(f"{text!r}: expected GLOB=PEIR, such as '*.lm_head=0.05'")
    return glob, tolerance(value)


def limit_of(
    name: str, example: str, low: float = -math.inf, high: float = math.inf
) -> Callable[[str], tuple[str, float]]:
    """A limit on something else than PEIR, from `low` to `high`."""

    def convert(text: str) -> tuple[str, float]:
        glob, separator, value = text.rpartition("=")
        try:
            figure = float(value)
        except ValueError:
            figure = math.nan
        if not (separator and glob and math.isfinite(figure) and low <= figure <= high):
            span = "" if math.isinf(low) else f" of at least {low:g}"
            span = span if math.isinf(high) else f" from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected GLOB={name} with a number{span}, such as '{example}'"
            )
        return glob, figure

    return convert


def override(text: str) -> tuple[str, str]:
    glob, _, dtype = text.rpartition("=")
    if not glob or not dtype:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected GLOB=DTYPE, such as '*.down_proj=int16' or 'lm_head=float'"
        )
    return glob, dtype


def report(text: str) -> Path:
    try:
        return check_path(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
