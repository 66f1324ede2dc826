"""What the trials of a study run on: a model, a text to score, a text to calibrate on.

Of a model that takes images each sequence may begin with some, and the text then goes on after
them. A calibration set has images of its own: random parts of the photos, or other pixels.

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
from wrappers.evaluate import Opening, check_tasks, documents, positions_of
from wrappers.evaluate.opening import Beginning, head_of, with_images

# Where no text is given a model writes this many documents itself to be scored, more where its
# window is short and fewer where that would make them shorter than this many tokens; and to
# calibrate on twice as many tokens, at least so many.
_WRITTEN, _SHORTEST = 32, 128
_TO_CALIBRATE = 4096
_PHRASE = 16  # tokens in a row: text that says them again is no further text
SYNTHETIC = "synthetic"
"""Instead of the files of images: random pixels, which need no processor."""


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
        images: files of photos that each sequence begins with; or "synthetic".
        processor: the folder or hub id of what prepares them; the model's own by default.
        tokens: how many tokens are scored, at most; whole documents are.
        window: tokens of a window, BOS included; None for as many positions as the model has.
        calibration_length: tokens of a calibration sequence, BOS or images included.
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
    images: tuple[str, ...] = ()
    processor: str | None = None
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
        for name, what in (("tasks", "names and files"), ("images", "files")):
            named: Any = getattr(self, name)  # a list where it comes from a file
            if not isinstance(named, list | tuple) or not all(isinstance(n, str) for n in named):
                raise StudyError(f"found {name} {named!r}; expected a list of {what}")
            object.__setattr__(self, name, tuple(named))
        if SYNTHETIC in self.images and len(self.images) > 1:
            raise StudyError(f"found images {self.images!r}; expected files, or {SYNTHETIC} alone")


_LEAST = {
    "tokens": 1, "window": 2, "calibration_length": 2, "prompts": 0, "new_tokens": 0,
    "task_limit": 1,
}  # fmt: skip
_TEXTS = (
    "model", "text", "calibration_text", "separator", "processor", "task_data", "checksum",
)  # fmt: skip
_OPTIONAL = (
    "window", "task_limit", "text", "calibration_text", "separator", "processor", "task_data",
)  # fmt: skip


@dataclass(frozen=True)
class LoadedWorkload:
    """A workload in memory.

    Attributes:
        model: the float model, in evaluation mode, with eager attention.
        tokenizer: its tokenizer; None for one that writes its texts itself and has none.
        bos: begins each sequence: a token, or an `Opening` with images; None for a model without
            such a token.
        texts: token ids of the documents that are scored.
        calibration: token ids that calibration sets are drawn from.
        prompts: token ids of the generation check's prompts, BOS included: beginnings of parts of
            the texts that are scored, which nothing is calibrated on.
        source: as `tracer.models.load` gave it.
    """

    workload: Workload
    model: nn.Module
    tokenizer: Any
    bos: Beginning
    texts: Sequence[Sequence[int]]
    calibration: Sequence[int]
    prompts: Sequence[Sequence[int]]
    source: Any = None

    def calibration_beginning(self, seed: int) -> Beginning:
        """What the sequences of a calibration set begin with: as the others, but other images."""
        if not isinstance(self.bos, Opening):
            return self.bos
        import tracer

        return Opening.of(tracer.models.calibration(self.source, count=1, seed=seed).batches[-1])

    def calibration_set(self, seed: int, size: int) -> list[list[int]]:
        """`size` sequences drawn from the calibration text, BOS or images included."""
        head = head_of(self.calibration_beginning(seed))
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
        length = self.workload.calibration_length - len(head_of(self.bos))
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
        begun: Any = self.bos
        if isinstance(begun, Opening):
            begun = begun.ids, {name: value.tolist() for name, value in begun.pixels.items()}
        digest.update(repr((begun, self.texts, self.calibration, self.prompts)).encode())
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

    found = tracer.models.load(
        workload.model,
        attn_implementation="eager",
        dtype="float32",
        images=() if SYNTHETIC in workload.images else workload.images,
        processor=workload.processor,
    )
    reads = workload.text or workload.calibration_text or workload.tasks
    if found.tokenizer is None and reads:
        raise StudyError(
            f"{workload.model} has no tokenizer for texts: give a model with one, or leave texts "
            "and tasks out, for what it writes itself"
        )
    _check_positions(found.model, workload)
    bos: Beginning = None if found.tokenizer is None else found.tokenizer.bos_token_id
    if workload.images:
        bos = _opening(found, workload)
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
    return LoadedWorkload(
        workload, found.model, found.tokenizer, bos, scored, calibration, prompts, found
    )


def _opening(found: Any, workload: Workload) -> Opening:
    if "pixel_values" not in found.inputs:
        raise StudyError(f"{workload.model} takes no images: leave them out")
    opening = Opening.of(found.inputs)
    if len(opening.ids) >= workload.calibration_length - 1:
        raise StudyError(
            f"the images and what is said of them have {len(opening.ids)} tokens, and a "
            f"calibration sequence {workload.calibration_length}: give a larger calibration length "
            "or smaller images"
        )
    return opening


def batches(
    sequences: Sequence[Sequence[int]], size: int, beginning: Beginning = None
) -> list[dict[str, Tensor]]:
    """Sequences of one length as a model takes them, `size` at a time.

    Args:
        beginning: what they begin with.
    """
    return [
        with_images(torch.tensor([list(ids) for ids in sequences[start : start + size]]), beginning)
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
    model: nn.Module, bos: Beginning, workload: Workload
) -> tuple[list[list[int]], list[list[int]]]:
    """Documents that the model has written, sampled with a seed: to be scored, to calibrate on.

    A model without BOS begins each with a token at random, which belongs to the document.
    """
    most = workload.window or positions_of(model)
    assert most is not None  # it has been checked
    begun = max(1, len(head_of(bos)))
    length = min(most - begun, max(_SHORTEST, workload.tokens // _WRITTEN))
    if length < 1:
        raise StudyError(f"found {most} positions and images of {begun}: no room for a text")
    scored, rest = (
        math.ceil(tokens / length)
        for tokens in (workload.tokens, max(2 * workload.tokens, _TO_CALIBRATE))
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        marks = _marks(model)
        if bos is None:
            known = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
            start = torch.randint(min(marks, default=known), (scored + rest, 1))
        else:
            start = torch.tensor([head_of(bos)] * (scored + rest))
        made = model.generate(  # type: ignore[operator]
            **with_images(start, bos),
            attention_mask=torch.ones_like(start),
            do_sample=True,
            top_k=0,
            max_new_tokens=length,
            eos_token_id=None,
            suppress_tokens=marks or None,
        )
    finally:
        torch.random.set_rng_state(state)
    texts = [list(row) for row in made[:, len(head_of(bos)) :].tolist()]
    return texts[:scored], texts[scored:]


def _marks(model: nn.Module) -> list[int]:
    """The tokens that stand for images and videos or enclose them, which no text holds."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return [number for name in names if (number := getattr(model.config, name, None)) is not None]


def _prompts(scored: Sequence[int], bos: Beginning, count: int) -> list[list[int]]:
    """The beginnings of evenly spaced parts of the scored texts."""
    head = head_of(bos)
    length = 16 if isinstance(bos, Opening) else 16 - len(head)
    step = max(1, (len(scored) - length) // max(1, count))
    return [[*head, *scored[at * step : at * step + length]] for at in range(count)]
