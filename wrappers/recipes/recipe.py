"""A recipe: all that makes a quantised model of a checkpoint, in a file.

    [quantization]
    activation = "int16"
    weight = { dtype = "uint4", qscheme = "per_channel_asymmetric" }

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
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from wrappers.algorithms.stage import Stage
from wrappers.core.config import PTQConfig
from wrappers.core.spec import QuantSpec, affine, no_quantization
from wrappers.errors import ConfigError, RecipeError
from wrappers.evaluate import check_tasks, read_questions
from wrappers.recipes.stages import stage
from wrappers.recipes.tables import choices, table

Spec = str | Mapping[str, Any]

_SPEC_FIELDS = tuple(each.name for each in fields(QuantSpec) if each.name != "options")
_SECTIONS = ("quantization", "stages", "overrides", "calibration", "decode", "evaluation", "export")


@dataclass(frozen=True)
class Quantization:
    """`[quantization]`: the fields of `PTQConfig` besides its overrides.

    Args:
        activation, weight: a type such as "uint8", or a table of a `QuantSpec`; what is no field of
            one is an option of its observer.
        grid_thw: fixes the grids of a vision model, for its export.
    """

    activation: Spec = "uint8"
    weight: Spec = "uint8"
    variant: Literal["prefill", "prefill_reference", "decode"] = "prefill"
    attention_mask_fill_value: float = -120.0
    strict_wrap: bool = False
    grid_thw: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class Override:
    """One of `[[overrides]]`.

    Args:
        modules: a glob of modules, which stand for all that is in them.
        points: a glob of their points.
        role: confines it to points of that role.
        spec: a type, "float", or a table of what changes.
    """

    spec: Spec
    modules: str = "*"
    points: str = "*"
    role: Literal["weight", "activation"] | None = None

    @property
    def pattern(self) -> str:
        """The key of `PTQConfig.overrides`."""
        return f"{self.modules}.{self.points}" + ("" if self.role is None else f":{self.role}")


@dataclass(frozen=True)
class Data:
    """`[calibration]`: what the model is calibrated on.

    Args:
        data: "text" of a file; "jsonl", a file with a `text` or `input_ids` a line; "images",
            photos with questions; "random" tokens (of a model with images, synthetic ones too);
            "own", a text that the model writes itself.
        file: of the text; with images, passages to show them with.
        images: photos.
        count: sequences, at most.
        length: tokens of each.
        batch: sequences that are run together.
        max_pixels: larger photos are shrunk to.
        separator: what stands between documents of a text.
        seed: of what is drawn.
    """

    data: Literal["text", "jsonl", "images", "random", "own"] = "own"
    file: Path | None = None
    images: tuple[Path, ...] = ()
    count: int = 8
    length: int = 128
    batch: int = 1
    max_pixels: int | None = None
    separator: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(self, 1, "count", "batch", "max_pixels")
        _at_least(self, 2, "length")
        for path in (self.file, *self.images):
            _check_file(path)
        needs_file = self.data in ("text", "jsonl")
        if self.data != "images" and needs_file != (self.file is not None):
            what = "needs a file" if needs_file else "takes no file"
            raise RecipeError(f"data {self.data!r} {what}; text and jsonl do, and images may")
        if bool(self.images) != (self.data == "images"):
            raise RecipeError(f'images go with data "images": found data {self.data!r}')


@dataclass(frozen=True)
class Decode:
    """`[decode]`: a decode model is made as well, and saved in the folder `decode`.

    Args:
        steps: tokens of each calibration sequence that are decoded.
        source: where their past comes from: see `wrappers.calibrate_decode`.
    """

    steps: int = 16
    source: Literal["float", "quantized"] = "float"

    def __post_init__(self) -> None:
        _at_least(self, 1, "steps")


@dataclass(frozen=True)
class Evaluation:
    """`[evaluation]`: what is measured of the float and of the quantised model.

    Args:
        text: a file, of which the perplexity is computed; with `separator` between documents.
        tokens: of the text, at most.
        window, stride, batch: as for `wrappers.evaluate.perplexity`.
        questions: a file of questions about photos, of which `question_limit` are asked.
        tasks: names or files of lm-eval's tasks, with `task_data` and `task_limit`.
        reference: measure the float model too.
    """

    text: Path | None = None
    separator: str | None = None
    tokens: int | None = None
    window: int | None = None
    stride: int | None = None
    batch: int = 1
    questions: Path | None = None
    question_limit: int | None = None
    max_pixels: int | None = None
    tasks: tuple[str, ...] = ()
    task_data: Path | None = None
    task_limit: int | None = None
    reference: bool = True

    def __post_init__(self) -> None:
        _at_least(self, 1, "tokens", "stride", "batch", "question_limit", "task_limit")
        _at_least(self, 2, "window")
        _check_file(self.text)
        if self.questions is not None:
            read_questions(self.questions)
        if not (self.text or self.questions or self.tasks):
            raise RecipeError("there is nothing to measure: give text, questions or tasks")


@dataclass(frozen=True)
class Export:
    """`[export]`: graphs that are written to the folder `export`.

    Args:
        format: of the files.
        per_layer: a graph for embedding, each layer and the head, instead of one for all.
        tokens: of the prefill.
        past: positions before the token of a decode step.
    """

    format: Literal["pt2", "circle"] = "pt2"
    per_layer: bool = False
    tokens: int | None = None
    past: int | None = None

    def __post_init__(self) -> None:
        _at_least(self, 1, "tokens", "past")
        if self.format == "circle" and find_spec("tico") is None:
            raise RecipeError(
                "a .circle is written by tico, which is not installed: pip install 'tico>=0.3', "
                "or export pt2"
            )


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
    try:
        return PTQConfig(
            activation=_spec(given.activation, f"{place}: activation"),
            weight=_spec(given.weight, f"{place}: weight"),
            overrides=overrides,
            model_args=args,
            strict_wrap=given.strict_wrap,
            attention_mask_fill_value=given.attention_mask_fill_value,
            variant=given.variant,
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
        return {"dtype": _spec(given, place).dtype, "qscheme": None}
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


def _at_least(section: Any, least: int, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if value is not None and value < least:
            raise RecipeError(f"{name.replace('_', '-')} is {value}; expected at least {least}")


def _check_file(path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise RecipeError(f"there is no file {path}")
