"""Questions about photos, from a file of one JSON object a line.

    {"image": "cat.png", "question": "What is it?", "choices": ["a cat", "a dog"], "answer": 0}
    {"image": "cat.png", "question": "What is it?", "answers": ["a cat", "cat"]}

    result = image_questions(model, processor, "photos.jsonl")
    result.accuracy, result.standard_error

With choices the model has answered right where the right choice is the likeliest: the sum of its
tokens' log-likelihoods after the question, as lm-eval's `acc` counts it. Without, it writes an
answer, greedily, which is right where it equals one of those given but for case, white space and a
full stop at its end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trace_model.annotations import checked
from wrappers.errors import ArgumentError, ModelInputError
from wrappers.evaluate.images import asked, opened

_KEYS = ("image", "images", "question", "choices", "answer", "answers")

Progress = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class ImageQuestion:
    """A question about images.

    Attributes:
        images: paths, or images of Pillow's.
        question: what is asked.
        answers: right ones; with choices one of these.
        choices: what is chosen from; empty where an answer is written.
    """

    images: tuple[Any, ...]
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.images:
            raise ModelInputError("a question names no image: expected image or images")
        if not self.answers or not all(self.answers):
            raise ModelInputError(
                f"the question {self.question!r:.80} has no answer that is a text: expected answer "
                "or answers"
            )
        if self.choices and (len(self.choices) < 2 or self.answers[0] not in self.choices):
            raise ModelInputError(
                f"the question {self.question!r:.80} has the choices {self.choices!r:.120}: "
                f"expected at least two, with the answer {self.answers[0]!r:.80} among them"
            )


@dataclass(frozen=True)
class ImageAnswer:
    """What became of a question.

    Attributes:
        text: what was chosen or written.
        right: whether that is right.
        likelihoods: of each choice the log-likelihood, in nats; empty without choices.
    """

    text: str
    right: bool
    likelihoods: tuple[float, ...] = ()


@dataclass(frozen=True)
class ImageQuestions:
    """What questions about photos have given."""

    answers: tuple[ImageAnswer, ...]

    def __repr__(self) -> str:
        spread = f" ± {self.standard_error:.1%}" if len(self.answers) > 1 else ""
        return f"<ImageQuestions: {self.accuracy:.1%}{spread} of {len(self.answers)} right>"

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return sum(answer.right for answer in self.answers) / len(self.answers)

    @property
    def standard_error(self) -> float:
        """Of the accuracy, over the luck in drawing questions; not a number for a single one."""
        count = len(self.answers)
        if count < 2:
            return math.nan
        return math.sqrt(self.accuracy * (1 - self.accuracy) / (count - 1))


@checked(ArgumentError)
def read_questions(file: str | Path) -> list[ImageQuestion]:
    """The questions of a file, with their images checked to be there.

    Raises:
        ModelInputError: it cannot be read, or a line is no question.
    """
    path = Path(file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ModelInputError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelInputError(f"{file} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            question = _question(json.loads(line), path.parent)
        except (ValueError, ModelInputError) as error:
            raise ModelInputError(f"{file}, line {number}: {error}") from error
        found.append(question)
    if not found:
        raise ModelInputError(f"{file} holds no questions")
    return found


@checked(ArgumentError, but=("questions",))
@torch.no_grad()
def image_questions(
    model: nn.Module,
    processor: Any,
    questions: str | Path | Sequence[ImageQuestion],
    *,
    limit: int | None = None,
    max_pixels: int | None = None,
    max_new_tokens: int = 16,
    progress: Progress | None = None,
) -> ImageQuestions:
    """Asks a model questions about photos.

    Args:
        model: takes images, such as a Qwen3-VL: float, wrapped or quantised, with `generate` for
            questions without choices.
        processor: its own.
        questions: a file, or what `read_questions` makes of one.
        limit: how many are asked, at most.
        max_pixels: larger photos are shrunk to.
        max_new_tokens: of an answer that is written.
        progress: shows how far it is: a function that passes a list on, such as `tqdm`.

    Raises:
        ModelInputError: questions that cannot be read, a limit or number of tokens below 1.
        MissingExtraError: Pillow is not installed.
    """
    for name, value in (("limit", limit), ("max_new_tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise ModelInputError(f"found {name} {value}; expected at least 1")
    read = read_questions(questions) if isinstance(questions, str | Path) else questions
    read = list(read)[:limit]
    if not read:
        raise ModelInputError("found no questions")
    answers = []
    for item in read if progress is None else progress(read):
        images = [opened(image, Path()) for image in item.images]
        made = asked(processor, item.question, images, max_pixels=max_pixels)
        inputs = _on_device(made, model)
        if item.choices:
            answers.append(_chosen(model, processor, inputs, item))
        else:
            answers.append(_written(model, processor, inputs, item, max_new_tokens))
    return ImageQuestions(tuple(answers))


def _question(given: Any, folder: Path) -> ImageQuestion:
    if not isinstance(given, Mapping):
        raise ModelInputError(f"found {given!r:.80}; expected an object with {', '.join(_KEYS)}")
    unknown = [key for key in given if key not in _KEYS]
    if unknown:
        raise ModelInputError(f"unknown key {unknown[0]!r}; expected {', '.join(_KEYS)}")
    images = _texts(given, "images") or _texts(given, "image")
    choices = _texts(given, "choices")
    answer = given.get("answer")
    if type(answer) is int and choices:
        if not 0 <= answer < len(choices):
            raise ModelInputError(
                f"the answer is choice {answer}; expected from 0 to {len(choices) - 1}"
            )
        answers: tuple[str, ...] = (choices[answer],)
    else:
        answers = _texts(given, "answers") or _texts(given, "answer")
    if not isinstance(given.get("question"), str):
        raise ModelInputError(f"found the question {given.get('question')!r:.80}; expected a text")
    paths = [folder / Path(image).expanduser() for image in images]
    for path in paths:
        if not path.is_file():
            raise ModelInputError(f"there is no image {path}")
    return ImageQuestion(tuple(paths), given["question"], answers, choices)


def _texts(given: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = given.get(key, [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ModelInputError(f"{key} is {value!r:.80}; expected a text, or a list of texts")
    return tuple(texts)


def _on_device(inputs: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Inputs in the model's dtype where they are pixels, and on its device."""
    parameter = next(model.parameters())
    return {
        name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }


