"""From a checkpoint and a recipe to files.

    make(Recipe.read("int4.toml"), "path/of/a/model", "quantized")

    quantized/
      quantized.json ...        the model, as `wrappers.save` writes it
      decode/                   the decode model, where there is [decode]
      recipe.toml               a copy
      evaluation.json           what was measured, of the float and the quantised model
      export/                   graphs

The folder is there whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from trace_model.annotations import checked
from wrappers import algorithms
from wrappers.algorithms.stage import is_prepared
from wrappers.deploy.circle_types import check_circle
from wrappers.deploy.decode_calibration import calibrate_decode, check_prompts, take_weights
from wrappers.deploy.export import export
from wrappers.deploy.folders import check_place, replaced_folder
from wrappers.deploy.manifest import export_pieces, pieces_of
from wrappers.deploy.parts import exported_part
from wrappers.deploy.prompts import Prompts
from wrappers.deploy.saving import write_model
from wrappers.errors import ArgumentError
from wrappers.families.qwen3_vl.grids import GRID_THW
from wrappers.quantize import convert, prepare
from wrappers.recipes.data import calibration_batches, check_length
from wrappers.recipes.measuring import check_measurable, in_words, measured
from wrappers.recipes.recipe import Recipe
from wrappers.recipes.sections import Export

During = Callable[[str], AbstractContextManager[None]]
"""Shows what goes on meanwhile."""


@dataclass(frozen=True)
class Made:
    """What came of a recipe.

    Attributes:
        folder: what was written.
        notes: how the model was loaded and what it was calibrated on, in words.
        evaluation: the figures by model, "float" and "quantized".
        exported: names of the files in the folder `export`.
    """

    folder: Path
    notes: tuple[str, ...]
    evaluation: dict[str, dict[str, Any]]
    exported: tuple[str, ...]

    def in_words(self) -> list[str]:
        """The figures, a line for each model."""
        return [
            f"{name}: {', '.join(in_words(figures))}" for name, figures in self.evaluation.items()
        ]


@contextmanager
def _silently(_what: str) -> Iterator[None]:
    yield


@checked(ArgumentError, but=("during",))
def make(
    recipe: Recipe,
    model: str,
    folder: str | Path,
    *,
    force: bool = False,
    during: During = _silently,
    **options: Any,
) -> Made:
    """Follows a recipe.

    Args:
        recipe: has been read.
        model: a name or a path, as for `tracer.models.load`.
        folder: is made; a saved model that is there is replaced by `force` alone.
        during: is entered with what goes on, such as "gptq".
        **options: of `tracer.models.load`: dtype, device, processor, trust_remote_code.

    Raises:
        SavedModelError: the folder cannot be written.
        RecipeError: the model does not go with the recipe.
        WrappersError, TracerError: it cannot be loaded, quantised, measured or exported.
    """
    target = Path(folder).expanduser().absolute()
    check_place(target, force=force)
    grids = recipe.config.model_args.get(GRID_THW)
    with during(f"loading {model}"):
        loaded = _loaded(recipe, model, options)
        prepared = prepare(loaded.model, recipe.config)  # so that no override is in vain
        if recipe.export is not None:
            _check_exportable(prepared, recipe.export)
        if recipe.evaluation is not None:
            check_measurable(loaded, recipe.evaluation, grids)
        data = calibration_batches(recipe.calibration, loaded, same_grids=grids is not None)
        if recipe.decode is not None:
            for batch in data.batches:
                check_prompts(Prompts.packed(batch), recipe.decode.steps)
    quantized, decode = _quantized(recipe, loaded.model, data.batches, during)
    figures: dict[str, dict[str, Any]] = {}
    if recipe.evaluation is not None:
        both = {"float": loaded.model} if recipe.evaluation.reference else {}
        for name, each in {**both, "quantized": quantized}.items():
            with during(f"measuring the {name} model"):
                figures[name] = measured(each, loaded, recipe.evaluation)
    with replaced_folder(target, force=force) as beside, during("writing"):
        write_model(quantized, beside, loaded.model, final=target)
        if decode is not None:
            (beside / "decode").mkdir()
            write_model(decode, beside / "decode", loaded.model, final=target / "decode")
        (beside / "recipe.toml").write_text(recipe.text, encoding="utf-8")
        if figures:
            text = json.dumps(figures, indent=1)
            (beside / "evaluation.json").write_text(text, encoding="utf-8")
        exported = _exported(recipe.export, quantized, decode, beside / "export")
    notes = (*loaded.notes[:-1], f"calibrated on {data.description}")
    return Made(target, notes, figures, exported)


def _loaded(recipe: Recipe, model: str, options: dict[str, Any]) -> Any:
    import tracer

    data = recipe.calibration
    if data.data == "images":
        options |= {"images": data.images, "max_pixels": data.max_pixels}
    loaded = tracer.models.load(model, seed=data.seed, **options)
    check_length(data, loaded)
    if data.data == "own" and "pixel_values" not in loaded.inputs:
        # What the model writes itself is as long as its inputs are.
        options["sequence_length"] = data.length
        loaded = tracer.models.load(model, seed=data.seed, **options)
    return loaded


def _quantized(
    recipe: Recipe, model: nn.Module, batches: list[Any], during: During
) -> tuple[nn.Module, nn.Module | None]:
    """The quantised model, and the decode model where one is asked for."""
    staged, unprepared = model, model
    for number, (name, stage) in enumerate(recipe.stages, 1):
        with during(f"stage {number} of {len(recipe.stages)}, {name}"):
            staged = stage(staged, recipe.config, batches)
        unprepared = unprepared if is_prepared(staged) else staged
    with during("calibrating"):
        quantized = algorithms.quantize(staged, recipe.config, batches)
    if recipe.decode is None:
        return quantized, None
    with during("calibrating the decode model"):
        decode = prepare(unprepared, replace(recipe.config, variant="decode"))
        take_weights(decode, quantized)
        source = recipe.decode.source
        calibrate_decode(
            quantized if source == "quantized" else unprepared,
            decode,
            batches,
            steps=recipe.decode.steps,
            source=source,
        )
    return quantized, convert(decode)


def _check_exportable(prepared: nn.Module, wanted: Export) -> None:
    if wanted.format == "circle":
        check_circle(prepared)
    if wanted.per_layer:
        pieces_of(prepared, tokens=wanted.tokens)


def _exported(
    wanted: Export | None, quantized: nn.Module, decode: nn.Module | None, folder: Path
) -> tuple[str, ...]:
    if wanted is None:
        return ()
    folder.mkdir()
    suffix = f".{wanted.format}"
    if wanted.per_layer:
        export_pieces(
            *(quantized, folder),
            suffix=suffix,
            decode=decode,
            tokens=wanted.tokens,
            past=wanted.past,
        )
    else:
        for stage, each in (("prefill", quantized), ("decode", decode)):
            if each is None:
                continue
            tokens = wanted.tokens if stage == "prefill" else None
            past = wanted.past if stage == "decode" else None
            module, inputs = exported_part(each, "model", tokens=tokens, past=past)
            export(module, inputs, folder / f"{stage}{suffix}")
    return tuple(sorted(path.name for path in folder.iterdir()))
