"""A verdict that says a given text, for reports in which any text must stay text."""

from dataclasses import dataclass

from tracer.diagnosis.verdict import Verdict


@dataclass(frozen=True)
class Said(Verdict):
    """A verdict with an explanation of its own."""

    text: str = ""

    @property
    def explanation(self) -> str:
        """The text."""
        return self.text


def said(verdict: Verdict, text: str) -> Verdict:
    """The verdict with another explanation."""
    return Said(**vars(verdict), text=text)
