"""What a recipe measures of a model, as plain values for a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from wrappers.errors import RecipeError
from wrappers.evaluate import documents, image_questions, perplexity, run_tasks
from wrappers.recipes.sections import Evaluation


def measured(model: nn.Module, loaded: Any, evaluation: Evaluation) -> dict[str, Any]:
    """The figures of a model: perplexity, questions and tasks, those that were asked for.

    Args:
        model: float or quantised.
        loaded: `tracer.models.Loaded` that it was made of, with tokenizer and processor.
        evaluation: of the recipe.

    Raises:
        RecipeError: there is no tokenizer or processor.
        ModelInputError: as the functions of `wrappers.evaluate`.
    """
    found: dict[str, Any] = {}
    if evaluation.text is not None:
        found["perplexity"] = _perplexity(model, loaded, evaluation)
    if evaluation.questions is not None:
        if loaded.processor is None:
            raise RecipeError(
                f"{loaded.name} has no processor, and questions about photos need one: --processor"
            )
        asked = image_questions(
            model,
            loaded.processor,
            evaluation.questions,
            limit=evaluation.question_limit,
            max_pixels=evaluation.max_pixels,
        )
        found["questions"] = {
            "accuracy": asked.accuracy,
            "standard_error": None if len(asked.answers) < 2 else asked.standard_error,
            "questions": len(asked.answers),
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


def check_measurable(loaded: Any, evaluation: Evaluation) -> None:
    """Checks that a model has what its evaluation needs, before anything is made.

    Raises:
        RecipeError: it lacks a tokenizer or a processor.
    """
    if evaluation.text is not None or evaluation.tasks:
        _tokenizer(loaded)
    if evaluation.questions is not None and loaded.processor is None:
        raise RecipeError(
            f"{loaded.name} has no processor, and questions about photos need one: --processor"
        )


def in_words(figures: dict[str, Any]) -> list[str]:
    """The figures of a model, each in a few words."""
    said = []
    if "perplexity" in figures:
        found = figures["perplexity"]
        said.append(f"perplexity {found['value']:.5g} ({found['tokens']:,} tokens)")
    if "questions" in figures:
        found = figures["questions"]
        spread = found["standard_error"]
        error = "" if spread is None else f" ± {spread:.1%}"
        said.append(f"{found['accuracy']:.1%}{error} of {found['questions']} questions")
    for task, values in figures.get("tasks", {}).items():
        said += [f"{task}: {name} {value:.4g}" for name, value in values.items()]
    return said


def _perplexity(model: nn.Module, loaded: Any, evaluation: Evaluation) -> dict[str, Any]:
    assert evaluation.text is not None
    tokenizer = _tokenizer(loaded)
    texts = documents(_read(evaluation.text), tokenizer, separator=evaluation.separator)
    found = perplexity(
        model,
        _first(texts, evaluation.tokens),
        bos=tokenizer.bos_token_id,
        window=evaluation.window,
        stride=evaluation.stride,
        batch=evaluation.batch,
    )
    value = None if math.isinf(found.value) else found.value
    return {"value": value, "loss": found.loss, "tokens": sum(found.tokens)}


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


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file} cannot be read: {error}") from error
