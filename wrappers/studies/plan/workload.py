"""What the trials of a study run on: a model, a text to score, a text to calibrate on.

A workload is a description that travels to other processes and machines; each loads it once.
"""

from __future__ import annotations

import functools
import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wrappers.deploy.folders import add_tensors
from wrappers.errors import ModelInputError, StudyError
from wrappers.evaluate import check_tasks, documents, positions_of

# Where no text is given a model writes this many documents itself to be scored, more where its
# window is short and fewer where that would make them shorter than this many tokens; and to
# calibrate on twice as many tokens, at least so many.
_WRITTEN, _SHORTEST = 32, 128
_TO_CALIBRATE = 4096
_PHRASE = 16  # tokens in a row: text that says them again is no further text


@dataclass(frozen=True)
class Workload:
    """The model and data of a study.

    Attributes:
        model: a folder, a hub id, or a built-in model.
        text: the file that is scored; None for texts that the float model writes itself, seeded:
            what they lose is how far the quantised model is from the float one.
        calibration_text: the file that calibration sets are drawn from; None for what `text` has
            after the scored tokens.
        separator: what stands between the documents of these files.
        tokens: how many tokens are scored, at most; whole documents are.
        window: tokens of a window, BOS included; None for as many positions as the model has.
        calibration_length: tokens of a calibration sequence, BOS included.
        prompts, new_tokens: of the generation check: how many, and how long they are continued.
        tasks: names or files of lm-eval's tasks.
        task_data: the folder that the data paths of task files start from.
        task_limit: examples of each task, at most.
        checksum: of the model's parameters and the texts, in hexadecimal; see
            `LoadedWorkload.checksum`. Where it is given, what is loaded is checked against it.

    Raises:
        StudyError: a value of another type, or out of range.
    """

    model: str
    text: str | None = None
    calibration_text: str | None = None
    separator: str | None = None
    tokens: int = 4096
    window: int | None = None
    calibration_length: int = 128
    prompts: int = 4
    new_tokens: int = 32
    tasks: tuple[str, ...] = ()
    task_data: str | None = None
    task_limit: int | None = None
    checksum: str = ""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            is_left_out = value is None and name in _OPTIONAL
            if not is_left_out and (type(value) is not int or value < least):
                raise StudyError(f"found {name} {value!r}; expected a whole number from {least} up")
        for name in _TEXTS:
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name in _OPTIONAL):
                raise StudyError(f"found {name} {value!r}; expected a text")
        if self.separator == "":
            raise StudyError("found an empty separator of documents; expected a text")
        tasks: Any = self.tasks  # a list where it comes from a file
        if not isinstance(tasks, list | tuple) or not all(isinstance(t, str) for t in tasks):
            raise StudyError(f"found tasks {tasks!r}; expected a list of names and files")
        object.__setattr__(self, "tasks", tuple(tasks))


_LEAST = {
    "tokens": 1, "window": 2, "calibration_length": 2, "prompts": 0, "new_tokens": 0,
    "task_limit": 1,
}  # fmt: skip
_TEXTS = ("model", "text", "calibration_text", "separator", "task_data", "checksum")
_OPTIONAL = ("window", "task_limit", "text", "calibration_text", "separator", "task_data")


@dataclass(frozen=True)
class LoadedWorkload:
    """A workload in memory.

    Attributes:
        model: the float model, in evaluation mode, with eager attention.
        tokenizer: its tokenizer.
        bos: begins each sequence; None for a model without such a token.
        texts: token ids of the documents that are scored.
        calibration: token ids that calibration sets are drawn from.
        prompts: token ids of the generation check's prompts, BOS included: beginnings of parts of
            the texts that are scored, which nothing is calibrated on.
    """

    workload: Workload
    model: nn.Module
    tokenizer: Any
    bos: int | None
    texts: Sequence[Sequence[int]]
    calibration: Sequence[int]
    prompts: Sequence[Sequence[int]]

    def calibration_set(self, seed: int, size: int) -> list[list[int]]:
        """`size` sequences drawn from the calibration text, BOS included."""
        head = [] if self.bos is None else [self.bos]
        length = self.workload.calibration_length - len(head)
        draw = random.Random(seed)
        starts = [draw.randrange(len(self.calibration) - length + 1) for _ in range(size)]
        return [[*head, *self.calibration[start : start + length]] for start in starts]

    def check_sets(self, count: int, size: int) -> None:
        """Checks that there is text enough for sets that differ.

        Args:
            count: how many sets are drawn.
            size: sequences of each.

        Raises:
            StudyError: the text without its repetitions is shorter than all sets together.
        """
        length = self.workload.calibration_length - (self.bos is not None)
        needed = count * size * length
        there = _different(self.calibration, min(_PHRASE, length), needed)
        if there >= needed:
            return
        again = len(self.calibration) - there
        raise StudyError(
            f"found {there} tokens to calibrate on{f' ({again} more repeat them)' if again else ''}"
            f", {there // length} sequences of {length}; expected {needed}, {count * size} "
            f"sequences for {count} calibration set{'s' * (count > 1)} of {size}, as sets of the "
            "same text say nothing of the luck in drawing them: give more text to calibrate on, "
            "or fewer or smaller sets"
        )

    @functools.cached_property
    def checksum(self) -> str:
        """SHA-256 of parameters and texts: what a result depends on besides the settings."""
        digest = hashlib.sha256()
        add_tensors(digest, self.model)
        digest.update(repr((self.bos, self.texts, self.calibration, self.prompts)).encode())
        return digest.hexdigest()


