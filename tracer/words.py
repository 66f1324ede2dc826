"""Errors and lists of names in a few words, for messages."""

from collections.abc import Sequence

_LONGEST = 300


def brief(error: BaseException) -> str:
    """An error's first paragraph in one line, or its class where it says nothing."""
    return first_line(str(error)) or type(error).__name__


def first_line(text: str) -> str:
    """The first paragraph of a text in one line of bounded length, without a full stop."""
    paragraph = text.strip().split("\n\n")[0]
    line = " ".join(paragraph.split())
    return line.removesuffix(".") if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names with commas; beyond `most` of them, how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def cut(text: str, longest: int) -> str:
    """A text without its end, where it is longer than so many characters."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
