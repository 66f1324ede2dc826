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
from wrappers.evaluate.opening import Beginning, with_images
from wrappers.evaluate.text_windows import Window, check_tokens, window_of, windows

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
    cut = windows(texts, window=window_of(model, window), stride=stride, bos=bos)
    check_tokens(model, cut)
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
    cut = windows(texts, window=window_of(decode, window), bos=bos)
    check_tokens(decode, cut)
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