Loaded = LoadedWorkload
"""The former name."""


def load(workload: Workload) -> LoadedWorkload:
    """Loads a workload, once in each process.

    Raises:
        StudyError: a text is missing or too short, the model has no tokenizer or fewer positions
            than are asked for, or the contents have another checksum than the workload's.
        ModelInputError, MissingExtraError: as for `wrappers.evaluate.check_tasks`.
    """
    found = _load(replace(workload, checksum=""))
    if workload.checksum not in ("", found.checksum):
        raise StudyError(
            f"{workload.model} or a text has other contents here than where the study was begun: "
            "give the same files, or another file of results"
        )
    return found


@functools.lru_cache(maxsize=1)
def _load(workload: Workload) -> LoadedWorkload:
    if workload.tasks:
        check_tasks(workload.tasks, data=workload.task_data)
    import tracer

    found = tracer.models.load(workload.model, attn_implementation="eager", dtype="float32")
    if found.tokenizer is None:
        raise StudyError(
            f"{workload.model} has no tokenizer, and a study scores texts: give a model with one"
        )
    _check_positions(found.model, workload)
    bos = found.tokenizer.bos_token_id
    if workload.text is None:
        scored, rest = _written(found.model, bos, workload)
    else:
        scored, rest = _first(_documents(workload.text, found.tokenizer, workload), workload.tokens)
    if workload.calibration_text is not None:
        rest = _documents(workload.calibration_text, found.tokenizer, workload)
    calibration = [token for ids in rest for token in ids]
    if len(calibration) < workload.calibration_length:
        rest_of = workload.text or "what the model writes itself"
        where = workload.calibration_text or f"the rest of {rest_of}"
        raise StudyError(
            f"{where} has {len(calibration)} tokens to calibrate on; expected at least "
            f"{workload.calibration_length}: give a calibration text, or score fewer tokens"
        )
    prompts = _prompts([token for ids in scored for token in ids], bos, workload.prompts)
    return LoadedWorkload(workload, found.model, found.tokenizer, bos, scored, calibration, prompts)


def batches(sequences: Sequence[Sequence[int]], size: int) -> list[dict[str, Tensor]]:
    """Sequences of one length as a model takes them, `size` at a time."""
    return [
        {"input_ids": torch.tensor([list(ids) for ids in sequences[start : start + size]])}
        for start in range(0, len(sequences), size)
    ]


def _check_positions(model: nn.Module, workload: Workload) -> None:
    most = positions_of(model)
    if most is None and workload.window is None:
        raise StudyError(f"{workload.model} does not say how many positions it has: give a window")
    for name in ("window", "calibration_length"):
        wanted = getattr(workload, name)
        if None not in (most, wanted) and wanted > most:
            raise StudyError(
                f"found {name} {wanted} for a model of {most} positions; expected no more"
            )


def _documents(file: str, tokenizer: Any, workload: Workload) -> list[list[int]]:
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"cannot read the text {file}: {error}") from error
    try:
        return documents(text, tokenizer, separator=workload.separator)
    except ModelInputError as error:
        raise StudyError(f"{file}: {error}") from error


def _different(ids: Sequence[int], phrase: int, most: int) -> int:
    """How many tokens there are without repetitions of phrases; counted up to `most`."""
    seen = set()
    for start in range(len(ids) - phrase + 1):
        seen.add(tuple(ids[start : start + phrase]))
        if len(seen) + phrase - 1 >= most:
            break
    return len(seen) + phrase - 1 if seen else 0


def _first(texts: list[list[int]], most: int) -> tuple[list[list[int]], list[list[int]]]:
    """The documents of the first tokens, and the others; a document alone is divided."""
    if len(texts) == 1:
        return [texts[0][:most]], [texts[0][most:]]
    count, taken = 0, 0
    while taken < len(texts) and (taken == 0 or count + len(texts[taken]) <= most):
        count += len(texts[taken])
        taken += 1
    return texts[:taken], texts[taken:]


@torch.no_grad()
def _written(
    model: nn.Module, bos: int | None, workload: Workload
) -> tuple[list[list[int]], list[list[int]]]:
    """Documents that the model has written, sampled with a seed: to be scored, to calibrate on."""
    if bos is None:
        raise StudyError(
            f"{workload.model} has no token to begin a text with: give a text to score"
        )
    most = workload.window or positions_of(model)
    assert most is not None  # it has been checked
    length = min(most - 1, max(_SHORTEST, workload.tokens // _WRITTEN))
    scored, rest = (
        math.ceil(tokens / length)
        for tokens in (workload.tokens, max(2 * workload.tokens, _TO_CALIBRATE))
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        start = torch.full((scored + rest, 1), bos)
        made = model.generate(  # type: ignore[operator]
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            top_k=0,
            max_new_tokens=length,
            eos_token_id=None,
        )
    finally:
        torch.random.set_rng_state(state)
    texts = [list(row) for row in made[:, 1:].tolist()]
    return texts[:scored], texts[scored:]


def _prompts(scored: Sequence[int], bos: int | None, count: int) -> list[list[int]]:
    """The beginnings of evenly spaced parts of the scored texts."""
    head = [] if bos is None else [bos]
    length = 16 - len(head)
    step = max(1, (len(scored) - length) // max(1, count))
    return [[*head, *scored[at * step : at * step + length]] for at in range(count)]
