"""Texts as token ids, cut into the windows that a causal LM reads one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from trace_model.annotations import checked
from wrappers.errors import ArgumentError, ModelInputError
from wrappers.evaluate.opening import Beginning, head_of

# A text of more characters is given to the tokenizer in parts of this many lines, since the time
# that tokenizers take may grow with the square of a text.
_LONG_TEXT, _LINES = 20_000, 64


@dataclass(frozen=True)
class Window:
    """A part of a document that one forward scores.

    Attributes:
        document: its index.
        ids: the tokens that the model reads, BOS included.
        scored: how many of the last of them are scored.
    """

    document: int
    ids: tuple[int, ...]
    scored: int


@checked(ArgumentError)
def documents(text: str, tokenizer: Any, *, separator: str | None = None) -> list[list[int]]:
    """The token ids of each document of a text, without special tokens.

    Args:
        tokenizer: of transformers.
        separator: what stands between two documents; without it the text is one.

    Raises:
        ModelInputError: there is no text.
    """
    text = text.replace("\r\n", "\n")
    parts = [text] if separator is None else [part.strip() for part in text.split(separator)]
    found = [ids for part in parts if (ids := _tokenized(part, tokenizer))]
    if not found:
        raise ModelInputError(f"found no text among {len(text)} characters")
    return found


def _tokenized(text: str, tokenizer: Any) -> list[int]:
    lines = text.splitlines(keepends=True)
    step = _LINES if len(text) > _LONG_TEXT else max(1, len(lines))
    parts = ("".join(lines[start : start + step]) for start in range(0, len(lines), step))
    # `verbose` would warn of texts beyond the model's length, which are cut into windows here.
    found = (
        tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"] for part in parts
    )
    return [token for ids in found for token in ids]


@checked(ArgumentError)
def windows(
    texts: Sequence[Sequence[int]], *, window: int, stride: int | None = None, bos: Beginning
) -> list[Window]:
    """Cuts documents into windows that score each token once.

    Args:
        texts: token ids of each document.
        window: tokens of a window at most, BOS included.
        stride: tokens that each further window scores, at most; by default as many as fit, so that
            windows overlap in no more than their first token.
        bos: begins every window, a token or an `Opening` with images; without one the first token
            of each document is context only.

    Raises:
        ModelInputError: a window without room for context and a token to score, a stride that does
            not fit into it, or nothing to score.
    """
    head = head_of(bos)
    context = max(1, len(head))
    if window <= context:
        raise ModelInputError(f"found a window of {window} tokens; expected at least {context + 1}")
    stride = window - context if stride is None else stride
    if not 1 <= stride <= window - context:
        raise ModelInputError(
            f"found a stride of {stride} for a window of {window} tokens; expected from 1 to "
            f"{window - context}: a window has room for context besides what it scores"
        )
    room = window - len(head)
    made = []
    for document, ids in enumerate(texts):
        start, done = 0, 0 if head else 1  # without BOS, nothing predicts the first token
        while done < len(ids):
            end = min(len(ids), start + room)
            made.append(Window(document, (*head, *ids[start:end]), end - done))
            start, done = end + stride - room, end
    if not made:
        raise ModelInputError(f"found {len(texts)} documents without a token to score")
    return made


@checked(ArgumentError)
def positions_of(model: nn.Module) -> int | None:
    """How many positions a causal LM has; None if its config does not say.

    Raises:
        ModelInputError: the model has no config.
    """
    config: Any = getattr(model, "config", None)
    if config is None:
        raise ModelInputError(
            f"a {type(model).__name__} has no config; expected a causal LM of transformers"
        )
    if hasattr(config, "get_text_config"):  # of a model with images as well
        config = config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    return None if most is None else int(most)


def window_of(model: nn.Module, window: int | None) -> int:
    """The tokens of a window, by default as many as a model has positions.

    Raises:
        ModelInputError: the model has fewer, or does not say how many.
    """
    most = positions_of(model)
    if window is None:
        if most is None:
            raise ModelInputError(
                f"{type(model).__name__} does not say how many positions it has: give a window"
            )
        return most
    if most is not None and window > most:
        raise ModelInputError(
            f"found a window of {window} tokens for a model of {most} positions; expected no more"
        )
    return window


def check_tokens(model: nn.Module, cut: Sequence[Window]) -> None:
    """Checks that a model knows all tokens of windows.

    Raises:
        ModelInputError: it does not.
    """
    known = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    largest, least = (choose(choose(each.ids) for each in cut) for choose in (max, min))
    if largest >= known or least < 0:
        wrong = largest if largest >= known else least
        raise ModelInputError(
            f"found token {wrong} for a model of {known} tokens: the text was made with another "
            "tokenizer"
        )
