"""Data to calibrate a quantised candidate on: a model's own inputs, and others like them.

Random tokens are a text that a trained model never meets. So where no text is given, a model that
writes any makes its own, which serves as a text of its kind does. Perplexity in uint8, of three
seeds (stories260K: 1,804 tokens; tiny-llama: its held-out stories):

    model          float    its own text      a text    random tokens
    stories260K     3.55    3.70 to 3.74        3.77     3.81 to 3.85
    tiny-llama     10.98   11.37 to 11.46      11.46    11.28 to 11.32
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trace_model.annotations import checked
from tracer.choices import DEFAULT_CALIBRATE
from tracer.errors import UsageError
from tracer.execution.limits import user_path
from tracer.models.inputs.images import QUESTIONS, crop, from_images, open_image
from tracer.models.inputs.synthetic import image_and_text
from tracer.models.inputs.text import InputSpec, random_tokens, tokenize
from tracer.models.loading import Loaded
from tracer.text import brief, listed

if TYPE_CHECKING:
    from tracer.models.inputs.processors import Processor

_PASSAGE = 24  # words of a text that go with an image


@dataclass(frozen=True)
class Calibration:
    """What a quantised candidate is calibrated on, and the same in words."""

    batches: tuple[dict[str, torch.Tensor], ...]
    description: str


@checked(UsageError)
def calibration(
    loaded: Loaded,
    *,
    count: int = DEFAULT_CALIBRATE,
    text: str | Path | None = None,
    seed: int = 0,
) -> Calibration:
    """Makes data to calibrate on: the model's own inputs, and others of their kind.

    To tokens come sequences of the same length; to photos, random parts of them with other
    questions; to synthetic images, others. Given inputs that are more than tokens stay alone.

    Args:
        count: how many to add.
        text: a text file; its tokens are cut into sequences, of which the first are taken, or its
            words into passages to go with photos. None for what the model writes itself, drawn
            token by token, for random tokens if it does not write or has no tokenizer, or for
            questions about a photo.
        seed: for what is random.

    Raises:
        UsageError: a negative count; a text that cannot be read, holds too little, or does not
            go with the model; or no text, and a model that cannot write any for its logits.
    """
    if count < 0:
        raise UsageError(f"calibrate {count}: expected a number of sequences, at least 0")
    own, request = loaded.inputs, loaded.request
    file = None if text is None else Path(text)
    if loaded.processor is not None and request is not None and request.images:
        made, source = _of_photos(loaded.processor, request, count, file, seed)
    elif "input_ids" in own and not set(own) - {"input_ids", "attention_mask"}:
        made, source = _of_tokens(loaded, count, file, seed)
    elif file is not None:
        raise UsageError(f"{loaded.name} takes {listed([*own])}: text alone cannot calibrate it")
    elif request is not None and "pixel_values" in own:
        made = [
            image_and_text(loaded.model, replace(request, seed=seed + 1 + i))[0]
            for i in range(count)
        ]
        source = f"{count} like them with other random tokens and pixels (seed {seed})"
    else:
        made, source = [], ""
    device = next(iter(own.values())).device
    batches = [{key: tensor.to(device) for key, tensor in batch.items()} for batch in made]
    added = f" and {source}" if batches else ""
    return Calibration((own, *batches), f"the inputs themselves{added}")


def _of_tokens(
    loaded: Loaded, count: int, file: Path | None, seed: int
) -> tuple[list[dict[str, torch.Tensor]], str]:
    length = loaded.inputs["input_ids"].shape[1]
    if file is not None:
        sequences = _windows(loaded, file, length)[:count]
        source = f"the first {len(sequences)} sequences of {length} tokens of {file}"
    elif _writes(loaded) and count:
        sequences = _written(loaded, count, length, seed)[:, None]
        source = f"{count} sequences of {length} tokens that the model wrote (seed {seed})"
    else:
        # Another seed than that of random inputs, or the first sequence would be the inputs again.
        sequences = random_tokens(loaded.model, (count, 1, length), seed + 1)
        source = f"{count} random sequences of {length} tokens (seed {seed})"
    batches = [
        {"input_ids": sequence, "attention_mask": torch.ones_like(sequence)}
        for sequence in sequences
    ]
    return batches, source


def _writes(loaded: Loaded) -> bool:
    """Whether the model is one that continues a text."""
    can_generate = getattr(loaded.model, "can_generate", None)
    return loaded.tokenizer is not None and can_generate is not None and bool(can_generate())


@torch.no_grad()
def _written(loaded: Loaded, count: int, length: int, seed: int) -> torch.Tensor:
    """Texts that a model makes up after the token that its inputs begin with, [count, length]."""
    model = loaded.model
    own: torch.Tensor = loaded.inputs["input_ids"]
    mask = loaded.inputs.get("attention_mask", torch.ones_like(own))
    first = own[0, int(mask[0].long().argmax())]
    generator = torch.Generator(own.device).manual_seed(seed)
    ids = first.expand(count, 1)
    cache: dict[str, Any] = {}
    while ids.shape[1] < length:
        output = model(input_ids=ids[:, -1:] if cache else ids, use_cache=True, **cache)
        if getattr(output, "past_key_values", None) is not None:
            cache = {"past_key_values": output.past_key_values}
        likely = output.logits[:, -1].float().softmax(-1)  # [count, vocabulary]
        if not likely.isfinite().all():
            raise UsageError(
                f"{loaded.name} computes logits that are not finite, so it cannot write a text to "
                "be calibrated on: give one with --calibration-text FILE"
            )
        ids = torch.cat([ids, torch.multinomial(likely, 1, generator=generator)], dim=1)
    return ids


def _of_photos(
    processor: "Processor", request: InputSpec, count: int, file: Path | None, seed: int
) -> tuple[list[dict[str, torch.Tensor]], str]:
    prompts = list(QUESTIONS) if file is None else _passages(file)
    generator = torch.Generator().manual_seed(seed)
    images = [open_image(path) for path in request.images]
    batches = []
    for i in range(count):
        asked = replace(request, prompt=prompts[i % len(prompts)])
        parts = [crop(image, generator) for image in images]
        batches.append(from_images(processor, asked, parts)[0])
    texts = "other questions" if file is None else f"passages of {file}"
    return batches, f"{count} like them with random parts of the images and {texts} (seed {seed})"


def _passages(file: Path) -> list[str]:
    """A text in pieces of some words."""
    words = _read(file).split()
    if not words:
        raise UsageError(f"the calibration text {file} has no words: expected a text")
    return [" ".join(words[i : i + _PASSAGE]) for i in range(0, len(words), _PASSAGE)]


def _windows(loaded: Loaded, file: Path, length: int) -> torch.Tensor:
    """The tokens of a text file in pieces of one length, [pieces, 1, length]."""
    if loaded.tokenizer is None:
        raise UsageError(
            f"{loaded.name} has no tokenizer, so the text {file} cannot calibrate it; without a "
            "text, random tokens are used"
        )
    ids = tokenize(loaded.tokenizer, _read(file))
    if len(ids) < length:
        raise UsageError(
            f"the calibration text {file} has {len(ids)} tokens: one sequence takes {length}"
        )
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, 1, length)


def _read(file: Path) -> str:
    try:
        return user_path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the calibration text {file} cannot be read: {brief(error)}") from error
