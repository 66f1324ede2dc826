"""What a recipe calibrates on, as the batches that a model takes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wrappers.errors import ModelInputError, RecipeError
from wrappers.evaluate import documents, positions_of
from wrappers.recipes.sections import Data


@dataclass(frozen=True)
class Batches:
    """Calibration inputs, and the same in words."""

    batches: list[dict[str, Tensor]]
    description: str


def calibration_batches(data: Data, loaded: Any, *, same_grids: bool = False) -> Batches:
    """The batches that a recipe asks for.

    Args:
        data: of the recipe.
        loaded: `tracer.models.Loaded`, with inputs as long as the recipe says, and its photos.
        same_grids: photos are all shown in the grids of the first.

    Raises:
        RecipeError: the model has no tokenizer, or the data are too few or not what they should be.
    """
    if data.data == "own" or data.data == "images" or _is_synthetic(data, loaded):
        return _made_by_tracer(data, loaded, same_grids)
    sequences, source = _SOURCES[data.data](data, loaded)
    if not sequences:
        raise RecipeError(f"found no sequence to calibrate on among the {source}")
    device = next(loaded.model.parameters()).device
    made = [
        _padded(sequences[start : start + data.batch], device)
        for start in range(0, len(sequences), data.batch)
    ]
    return Batches(made, f"{len(sequences)} {source}")


def check_length(data: Data, loaded: Any) -> None:
    """Checks that a model has positions enough for what it is calibrated on.

    Raises:
        RecipeError: it has not.
    """
    most = positions_of(loaded.model)
    if most is not None and data.length > most:
        raise RecipeError(
            f"the calibration length is {data.length}, and {loaded.name} has {most} positions"
        )


def _is_synthetic(data: Data, loaded: Any) -> bool:
    return data.data == "random" and "pixel_values" in loaded.inputs


def _made_by_tracer(data: Data, loaded: Any, same_grids: bool) -> Batches:
    """The model's own inputs, and others of their kind."""
    import tracer

    text = data.file if data.data == "images" else None
    made = tracer.models.calibration(
        loaded, count=data.count - 1, text=text, seed=data.seed, same_grids=same_grids
    )
    plain = {"input_ids", "attention_mask"}
    if data.batch == 1 or any(set(batch) - plain for batch in made.batches):
        return Batches(list(made.batches), made.description)
    rows = [row for batch in made.batches for row in batch["input_ids"].tolist()]
    device = made.batches[0]["input_ids"].device
    starts = range(0, len(rows), data.batch)
    return Batches([_padded(rows[at : at + data.batch], device) for at in starts], made.description)


def _of_text(data: Data, loaded: Any) -> tuple[list[list[int]], str]:
    """Sequences drawn from a text, each after the token that begins texts."""
    assert data.file is not None
    tokenizer = _tokenizer(data, loaded)
    head = _head(tokenizer)
    parts = documents_of(data.file, tokenizer, data.separator)
    ids = [token for part in parts for token in part]
    length = data.length - len(head)
    if len(ids) < length:
        raise RecipeError(
            f"the text {data.file} has {len(ids)} tokens, and a calibration sequence takes "
            f"{length}: give more text, or a smaller length"
        )
    draw = random.Random(data.seed)
    starts = [draw.randrange(len(ids) - length + 1) for _ in range(data.count)]
    sequences = [[*head, *ids[start : start + length]] for start in starts]
    return sequences, f"sequences of {data.length} tokens of {data.file} (seed {data.seed})"


def _of_lines(data: Data, loaded: Any) -> tuple[list[list[int]], str]:
    """One sequence a line, cut to the length."""
    assert data.file is not None
    sequences: list[list[int]] = []
    for number, line in enumerate(_read(data.file).splitlines(), 1):
        if len(sequences) == data.count:
            break
        if line.strip():
            sequences.append(_sequence(line, f"{data.file}, line {number}", data, loaded))
    return sequences, f"lines of {data.file}"


def _sequence(line: str, place: str, data: Data, loaded: Any) -> list[int]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise RecipeError(f"{place} is no JSON: {error}") from error
    text = found.get("text") if isinstance(found, dict) else None
    ids = found.get("input_ids") if isinstance(found, dict) else None
    if isinstance(text, str):
        tokenizer = _tokenizer(data, loaded)
        ids = [*_head(tokenizer), *tokenizer(text, add_special_tokens=False)["input_ids"]]
    if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
        raise RecipeError(f"{place}: expected an object with a text, or with input_ids")
    known = loaded.model.get_input_embeddings().weight.shape[0]
    if not 0 <= min(ids) <= max(ids) < known:
        raise RecipeError(f"{place}: token {max(ids)} is none of the model's {known}")
    return ids[: data.length]


def _of_chance(data: Data, loaded: Any) -> tuple[list[list[int]], str]:
    known = loaded.model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(data.seed)
    ids = torch.randint(known, (data.count, data.length), generator=generator)
    return ids.tolist(), f"random sequences of {data.length} tokens (seed {data.seed})"


_SOURCES = {"text": _of_text, "jsonl": _of_lines, "random": _of_chance}


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask.to(device)}


def documents_of(file: Path, tokenizer: Any, separator: str | None) -> list[list[int]]:
    """The token ids of each document of a file.

    Raises:
        RecipeError: it cannot be read, or holds no text.
    """
    try:
        return documents(_read(file), tokenizer, separator=separator)
    except ModelInputError as error:
        raise RecipeError(f"{file}: {error}") from error


def _tokenizer(data: Data, loaded: Any) -> Any:
    if loaded.tokenizer is None:
        raise RecipeError(
            f"{loaded.name} has no tokenizer, so {data.file} cannot calibrate it; input_ids in a "
            "jsonl, random or own data can"
        )
    return loaded.tokenizer


def _head(tokenizer: Any) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file} cannot be read: {error}") from error
