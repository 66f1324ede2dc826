"""A study from a file: every combination of some settings, with no code.

[study]
name = "sensitivity"
measured = "loss"                        # what they are compared by, see `MEASURED`
seeds = [0, 1, 2]
baseline = { only = "model.layers.0" }   # what the others are compared with; or the first

[settings]                               # of all trials, see `wrappers.studies.plan.settings`
activation = "int16"
weight = "uint4"

[grid]                                   # lists of values, all combinations of which are tried
only = ["model.layers.*"]                # a glob stands for the modules that it matches

[workload]                               # what is not given on the command line
tokens = 4096
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from wrappers.core.config import PTQConfig
from wrappers.core.module import iter_wrappers
from wrappers.errors import StudyError
from wrappers.quantize import prepare
from wrappers.studies.plan.decode_calibration import DecodeCalibration
from wrappers.studies.plan.settings import check_settings
from wrappers.studies.plan.trials import Results, Settings, Trial
from wrappers.studies.plan.workload import Workload

_SECTIONS = ("study", "settings", "grid", "workload")
MEASURED = DecodeCalibration.measured
"""What settings can be compared by, losses all; but for the first only where there is a source."""

_OF_STUDY = ("name", "seeds", "baseline", "measured")
# Settings that name a module, for which a glob may stand.
_MODULES = ("leave_out", "only")
_WILD = "*?["
_SEEDS = 2**63  # how many PyTorch can be seeded with


@dataclass(frozen=True)
class Grid:
    """The study.

    Args:
        name: as in the file of results.
        combinations: the settings of each.
        seeds: of the calibration sets, one for each.
        baseline: of the combinations, that which the others are compared with.
        measured: the metric that they are compared by; the less, the better.
        varied: the settings that differ.
    """

    name: str
    combinations: Sequence[Settings]
    seeds: Sequence[int]
    baseline: Settings
    measured: str
    varied: Sequence[str]

    def wanted(self, known: Results) -> list[Trial]:
        """All combinations, seed by seed."""
        return [Trial(settings, seed) for settings in self.combinations for seed in self.seeds]


@dataclass(frozen=True)
class File:
    """A file of a grid as it stands.

    Attributes:
        path: where it is.
        study, settings, grid, workload: its sections.
    """

    path: Path
    study: Mapping[str, Any]
    settings: Settings
    grid: Mapping[str, Sequence[Any]]
    workload: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> File:
        """Reads and checks what can be checked without a model.

        Raises:
            StudyError: no such file, no TOML, or sections, names or values that are not known.
        """
        try:
            found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise StudyError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise StudyError(f"{path} is no TOML that can be read: {error}") from error
        _check_names(path, "section", found, _SECTIONS)
        for name, section in found.items():
            if not isinstance(section, dict):
                raise StudyError(f"{path}: [{name}] is {section!r}; expected a table")
        file = cls(Path(path), *(found.get(name, {}) for name in _SECTIONS))
        _check_names(path, "name in [study]", file.study, _OF_STUDY)
        known = [each.name for each in fields(Workload) if each.name != "checksum"]
        _check_names(path, "name in [workload]", file.workload, known)
        for name, values in file.grid.items():
            if not isinstance(values, list) or not values:
                raise StudyError(
                    f"{path}: {name} in [grid] is {values!r}; expected a list of values"
                )
        if not file.grid:
            raise StudyError(f"{path} has no [grid]: expected at least one list of values to try")
        file._check_study()
        for combination in file.combinations(file.grid):
            check_settings(combination)
        return file

    def _check_study(self) -> None:
        seeds = self.study.get("seeds", [0])
        is_list = isinstance(seeds, list) and bool(seeds)
        if not is_list or not all(type(each) is int and 0 <= each < _SEEDS for each in seeds):
            raise StudyError(
                f"{self.path}: found seeds {seeds!r}; expected a list of whole numbers from 0 to "
                "2**63 - 1"
            )
        if len(set(seeds)) < len(seeds):
            raise StudyError(
                f"{self.path}: found seeds {seeds!r}; expected each once, as a seed draws the same "
                "calibration set each time"
            )
        for name, kind, expected in (("name", str, "a text"), ("baseline", dict, "a table")):
            value = self.study.get(name, kind())
            if not isinstance(value, kind):
                raise StudyError(f"{self.path}: found {name} {value!r}; expected {expected}")
        measured = self.study.get("measured", MEASURED[0])
        if measured not in MEASURED:
            raise StudyError(
                f"{self.path}: found measured {measured!r}; expected one of {', '.join(MEASURED)}"
            )
        if measured != MEASURED[0] and "source" not in {**self.settings, **self.grid}:
            raise StudyError(
                f"{self.path}: {measured} is measured of decode models: give a `source` in "
                "[settings] or [grid]"
            )

    def combinations(self, grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
        """Every combination of a grid with the settings of all."""
        return [
            {**self.settings, **dict(zip(grid, values, strict=True))}
            for values in itertools.product(*grid.values())
        ]

    def on(self, model: nn.Module) -> Grid:
        """The study on a model, with names instead of globs.

        Raises:
            StudyError: a glob that matches no wrapped module, or a baseline that is not tried.
        """
        grid = {
            name: self._named(name, values, model) if name in _MODULES else values
            for name, values in self.grid.items()
        }
        combinations = self.combinations(grid)
        wanted = self.study.get("baseline", {})
        matching = [each for each in combinations if wanted.items() <= each.items()]
        if not matching:
            raise StudyError(
                f"{self.path}: none of the {len(combinations)} combinations has the baseline "
                f"{json.dumps(wanted)}"
            )
        return Grid(
            name=self.study.get("name", self.path.stem),
            combinations=combinations,
            seeds=tuple(self.study.get("seeds", (0, 1, 2))),
            baseline=matching[0],
            measured=self.study.get("measured", MEASURED[0]),
            varied=tuple(grid),
        )

    def _named(self, setting: str, values: Sequence[Any], model: nn.Module) -> list[str]:
        names = [name for name, _ in iter_wrappers(prepare(model, PTQConfig())) if name]
        found: list[str] = []
        for value in values:
            is_glob = isinstance(value, str) and any(sign in value for sign in _WILD)
            # A star stands for a part of a name between two dots, as layers are counted.
            matched = (
                [
                    name
                    for name in names
                    if fnmatch.fnmatchcase(name, value) and name.count(".") == value.count(".")
                ]
                if is_glob
                else [value]
            )
            if not matched:
                raise StudyError(
                    f"{self.path}: {setting} {value!r} matches no wrapped module, such as "
                    f"{', '.join(names[:3])}"
                )
            found += [name for name in matched if name not in found]
        return found


def _check_names(
    path: str | Path, what: str, found: Mapping[str, Any], known: Sequence[str]
) -> None:
    for name in found:
        if name not in known:
            raise StudyError(f"{path}: unknown {what} {name!r}; expected one of {', '.join(known)}")
