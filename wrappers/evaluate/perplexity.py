"""Perplexity: how well a model predicts a text, with each of its tokens scored exactly once.

    text = documents(Path("stories.txt").read_text(), tokenizer, separator="<|endoftext|>")
    perplexity(model, text, bos=tokenizer.bos_token_id).value

A document longer than the window is read in windows that begin `stride` tokens apart. Each scores
the tokens that none before it has scored, with what fits before them as context:

    window 6, stride 3, bos         context       scored
    [bos]  0  1  2  3  4            bos           0 1 2 3 4
    [bos]  3  4  5  6  7            bos 3 4       5 6 7
    [bos]  6  7  8                  bos 6 7       8

`decoded_perplexity` does the same one token at a time, over the cache of a prefill and of its own
steps: what the decode graph of a quantised model makes of a text. `step_perplexity` gives each step
a past that another model has made of all tokens before it: what a step makes wrong by itself.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trace_model.annotations import checked
from wrappers.errors import ArgumentError, ModelInputError
from wrappers.evaluate.decoded import DecodedModel, step_logits
from wrappers.evaluate.opening import Beginning, head_of, with_images

# A text of more characters is given to the tokenizer in parts of this many lines, since the time
# that tokenizers take may grow with the square of a text.
_LONG_TEXT, _LINES = 20_000, 64

Progress = Callable[[Sequence[Any]], Iterable[Any]]
"""Hands on a list and shows how far it is: `tqdm`, or on a terminal `rich.progress.track`."""


@dataclass(frozen=True)
class Perplexity:
    """What scoring a text has given.

    Attributes:
        losses: of each document, the sum of its tokens' negative log-likelihoods, in nats.
        tokens: of each document, how many were scored.
        windows: how many forwards that took, one for each window.
    """

    losses: tuple[float, ...]
    tokens: tuple[int, ...]
    windows: int

    def __repr__(self) -> str:
        value = f"{self.value:.5g}" if any(self.tokens) else None
        scored = f"tokens={sum(self.tokens)}, documents={len(self.tokens)}"
        return f"Perplexity(value={value}, {scored}, windows={self.windows})"

    @property
    def loss(self) -> float:
        """The mean negative log-likelihood of a token, in nats."""
        return math.fsum(self.losses) / sum(self.tokens)

    @property
    def value(self) -> float:
        """The perplexity: exp of the mean loss; infinite where it is beyond a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


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
        raise ModelInputError(
            f"found no text among {len(text)} characters to compute a perplexity of"
        )
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
@torch.no_grad()
def perplexity(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    *,
    bos: Beginning,
    window: int | None = None,
    stride: int | None = None,
    batch: int = 1,
    progress: Progress | None = None,
) -> Perplexity:
    """Scores documents with a causal LM: float, wrapped or quantised, on its own device.

    Args:
        model: takes `input_ids` [B, window] and returns an object with `logits`.
        texts, bos, stride: as for `windows`.
        window: as for `windows`; by default as many positions as the model has.
        batch: windows of one length that are scored together, at most.
        progress: shows how far it is: a function that passes a list on, such as `tqdm`.

    Raises:
        ModelInputError: as for `windows`; a window longer than the model's positions or an unknown
            token.
    """
    cut = windows(texts, window=_window(model, window), stride=stride, bos=bos)
    _check_tokens(model, cut)
    device = next(model.parameters()).device
    losses = [0.0] * len(texts)
    tokens = [0] * len(texts)
    batches = list(_batches(cut, batch))
    for part in batches if progress is None else progress(batches):
        ids = torch.tensor([each.ids for each in part], device=device)
        kept = max(each.scored for each in part) + 1
        logits = model(**with_images(ids, bos), use_cache=False, **_keeping(model, kept)).logits
        logits = logits[:, -kept:-1].float()  # [B, kept - 1, vocabulary]
        found = functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1 - kept :].flatten(), reduction="none"
        )
        for each, row in zip(part, found.view(len(part), -1).double(), strict=True):
            losses[each.document] += float(row[-each.scored :].sum())
            tokens[each.document] += each.scored
    return Perplexity(tuple(losses), tuple(tokens), len(cut))


@checked(ArgumentError)
def decoded_perplexity(
    prefill: nn.Module,
    decode: nn.Module,
    texts: Sequence[Sequence[int]],
    *,
    bos: Beginning,
    prompt: int,
    window: int | None = None,
    batch: int = 1,
    progress: Progress | None = None,
) -> Perplexity:
    """Scores documents token by token over the static cache of a prefill, teacher-forced.

    Each window is begun by the prefill model with its first tokens; the decode model then reads
    the true tokens one at a time, and what it predicts after each is scored. The token after the
    prompt is predicted by the prefill model and not scored.

    Args:
        prefill: a causal LM that computes the past.
        decode: a causal LM that takes one token at a time; see `Runtime`.
        texts, bos, window: as for `perplexity`; windows do not overlap.
        prompt: tokens of a window that the prefill model reads, BOS included.
        batch: windows that are scored together, at most; shorter ones go on with a token that
            nothing depends on.
        progress: as for `perplexity`.

    Raises:
        ModelInputError: as for `perplexity`; or a prompt that leaves no window a token to score.
    """
    cut = _longer_than(prompt, decode, texts, window, bos)
    model = DecodedModel(prefill, decode, prompt=prompt)

    def logits_of(ids: Tensor, places: Sequence[int]) -> Tensor:
        logits: Tensor = model(**with_images(ids, bos)).logits
        return logits[:, places]

    places = _Places(prompt)
    return _score_steps(cut, logits_of, places, len(texts), model.device, batch, progress)


