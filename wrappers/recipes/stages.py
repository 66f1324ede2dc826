"""The stages of `wrappers.algorithms` by the names that they have in a recipe.

    {"gptq": GPTQ, "smooth-quant": SmoothQuant, ...}

They are made of the names there, so that an algorithm that is added is a stage here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wrappers import algorithms
from wrappers.algorithms.stage import Stage
from wrappers.errors import RecipeError
from wrappers.recipes.tables import choices, table


def known_stages() -> dict[str, type[Any]]:
    """The classes of all stages by name."""
    found = (getattr(algorithms, name) for name in algorithms.__all__)
    return {
        _named(each.__name__): each
        for each in found
        if isinstance(each, type) and dataclasses.is_dataclass(each) and "__call__" in dir(each)
    }


def stage(given: Any, place: str, folder: Path) -> tuple[str, Stage]:
    """A stage and its name, of a table with `name` and the options of the stage.

    Raises:
        RecipeError: there is no such stage, or an option is none that it takes.
    """
    stages = known_stages()
    name = given.get("name") if isinstance(given, Mapping) else None
    if not isinstance(name, str):
        raise RecipeError(f"{place} names no stage: give name{choices('', stages)}")
    plain = {_plain(each): each for each in stages}
    if _plain(name) not in plain:
        raise RecipeError(f"{place}: unknown stage {name!r}{choices(name, stages)}")
    chosen = plain[_plain(name)]
    options = {key: value for key, value in given.items() if key != "name"}
    made: Stage = table(stages[chosen], options, f"{place} ({chosen})", folder)
    return chosen, made


def _named(name: str) -> str:
    """ "SmoothQuant" as "smooth-quant"; what is all capitals stays in one."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
