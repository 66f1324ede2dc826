"""Inputs for a model: made from a text, drawn at random or given, and checked before they are used.

>>> made, description = from_text(model, None, Request(batch=2))
>>> made["input_ids"].shape, description
(torch.Size([2, 32]), '32 random tokens (seed 0), a batch of 2 with lengths 32, 24, ...')
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tracer.choices import PADDING_SIDES
from tracer.errors import InputError, ModelLoadError, UsageError, near_names
from tracer.values import dtype_name
from tracer.words import brief, listed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_PROMPT = (
    "Once upon a time there was a small house by the sea, and in it lived a girl who counted the "
    "waves every morning before breakfast."
)

_RANDOM_LENGTH = 32
_IMAGE_AND_TEXT_LENGTH = 84

Made = tuple[dict[str, torch.Tensor], str]


@dataclass(frozen=True)
class Request:
    """What is asked of inputs that are made.

    Args:
        prompt: the text; None for a default one, or random tokens without a tokenizer.
        sequence_length: tokens in the longest sequence; None for what comes of the text.
        batch: number of sequences. Beyond 1 they have different lengths and are padded.
        padding: the side that is padded, "right" or "left".
        seed: for what is random.

    Raises:
        UsageError: a number below 1, or another padding side.
    """

    prompt: str | None = None
    sequence_length: int | None = None
    batch: int = 1
    padding: str = "right"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.padding not in PADDING_SIDES:
            raise UsageError(f"padding {self.padding!r}: expected {' or '.join(PADDING_SIDES)}")
        for option, number in (
            ("sequence length", self.sequence_length),
            ("batch", self.batch),
        ):
            if number is not None and number < 1:
                raise UsageError(f"{option} {number}: expected at least 1")

    def lengths(self, longest: int) -> list[int]:
        """Lengths of the batch's sequences, longest first, different where there is room."""
        shorter = (max(i, i * longest // (2 * self.batch)) for i in range(1, self.batch))
        return [longest, *(max(1, longest - cut) for cut in shorter)]


def from_text(
    model: nn.Module, tokenizer: "PreTrainedTokenizerBase | None", request: Request
) -> Made:
    """Token ids and their attention mask, [batch, sequence] each, and a description.

    A text is repeated or cut to the length asked for. Without a tokenizer the tokens are random.

    Raises:
        UsageError: a prompt without a tokenizer.
        InputError: the prompt gives no tokens, or the model takes something else than tokens.
    """
    main = str(getattr(model, "main_input_name", "input_ids"))
    if main != "input_ids":
        raise InputError(
            f"{type(model).__name__} takes {main!r}, which is not made from text: give its inputs "
            "with --inputs FILE.safetensors"
        )
    if tokenizer is None:
        if request.prompt is not None:
            raise UsageError(
                "a prompt needs a tokenizer, and this model comes without: give --sequence-length "
                "for random tokens, or --inputs FILE.safetensors"
            )
        length = request.sequence_length or _RANDOM_LENGTH
        drawn = random_tokens(model, (request.batch, length), request.seed).tolist()
        rows = [row[:n] for row, n in zip(drawn, request.lengths(length), strict=True)]
        what = f"random tokens (seed {request.seed})"
    else:
        text = DEFAULT_PROMPT if request.prompt is None else request.prompt
        ids = encode(tokenizer, text)
        if not ids:
            raise InputError(f"the prompt {text!r} gives no tokens: expected a text of some length")
        length = request.sequence_length or len(ids)
        rows = [_rotated(ids, 5 * i, n) for i, n in enumerate(request.lengths(length))]
        what = "tokens of the default prompt" if request.prompt is None else "tokens of the prompt"
    made = _padded(rows, request.padding, _padding_id(model, tokenizer))
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        made["decoder_input_ids"] = made["input_ids"].clone()
    return made, f"{length} {what}{_batch_in_words(rows, request)}"


def image_and_text(model: nn.Module, request: Request) -> Made:
    """Inputs of a Qwen3-VL: in each sequence one synthetic image between random text tokens.

    Raises:
        UsageError: a prompt, for which there is no tokenizer, or a sequence too short.
    """
    if request.prompt is not None:
        raise UsageError("tiny-qwen3-vl has no tokenizer for a prompt: give --sequence-length")
    config: Any = model.config
    vision = config.vision_config
    length = request.sequence_length or _IMAGE_AND_TEXT_LENGTH
    # The image is a square of side x side tokens, with at least 8 tokens of text around it if
    # there is room; its start and end are tokens too.
    side = next((n for n in (8, 6, 4, 2) if n * n + 10 <= length), 1)
    tokens = side * side
    if length < tokens + 3:
        raise UsageError(
            f"sequence length {length}: tiny-qwen3-vl needs at least 4 tokens, for an image of one "
            "token between its start and its end, and one of text"
        )
    image = [
        config.vision_start_token_id,
        *[config.image_token_id] * tokens,
        config.vision_end_token_id,
    ]
    generator = torch.Generator().manual_seed(request.seed)
    first_special = min(config.image_token_id, config.video_token_id)
    rows = []
    for n in request.lengths(length - len(image)):
        text = torch.randint(1, first_special, (n,), generator=generator).tolist()
        before = min(4, n - 1)
        rows.append([*text[:before], *image, *text[before:]])
    made = _padded(rows, request.padding, _padding_id(model, None))
    made["mm_token_type_ids"] = (made["input_ids"] == config.image_token_id).int()
    grid = side * vision.spatial_merge_size
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    # [images * patches, channels * frames * height * width], from -1 to 1 as a processor gives it
    patches = torch.rand(request.batch * grid * grid, width, generator=generator) * 2 - 1
    made["pixel_values"] = patches
    made["image_grid_thw"] = torch.tensor([[1, grid, grid]] * request.batch)
    description = (
        f"{length} tokens, {tokens} of them a synthetic image of {grid} x {grid} patches "
        f"(seed {request.seed}){_batch_in_words(rows, request)}"
    )
    return made, description


def read(path: str | Path) -> dict[str, torch.Tensor]:
    """Keyword arguments from a safetensors file.

    Raises:
        ModelLoadError: there is no such file, or it cannot be read.
        InputError: it holds no tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(path).expanduser()
    if not file.is_file():
        raise ModelLoadError(f"{path}: there is no such file of inputs")
    try:
        tensors: dict[str, torch.Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(
            f"{path}: not a safetensors file that can be read ({brief(error)}); write one with "
            "safetensors.torch.save_file({'input_ids': ...}, path)"
        ) from error
    if not tensors:
        raise InputError(f"{path} holds no tensors: expected input_ids or the like")
    return tensors


def check(model: nn.Module, inputs: Mapping[str, torch.Tensor], name: str) -> None:
    """Checks that keyword arguments fit a transformers model, before anything is computed.

    Raises:
        InputError: unknown or missing names, empty tensors, token ids of another dtype or beyond
            the vocabulary, a sequence longer than the model's positions, shapes at odds.
    """
    known = [
        parameter.name
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    for key, tensor in inputs.items():
        if key not in known:
            raise InputError(
                f"{name} takes no input {key!r}; it takes {listed(known)}{near_names(key, known)}"
            )
        if tensor.numel() == 0:
            raise InputError(f"{key} is empty, of shape {list(tensor.shape)}: nothing to compute")
    main = str(getattr(model, "main_input_name", "input_ids"))
    if main not in inputs and "inputs_embeds" not in inputs:
        raise InputError(f"the inputs lack {main!r}, which {name} needs; found {listed([*inputs])}")
    if "input_ids" in inputs:
        _check_ids(model, inputs["input_ids"], name)
    sequence = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if sequence is not None:
        _check_length(model, sequence, inputs.get("attention_mask"), name)


def vocabulary(model: nn.Module) -> int:
    """How many tokens a transformers model knows."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def random_tokens(model: nn.Module, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Random token ids of the model's vocabulary, int64 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary(model), shape, generator=generator)


def encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The tokens of a text."""
    # `verbose` would warn of texts beyond the model's length, which are cut or refused here.
    return [int(token) for token in tokenizer(text, verbose=False)["input_ids"]]


def _rotated(ids: Sequence[int], shift: int, length: int) -> list[int]:
    """A text's tokens, repeated as needed, from another place on for each row of a batch.

    The first token stays: it may be the one that every text begins with.
    """
    rest = ids[1:]
    if not rest:
        return [ids[0]] * length
    return [ids[0], *(rest[(shift + i) % len(rest)] for i in range(length - 1))]


def _padded(rows: Sequence[Sequence[int]], padding: str, pad: int) -> dict[str, torch.Tensor]:
    """Token ids and attention mask, [batch, longest], int64."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        span = slice(0, len(row)) if padding == "right" else slice(longest - len(row), longest)
        ids[index, span] = torch.tensor(row)
        mask[index, span] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _padding_id(model: nn.Module, tokenizer: "PreTrainedTokenizerBase | None") -> int:
    for owner in (tokenizer, _text_config(model)):
        known = getattr(owner, "pad_token_id", None)
        if isinstance(known, int) and 0 <= known < vocabulary(model):
            return known
    return 0


def _batch_in_words(rows: Sequence[Sequence[int]], request: Request) -> str:
    if len(rows) == 1:
        return ""
    lengths = listed([str(len(row)) for row in rows])
    return f", a batch of {len(rows)} with lengths {lengths}, padded on the {request.padding}"


def _check_ids(model: nn.Module, ids: torch.Tensor, name: str) -> None:
    if ids.dtype not in (torch.int64, torch.int32):
        raise InputError(f"input_ids is {dtype_name(ids.dtype)}: expected token ids as int64")
    if ids.dim() != 2:
        raise InputError(f"input_ids has shape {list(ids.shape)}: expected [batch, sequence]")
    known = vocabulary(model)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= known:
        raise InputError(
            f"input_ids holds {low if low < 0 else high}: {name} has a vocabulary of {known}, so "
            f"ids from 0 to {known - 1}"
        )


def _check_length(
    model: nn.Module, sequence: torch.Tensor, mask: torch.Tensor | None, name: str
) -> None:
    positions = getattr(_text_config(model), "max_position_embeddings", None)
    if positions is not None and sequence.shape[1] > positions:
        raise InputError(
            f"a sequence of {sequence.shape[1]} tokens: {name} has {positions} positions; give a "
            "shorter text, or --sequence-length"
        )
    if mask is not None and mask.dim() == 2 and mask.shape != sequence.shape[:2]:
        raise InputError(
            f"attention_mask has shape {list(mask.shape)}, and the tokens "
            f"{list(sequence.shape[:2])}: expected the same [batch, sequence]"
        )


def _text_config(model: nn.Module) -> Any:
    return model.config.get_text_config()  # type: ignore[operator, union-attr]