def _chosen(
    model: nn.Module, processor: Any, inputs: dict[str, Tensor], item: ImageQuestion
) -> ImageAnswer:
    found = tuple(_likelihood(model, processor, inputs, choice) for choice in item.choices)
    text = item.choices[max(range(len(found)), key=found.__getitem__)]
    return ImageAnswer(text, text == item.answers[0], found)


def _likelihood(model: nn.Module, processor: Any, inputs: dict[str, Tensor], choice: str) -> float:
    """The log-likelihood of a text after the question, in nats."""
    ids = processor.tokenizer(choice, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ModelInputError(f"the choice {choice!r} has no tokens")
    added = torch.tensor([ids], device=inputs["input_ids"].device)  # [1, tokens]
    whole = inputs | {"input_ids": torch.cat((inputs["input_ids"], added), dim=1)}
    for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            tail = torch.full_like(added, fill, dtype=inputs[name].dtype)
            whole[name] = torch.cat((inputs[name], tail), dim=1)
    logits = model(**whole, use_cache=False).logits[0, -len(ids) - 1 : -1]
    return float(logits.double().log_softmax(-1).gather(1, added[0, :, None]).sum())


def _written(
    model: Any, processor: Any, inputs: dict[str, Tensor], item: ImageQuestion, tokens: int
) -> ImageAnswer:
    if not hasattr(model, "generate"):
        raise ModelInputError(
            f"a {type(model).__name__} writes no answers; give questions with choices"
        )
    made: Tensor = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, num_beams=1)
    new = made[0, inputs["input_ids"].shape[1] :]
    text = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    return ImageAnswer(text, _plain(text) in map(_plain, item.answers))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")
