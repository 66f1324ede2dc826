"""The sections of a recipe as dataclasses: what may stand in each, and what must hold of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from wrappers.core.config import PTQConfig
from wrappers.core.spec import Role
from wrappers.errors import RecipeError
from wrappers.evaluate import read_questions

Spec = str | Mapping[str, Any]


@dataclass(frozen=True)
class Quantization:
    """`[quantization]`: the fields of `PTQConfig` besides its overrides.

    Args:
        activation, weight: a type such as "uint8", or a table of a `QuantSpec`; what is no field of
            one is an option of its observer.
        grid_thw: fixes the grids of a vision model, for its export.
        kv_cache: the fields of a `KVCacheSpec`.
    """

    activation: Spec = "uint8"
    weight: Spec = "uint8"
    variant: Literal["prefill", "prefill_reference", "decode"] = "prefill"
    attention_mask_fill_value: float = PTQConfig.attention_mask_fill_value
    strict_wrap: bool = False
    grid_thw: tuple[tuple[int, ...], ...] | None = None
    kv_cache: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Override:
    """One of `[[overrides]]`.

    Args:
        modules: a glob of modules, which stand for all that is in them.
        points: a glob of their points.
        role: confines it to points of that role.
        spec: a type, "float", or a table of what changes; of cached states "float" alone.
    """

    spec: Spec
    modules: str = "*"
    points: str = "*"
    role: Role | None = None

    def __post_init__(self) -> None:
        if self.role == "cache" and self.spec != "float":
            raise RecipeError(
                f"cached keys and values have the type that kv-cache gives them; spec is "
                f"{self.spec!r}; expected 'float', which leaves them as they are"
            )

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


def _at_least(section: Any, least: int, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if value is not None and value < least:
            raise RecipeError(f"{name.replace('_', '-')} is {value}; expected at least {least}")


def _check_file(path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise RecipeError(f"there is no file {path}")
