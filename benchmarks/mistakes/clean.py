"""Right pairs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pair:
    group: str
    name: str
    make: Callable[[], Any]


CLEAN: list[Pair] = []
