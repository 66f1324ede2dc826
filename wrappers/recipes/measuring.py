"""What a recipe measures of a model, as plain values for a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from wrappers.errors import RecipeError
from wrappers.evaluate import image_questions, perplexity, read_questions, run_tasks, windows
from wrappers.evaluate.images import asked, opened
from wrappers.evaluate.text_windows import window_of
from wrappers.recipes.data import documents_of
from wrappers.recipes.sections import Evaluation


def measured(model: nn.Module, loaded: Any, evaluation: Evaluation) -> dict[str, Any]:
    """The figures of a model: perplexity, questions and tasks, those that were asked for.

    Args:
        model: float or quantised.
        loaded: `tracer.models.Loaded` that it was made of, with tokenizer and processor.
        evaluation: of the recipe.

    Raises:
        ModelInputError: as the functions of `wrappers.evaluate`.
    """
    found: dict[str, Any] = {}
    if evaluation.text is not None:
        found["perplexity"] = _perplexity(model, loaded, evaluation)
    if evaluation.questions is not None:
        answered = image_questions(
            model,
            loaded.processor,
            evaluation.questions,
            limit=evaluation.question_limit,
            max_pixels=evaluation.max_pixels,
        )
        found["questions"] = {
            "accuracy": answered.accuracy,
            "standard_error": None if len(answered.answers) < 2 else answered.standard_error,
            "questions": len(answered.answers),
        }
    if evaluation.tasks:
        results = run_tasks(
            model,
            _tokenizer(loaded),
            evaluation.tasks,
            data=evaluation.task_data,
            limit=evaluation.task_limit,
            processor=loaded.processor,
        )
        found["tasks"] = {
            task: {name: float(value) for name, value in figures.items() if _is_figure(name, value)}
            for task, figures in results["results"].items()
        }
    return found


def check_measurable(loaded: Any, evaluation: Evaluation, grids: Any = None) -> None:
    """Checks that a model can be measured, before anything is made.

    Args:
        loaded, evaluation: as for `measured`.
        grids: of the images of a question, where they are fixed.

    Raises:
        RecipeError: it lacks a tokenizer or a processor, the text is none, or images have other
            grids.
        ModelInputError: as the functions of `wrappers.evaluate`.
    """
    if evaluation.tasks:
        _tokenizer(loaded)
    if evaluation.text is not None:
        bos = _tokenizer(loaded).bos_token_id
        window = window_of(loaded.model, evaluation.window)
        windows(_texts(loaded, evaluation), window=window, stride=evaluation.stride, bos=bos)
    if evaluation.questions is None:
        return
    if loaded.processor is None:
        raise RecipeError(
            f"{loaded.name} has no processor, and questions about photos need one: --processor"
        )
    for item in read_questions(evaluation.questions)[: evaluation.question_limit]:
        images = [opened(image, Path()) for image in item.images]
        made = asked(loaded.processor, item.question, images, max_pixels=evaluation.max_pixels)
        found = made["image_grid_thw"].tolist()
        if grids is not None and found != [list(grid) for grid in grids]:
            raise RecipeError(
                f"{evaluation.questions}: the images of {item.question!r:.80} have the grids "
                f"{found}, and grid-thw fixes {[list(grid) for grid in grids]}: give images of "
                "that shape, and a max-pixels that shrinks them to it"
            )


def in_words(figures: dict[str, Any]) -> list[str]:
    """The figures of a model, each in a few words."""
    said = []
    if "perplexity" in figures:
        found = figures["perplexity"]
        value = "beyond a float" if found["value"] is None else f"{found['value']:.5g}"
        said.append(f"perplexity {value} ({found['tokens']:,} tokens)")
    if "questions" in figures:
        found = figures["questions"]
        spread = found["standard_error"]
        error = "" if spread is None else f" ± {spread:.1%}"
        said.append(f"{found['accuracy']:.1%}{error} of {found['questions']} questions")
    for task, values in figures.get("tasks", {}).items():
        said += [f"{task}: {name} {value:.4g}" for name, value in values.items()]
    return said


def _perplexity(model: nn.Module, loaded: Any, evaluation: Evaluation) -> dict[str, Any]:
    found = perplexity(
        model,
        _texts(loaded, evaluation),
        bos=_tokenizer(loaded).bos_token_id,
        window=evaluation.window,
        stride=evaluation.stride,
        batch=evaluation.batch,
    )
    # JSON has neither infinities nor NaN.
    value, loss = (each if math.isfinite(each) else None for each in (found.value, found.loss))
    return {"value": value, "loss": loss, "tokens": sum(found.tokens)}


def _texts(loaded: Any, evaluation: Evaluation) -> list[Sequence[int]]:
    """The documents whose perplexity is measured."""
    assert evaluation.text is not None
    texts = documents_of(evaluation.text, _tokenizer(loaded), evaluation.separator)
    return _first(texts, evaluation.tokens)


def _first(texts: Sequence[Sequence[int]], most: int | None) -> list[Sequence[int]]:
    """The first tokens of documents."""
    kept, left = [], math.inf if most is None else most
    for ids in texts:
        if left <= 0:
            break
        kept.append(ids[: int(min(left, len(ids)))])
        left -= len(ids)
    return kept


def _tokenizer(loaded: Any) -> Any:
    if loaded.tokenizer is None:
        raise RecipeError(f"{loaded.name} has no tokenizer, and texts and tasks need one")
    return loaded.tokenizer


def _is_figure(name: str, value: object) -> bool:
    return "," in name and isinstance(value, int | float) and not isinstance(value, bool)
