"""Whether a model still writes what another writes, and whether it writes anything sensible.

    check = generation_check(reference, candidate, prompts, max_new_tokens=64)
    check.equal_share          # of the tokens, up to where both have ended
    check.degenerate           # of the candidate's texts, how many end in a loop

Greedy decoding amplifies: after the first different token two texts have little in common, however
good both are. So the place of that token says more than the share of equal ones, and repetition,
which both sides are measured by, says whether the text after it is still one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trace_model.annotations import checked
from wrappers.deploy.runtime import Runtime
from wrappers.errors import ArgumentError, ModelInputError

# Repetition is counted in runs of the first number of tokens; a text is degenerate that ends in a
# loop of at most the second number of tokens, repeated at least the third number of times.
_RUN = 4
_LONGEST_LOOP, _ROUNDS = 8, 4

Progress = Callable[[Sequence[Any]], Iterable[Any]]

Prompt = Sequence[int] | Mapping[str, Tensor]
"""Token ids without padding, or what a processor returns for one sequence."""


@dataclass(frozen=True)
class Continuation:
    """What both models have made of one prompt.

    Attributes:
        reference, candidate: new token ids, the end of text included where one was made.
    """

    reference: tuple[int, ...]
    candidate: tuple[int, ...]

    @property
    def first_different(self) -> int | None:
        """The index of the first token that is not the same; None if both texts are equal."""
        pairs = zip(self.reference, self.candidate, strict=False)
        shorter = min(len(self.reference), len(self.candidate))
        found = next((place for place, (r, c) in enumerate(pairs) if r != c), shorter)
        return None if found == len(self.reference) == len(self.candidate) else found

    @property
    def equal(self) -> int:
        """How many places hold the same token."""
        return sum(r == c for r, c in zip(self.reference, self.candidate, strict=False))


@dataclass(frozen=True)
class GenerationCheck:
    """Greedy continuations of the same prompts by two models."""

    continuations: tuple[Continuation, ...]

    def __repr__(self) -> str:
        share = f", {self.equal_share:.1%} of the tokens equal" if self.continuations else ""
        texts = f"{self.identical} of {len(self.continuations)} texts identical"
        return f"<GenerationCheck: {texts}{share}>"

    @property
    def equal_share(self) -> float:
        """Equal tokens over all: where one text is longer, its surplus is different."""
        longest = sum(max(len(c.reference), len(c.candidate)) for c in self.continuations)
        return sum(c.equal for c in self.continuations) / longest

    @property
    def identical(self) -> int:
        """How many texts are equal."""
        return sum(c.first_different is None for c in self.continuations)

    @property
    def first_different(self) -> tuple[int | None, ...]:
        """Of each prompt, the index of the first different token."""
        return tuple(c.first_different for c in self.continuations)

    @property
    def repetition(self) -> tuple[float, float]:
        """The mean `repetition` of the reference's texts and of the candidate's."""
        count = len(self.continuations)
        return (
            sum(repetition(c.reference) for c in self.continuations) / count,
            sum(repetition(c.candidate) for c in self.continuations) / count,
        )

    @property
    def degenerate(self) -> tuple[int, int]:
        """How many of the reference's texts and of the candidate's end in a loop or are empty."""
        return (
            sum(is_degenerate(c.reference) for c in self.continuations),
            sum(is_degenerate(c.candidate) for c in self.continuations),
        )


@checked(
    ArgumentError,
    advice={"prompts": "token ids of each prompt, without padding, such as [[1, 5, 7], [1, 9]]"},
)
@torch.no_grad()
def generation_check(
    reference: nn.Module | Runtime | Sequence[Sequence[int]],
    candidate: nn.Module | Runtime,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    progress: Progress | None = None,
) -> GenerationCheck:
    """Continues prompts greedily with two models.

    Args:
        reference, candidate: causal LMs with transformers' `generate`, or `Runtime`s, which go on
            after an end of text. The reference may also be what it has written before: the new
            tokens after each prompt, `Continuation.reference` of an earlier check.
        prompts: token ids of each, BOS included where the model wants one; or what a processor
            returns for each, with images.
        max_new_tokens: of each prompt; a text may end earlier.
        progress: shows how far it is: a function that passes a list on, such as `tqdm`.

    Raises:
        ModelInputError: no prompts, an empty one, no new tokens wanted, or another number of texts
            than of prompts.
    """
    if not prompts or not all(prompts):
        raise ModelInputError(
            "a generation check takes at least one prompt, each of at least one token"
        )
    for model in (reference, candidate):
        if isinstance(model, nn.Module) and not hasattr(model, "generate"):
            raise ModelInputError(
                f"a {type(model).__name__} cannot generate; expected a causal LM of transformers, "
                "or a Runtime"
            )
    if max_new_tokens < 1:
        raise ModelInputError(f"found max_new_tokens of {max_new_tokens}; expected at least 1")
    if not isinstance(reference, nn.Module | Runtime) and len(reference) != len(prompts):
        raise ModelInputError(f"found {len(reference)} texts of {len(prompts)} prompts")
    texts = []
    for place, prompt in enumerate(prompts if progress is None else progress(prompts)):
        if isinstance(reference, nn.Module | Runtime):
            right = _continued(reference, prompt, max_new_tokens)
        else:
            right = tuple(reference[place])
        texts.append(Continuation(right, _continued(candidate, prompt, max_new_tokens)))
    return GenerationCheck(tuple(texts))


def _continued(model: nn.Module | Runtime, prompt: Prompt, max_new_tokens: int) -> tuple[int, ...]:
    place = model.decode if isinstance(model, Runtime) else model
    whole = prompt if isinstance(prompt, Mapping) else {"input_ids": torch.tensor([list(prompt)])}
    given = {name: value.to(next(place.parameters()).device) for name, value in whole.items()}
    if isinstance(model, Runtime):
        return tuple(model.generate(**given, max_new_tokens=max_new_tokens)[0].tolist())
    given = {"attention_mask": torch.ones_like(given["input_ids"]), **given}
    with _unlimited(model):
        made: Tensor = model.generate(  # type: ignore[operator]
            **given,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
        )
    return tuple(made[0, given["input_ids"].shape[1] :].tolist())


@contextmanager
def _unlimited(model: Any) -> Iterator[None]:
    """Without the length that a model's own settings set, which `generate` warns of."""
    own = model.generation_config
    model.generation_config = copy.deepcopy(own)
    model.generation_config.max_length = None
    try:
        yield
    finally:
        model.generation_config = own


@checked(ArgumentError)
def repetition(tokens: Sequence[int]) -> float:
    """The share of runs of four tokens that occurred before, from 0 to 1; 0 for a shorter text."""
    runs = [tuple(tokens[start : start + _RUN]) for start in range(len(tokens) - _RUN + 1)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def is_degenerate(tokens: Sequence[int]) -> bool:
    """Whether a text is empty, or ends in the same few tokens again and again."""
    if not tokens:
        return True
    for period in range(1, _LONGEST_LOOP + 1):
        length = period * _ROUNDS
        tail = tokens[-length:]
        if len(tail) == length and all(tail[i] == tail[i - period] for i in range(period, length)):
            return True
    return False