@checked(ArgumentError)
def step_perplexity(
    past: nn.Module,
    decode: nn.Module,
    texts: Sequence[Sequence[int]],
    *,
    bos: Beginning,
    prompt: int,
    every: int = 1,
    window: int | None = None,
    batch: int = 1,
    progress: Progress | None = None,
) -> Perplexity:
    """Scores single decode steps, each over a past that another model has made whole.

    Args:
        past: a causal LM that computes keys and values of all tokens before a step.
        decode, texts, bos, window, batch, progress: as for `decoded_perplexity`.
        prompt: tokens of a window that are past only, BOS included.
        every: one step in `every` is scored.

    Raises:
        ModelInputError: as for `decoded_perplexity`.
    """
    cut = _longer_than(prompt, decode, texts, window, bos)

    def logits_of(ids: Tensor, places: Sequence[int]) -> Tensor:
        return step_logits(past, decode, with_images(ids, bos), places)

    device = next(decode.parameters()).device
    places = _Places(prompt, every)
    return _score_steps(cut, logits_of, places, len(texts), device, batch, progress)


@dataclass(frozen=True)
class _Places:
    """Which tokens of a window are read by a step whose prediction is scored."""

    prompt: int
    every: int = 1

    def of(self, length: int) -> range:
        """In a window of that many tokens."""
        return range(self.prompt, length - 1, self.every)


def _longer_than(
    prompt: int,
    decode: nn.Module,
    texts: Sequence[Sequence[int]],
    window: int | None,
    bos: Beginning,
) -> list[Window]:
    """The windows that have a token to score after the prompt, the longest first."""
    cut = windows(texts, window=_window(decode, window), bos=bos)
    _check_tokens(decode, cut)
    scored = [each for each in cut if len(each.ids) > prompt + 1]
    if prompt < 1 or not scored:
        raise ModelInputError(
            f"found a prompt of {prompt} tokens and windows of up to "
            f"{max(len(each.ids) for each in cut)}; expected at least 1, and two tokens after it"
        )
    return sorted(scored, key=lambda each: len(each.ids), reverse=True)


@torch.no_grad()
def _score_steps(
    cut: Sequence[Window],
    logits_of: Callable[[Tensor, Sequence[int]], Tensor],
    places: _Places,
    documents: int,
    device: torch.device,
    batch: int,
    progress: Progress | None,
) -> Perplexity:
    losses, tokens = [0.0] * documents, [0] * documents
    batches = [cut[start : start + batch] for start in _starts(len(cut), batch)]
    for part in batches if progress is None else progress(batches):
        longest = len(part[0].ids)
        rows = [(*each.ids, *[0] * (longest - len(each.ids))) for each in part]
        ids = torch.tensor(rows, device=device)
        read = places.of(longest)
        logits = logits_of(ids, read).float()  # [B, read, vocabulary]
        true = ids[:, [place + 1 for place in read]]
        found = functional.cross_entropy(
            logits.flatten(0, 1), true.flatten(), reduction="none"
        ).view(true.shape)
        for each, row in zip(part, found.double(), strict=True):
            count = len(places.of(len(each.ids)))
            losses[each.document] += float(row[:count].sum())
            tokens[each.document] += count
    known = [index for index, count in enumerate(tokens) if count]
    return Perplexity(
        tuple(losses[index] for index in known), tuple(tokens[index] for index in known), len(cut)
    )


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


def _window(model: nn.Module, window: int | None) -> int:
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


def _check_tokens(model: nn.Module, cut: Sequence[Window]) -> None:
    known = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    largest, least = (choose(choose(each.ids) for each in cut) for choose in (max, min))
    if largest >= known or least < 0:
        wrong = largest if largest >= known else least
        raise ModelInputError(
            f"found token {wrong} for a model of {known} tokens: the text was made with another "
            "tokenizer"
        )


def _keeping(model: nn.Module, count: int) -> dict[str, int]:
    """Asks for the last logits only, of a model that can be asked: a vocabulary is large."""
    takes = inspect.signature(model.forward).parameters
    return {"logits_to_keep": count} if "logits_to_keep" in takes else {}


def _batches(cut: Sequence[Window], most: int) -> Iterator[list[Window]]:
    """Neighbouring windows of one length together."""
    for _, alike in itertools.groupby(cut, key=lambda each: len(each.ids)):
        same = list(alike)
        yield from (same[start : start + most] for start in _starts(len(same), most))


def _starts(count: int, most: int) -> range:
    if most < 1:
        raise ModelInputError(f"found a batch of {most} windows; expected at least 1")
    return range(0, count, most)
