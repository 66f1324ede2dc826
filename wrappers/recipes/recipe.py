"""A recipe: all that makes a quantised model of a checkpoint, in a file.

    [quantization]
    activation = "int16"
    weight = { dtype = "uint4", qscheme = "per_channel_asymmetric" }
    kv-cache = { keys = "int4", values = "int8" }

    [[stages]]                        # in the order in which they run; see `wrappers.algorithms`
    name = "gptq"
    ranges = "mse"

    [[overrides]]                     # later ones change what earlier ones made
    modules = "*.layers.0.*"
    role = "activation"
    spec = "uint8"                    # or "float", or a table of what changes

    [calibration]
    data = "text"
    file = "stories.txt"              # paths start from the folder of the recipe
    count = 16
    length = 128

    [evaluation]
    text = "held-out.txt"

    [export]
    format = "pt2"
    per-layer = true

Everything in it is checked when it is read, before any work begins.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wrappers.algorithms.stage import Stage, check_order
from wrappers.core.config import PTQConfig
from wrappers.core.spec import KVCacheSpec, QuantSpec, affine, no_quantization
from wrappers.errors import ConfigError, RecipeError, WrapError
from wrappers.evaluate import check_tasks
from wrappers.recipes.sections import (
    Data,
    Decode,
    Evaluation,
    Export,
    Override,
    Quantization,
    Spec,
)
from wrappers.recipes.stages import stage
from wrappers.recipes.tables import choices, table

_SPEC_FIELDS = tuple(each.name for each in fields(QuantSpec) if each.name != "options")
_SECTIONS = ("quantization", "stages", "overrides", "calibration", "decode", "evaluation", "export")


@dataclass(frozen=True)
class Recipe:
    """What a file says, checked.

    Attributes:
        file: where it is.
        text: what it holds.
        config: of the quantisation, overrides included.
        stages: with their names, in order.
        calibration: what the model is calibrated on.
        decode, evaluation, export: None where the file has no such section.
    """

    file: Path
    text: str
    config: PTQConfig
    stages: tuple[tuple[str, Stage], ...]
    calibration: Data
    decode: Decode | None
    evaluation: Evaluation | None
    export: Export | None

    @classmethod
    def read(cls, file: str | Path) -> Recipe:
        """Reads and checks a recipe; only what depends on the model is left.

        Raises:
            RecipeError: no such file, no TOML, or a section, a key or a value that is not known.
            MissingExtraError, ModelInputError: what is measured is not to be had here.
        """
        path = Path(file).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
            found = tomllib.loads(text)
        except OSError as error:
            raise RecipeError(f"the recipe {file} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"{file} is no TOML that can be read: {error}") from error
        for name in found:
            if name not in _SECTIONS:
                raise RecipeError(f"{file}: unknown section {name!r}{choices(name, _SECTIONS)}")
        folder = path.parent

        def section(kind: type[Any], name: str) -> Any:
            return table(kind, found[name], f"{file}: [{name}]", folder) if name in found else None

        config = _config(found, str(file), folder)
        stages = tuple(
            stage(each, f"{file}: [[stages]] {number}", folder)
            for number, each in _numbered(found, "stages", str(file))
        )
        try:
            check_order([made for _, made in stages])
        except WrapError as error:
            raise RecipeError(f"{file}: [[stages]]: {error}") from error
        recipe = cls(
            path,
            text,
            config,
            stages,
            section(Data, "calibration") or Data(),
            section(Decode, "decode"),
            section(Evaluation, "evaluation"),
            section(Export, "export"),
        )
        if recipe.decode is not None and config.variant != "prefill":
            raise RecipeError(
                f"{file}: [decode] makes a decode model beside one of the variant 'prefill', and "
                f"[quantization] has the variant {config.variant!r}"
            )
        if config.variant == "decode":
            raise RecipeError(
                f"{file}: [quantization]: a decode model is made with the variant 'prefill' and "
                "[decode], which calibrates it after a prefill"
            )
        if recipe.evaluation is not None and recipe.evaluation.tasks:
            check_tasks(recipe.evaluation.tasks, data=recipe.evaluation.task_data)
        return recipe


def _config(found: Mapping[str, Any], file: str, folder: Path) -> PTQConfig:
    place = f"{file}: [quantization]"
    given = table(Quantization, found.get("quantization", {}), place, folder)
    overrides: dict[str, Any] = {}
    for number, each in _numbered(found, "overrides", file):
        here = f"{file}: [[overrides]] {number}"
        override = table(Override, each, here, folder)
        if override.pattern in overrides:
            raise RecipeError(f"{here} is for the same points as one before: {override.pattern}")
        overrides[override.pattern] = _changed(override.spec, f"{here}: spec")
    args = {} if given.grid_thw is None else {"grid_thw": [list(grid) for grid in given.grid_thw]}
    cache = given.kv_cache
    kv_cache = None if cache is None else table(KVCacheSpec, cache, f"{place}: kv-cache", folder)
    try:
        return PTQConfig(
            activation=_spec(given.activation, f"{place}: activation"),
            weight=_spec(given.weight, f"{place}: weight"),
            overrides=overrides,
            model_args=args,
            strict_wrap=given.strict_wrap,
            attention_mask_fill_value=given.attention_mask_fill_value,
            variant=given.variant,
            kv_cache=kv_cache,
        )
    except ConfigError as error:
        raise RecipeError(f"{file}: {error}") from error


def _spec(given: Spec, place: str) -> QuantSpec:
    """A spec of a type, or of a table with its fields and the options of its observer."""
    try:
        if given == "float":
            return no_quantization()
        if isinstance(given, str):
            return affine(given)
        return QuantSpec(**_keywords(given, place))
    except (ConfigError, TypeError) as error:
        raise RecipeError(f"{place}: {error}") from error


def _changed(given: Spec, place: str) -> QuantSpec | dict[str, Any]:
    """An override: a type keeps the observer of a point, and takes its own default scheme."""
    if given == "float":
        return no_quantization()
    if isinstance(given, str):
        _spec(given, place)  # so that a type that is none is said where it stands
        return {"dtype": given, "qscheme": None}
    return _keywords(given, place)


def _keywords(given: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The fields of a QuantSpec; what else stands beside an observer is an option of it."""
    keywords = {key.replace("-", "_"): value for key, value in given.items()}
    options = {key: value for key, value in keywords.items() if key not in _SPEC_FIELDS}
    known = {key: value for key, value in keywords.items() if key in _SPEC_FIELDS}
    unknown = [key for key in options if key != "options"]
    if unknown and "observer" not in known:
        raise RecipeError(f"{place}: unknown key {unknown[0]!r}{choices(unknown[0], _SPEC_FIELDS)}")
    return known | ({"options": options.pop("options", {}) | options} if options else {})


def _numbered(found: Mapping[str, Any], name: str, file: str) -> list[tuple[int, Any]]:
    tables = found.get(name, [])
    if not isinstance(tables, list):
        raise RecipeError(f"{file}: {name} is one table; expected a list of them, [[{name}]]")
    return list(enumerate(tables, 1))
