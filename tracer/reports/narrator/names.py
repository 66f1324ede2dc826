"""Names of modules in words: the user's own, with the reference's where that is another.

>>> names = Names({"model.norm": "final_norm"})
>>> names.module("model.norm"), names.module("model.norm")
('`final_norm` (reference: `model.norm`)', '`final_norm`')
"""

from collections.abc import Mapping

from tracer import text
from tracer.measurement.rows import Row


def both_names(reference: str, candidate: str | None) -> str:
    """A module by the candidate's name, with the reference's behind it where that is another."""
    if candidate is None or candidate == reference:
        return text.module_in_words(reference)
    other = text.module_in_words(reference)
    return f"{text.module_in_words(candidate)} (reference: {other})"


class Names:
    """Says modules in one explanation: both names at first, after that the candidate's alone."""

    def __init__(self, candidate: Mapping[str, str]) -> None:
        self._candidate = candidate
        self._said: set[str] = set()

    def module(self, name: str) -> str:
        """A module by the reference's name of it."""
        own = self._candidate.get(name, name)
        if name in self._said:
            return text.module_in_words(own)
        self._said.add(name)
        return both_names(name, own)

    def own(self, name: str) -> str:
        """The candidate's name."""
        return self._candidate.get(name, name)

    def place(self, row: Row) -> str:
        """Where a row's value belongs."""
        return text.place(row, self.module(row.module))
