"""Inputs for a model: made from a text, drawn at random or given, and checked before they are used.

>>> made, description = from_text(model, None, InputSpec(batch=2))
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
from tracer.execution.limits import LARGEST_INTEGER, check_memory, is_text, user_path, what_it_is
from tracer.tensors.leaves import dtype_name
from tracer.text import brief, listed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_PROMPT = (
    "Once upon a time there was a small house by the sea, and in it lived a girl who counted the "
    "waves every morning before breakfast."
)

_RANDOM_LENGTH = 32

GeneratedInputs = tuple[dict[str, torch.Tensor], str]


@dataclass(frozen=True)
class InputSpec:
    """What is asked of inputs that are made.

    Args:
        prompt: the text; None for a default one, or random tokens without a tokenizer.
        sequence_length: tokens in the longest sequence; None for what comes of the text.
        batch: number of sequences. Beyond 1 they have different lengths and are padded.
        padding: the side that is padded, "right" or "left".
        seed: for what is random.
        images: files to show with the prompt: all in one sequence; in a batch one in each, or
            the only one in all.
        max_pixels: what larger images are shrunk to.
        frames: frames of a synthetic clip.

    Raises:
        UsageError: a number below 1, another padding side, or what excludes one another.
    """

    prompt: str | None = None
    sequence_length: int | None = None
    batch: int = 1
    padding: str = "right"
    seed: int = 0
    images: tuple[Path, ...] = ()
    max_pixels: int | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        if self.padding not in PADDING_SIDES:
            raise UsageError(f"padding {self.padding!r}: expected {' or '.join(PADDING_SIDES)}")
        for option, number in (
            ("sequence length", self.sequence_length),
            ("batch", self.batch),
            ("max pixels", self.max_pixels),
            ("video", self.frames),
        ):
            if number is not None and number < 1:
                raise UsageError(f"{option} {number}: expected at least 1")
        if not -LARGEST_INTEGER <= self.seed <= LARGEST_INTEGER:
            raise UsageError(f"seed {self.seed}: expected a whole number of 64 bits")
        if self.prompt is not None and not is_text(self.prompt):
            raise UsageError(f"the prompt {self.prompt!r} is no text in UTF-8: encode it so")
        self._check_images()

    def _check_images(self) -> None:
        if not self.images:
            if self.max_pixels is not None:
                raise UsageError("max pixels go with images, and there are none: give --image FILE")
            return
        if self.frames is not None:
            raise UsageError("a synthetic clip does not go with --image: choose one")
        if self.sequence_length is not None:
            raise UsageError(
                "a sequence length does not go with --image: the prompt and the images decide it, "
                "and --max-pixels makes it shorter"
            )
        if self.batch > 1 and len(self.images) not in (1, self.batch):
            raise UsageError(
                f"{len(self.images)} images in a batch of {self.batch}: expected one for each "
                "sequence, or one for all"
            )

    def lengths(self, longest: int) -> list[int]:
        """Lengths of the batch's sequences, longest first, different where there is room."""
        shorter = (max(i, i * longest // (2 * self.batch)) for i in range(1, self.batch))
        return [longest, *(max(1, longest - cut) for cut in shorter)]


def from_text(
    model: nn.Module, tokenizer: "PreTrainedTokenizerBase | None", request: InputSpec
) -> GeneratedInputs:
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
                "for random tokens, --inputs FILE.safetensors, or to a Qwen3-VL a --processor"
            )
        length = request.sequence_length or _RANDOM_LENGTH
        _check_asked(model, length, request)
        drawn = random_tokens(model, (request.batch, length), request.seed).tolist()
        rows = [row[:n] for row, n in zip(drawn, request.lengths(length), strict=True)]
        what = f"random tokens (seed {request.seed})"
    else:
        text = DEFAULT_PROMPT if request.prompt is None else request.prompt
        ids = tokenize(tokenizer, text)
        if not ids:
            raise InputError(f"the prompt {text!r} gives no tokens: expected a text of some length")
        length = request.sequence_length or len(ids)
        _check_asked(model, length, request)
        rows = [_rotated(ids, 5 * i, n) for i, n in enumerate(request.lengths(length))]
        what = "tokens of the default prompt" if request.prompt is None else "tokens of the prompt"
    made = padded(rows, request.padding, padding_id(model, tokenizer))
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        made["decoder_input_ids"] = made["input_ids"].clone()
    return made, f"{length} {what}{batch_in_words([len(row) for row in rows], request)}"


def read(path: str | Path) -> dict[str, torch.Tensor]:
    """Keyword arguments from a safetensors file.

    Raises:
        ModelLoadError: there is no such file, or it cannot be read.
        InputError: it holds no tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = user_path(path)
    if found := what_it_is(file):
        what = (
            "there is no such file of inputs" if found == "nothing" else f"it is {found}, no file"
        )
        raise ModelLoadError(f"{path}: {what}")
    try:
        tensors: dict[str, torch.Tensor] = load_file(file)
    except (SafetensorError, OSError, LookupError, ValueError, RuntimeError) as error:
        raise ModelLoadError(
            f"{path}: not a safetensors file that can be read ({brief(error)}); write one with "
            "safetensors.torch.save_file({'input_ids': ...}, path)"
        ) from error
    if not tensors:
        raise InputError(f"{path} holds no tensors: expected input_ids or the like")
    return tensors


def check(model: nn.Module, inputs: Mapping[str, Any], name: str) -> None:
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
        if isinstance(tensor, torch.Tensor) and tensor.numel() == 0:
            raise InputError(f"{key} is empty, of shape {list(tensor.shape)}: nothing to compute")
    main = str(getattr(model, "main_input_name", "input_ids"))
    if main not in inputs and "inputs_embeds" not in inputs:
        raise InputError(f"the inputs lack {main!r}, which {name} needs; found {listed([*inputs])}")
    if "input_ids" in inputs:
        _check_ids(model, inputs["input_ids"], name)
    sequence = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if sequence is not None:
        _check_length(model, sequence, inputs, name)


def vocabulary(model: nn.Module) -> int:
    """How many tokens a transformers model knows."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def random_tokens(model: nn.Module, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Random token ids of the model's vocabulary, int64 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary(model), shape, generator=generator)


def tokenize(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The tokens of a text."""
    # `verbose` would warn of texts beyond the model's length, which are cut or refused here.
    return [int(token) for token in tokenizer(text, verbose=False)["input_ids"]]


def padded(rows: Sequence[Sequence[int]], padding: str, pad: int) -> dict[str, torch.Tensor]:
    """Token ids and attention mask, [batch, longest], int64."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        span = slice(0, len(row)) if padding == "right" else slice(longest - len(row), longest)
        ids[index, span] = torch.tensor(row)
        mask[index, span] = 1
    return {"input_ids": ids, "attention_mask": mask}


def padding_id(model: nn.Module, tokenizer: "PreTrainedTokenizerBase | None" = None) -> int:
    """The token that stands at padded positions: the tokenizer's, else the model's, else 0."""
    for owner in (tokenizer, _text_config(model)):
        known = getattr(owner, "pad_token_id", None)
        if isinstance(known, int) and 0 <= known < vocabulary(model):
            return known
    return 0


def batch_in_words(lengths: Sequence[int], request: InputSpec) -> str:
    """How a batch's sequences differ, as a clause; nothing for a batch of one."""
    if len(lengths) == 1:
        return ""
    each = listed([str(length) for length in lengths])
    return f", a batch of {len(lengths)} with lengths {each}, padded on the {request.padding}"


def _rotated(ids: Sequence[int], shift: int, length: int) -> list[int]:
    """A text's tokens, repeated as needed, from another place on for each row of a batch.

    The first token stays: it may be the one that every text begins with.
    """
    rest = ids[1:]
    if not rest:
        return [ids[0]] * length
    return [ids[0], *(rest[(shift + i) % len(rest)] for i in range(length - 1))]


def _check_asked(model: nn.Module, length: int, request: InputSpec) -> None:
    """Checks that as many tokens can be held, as lists of Python's to begin with."""
    check_memory(64 * request.batch * length, f"a batch of {request.batch:,} x {length:,} tokens")
    _check_positions(model, length, {}, type(model).__name__)


def _check_positions(
    model: nn.Module, length: int, inputs: Mapping[str, torch.Tensor], name: str
) -> None:
    positions = getattr(_text_config(model), "max_position_embeddings", None)
    if positions is not None and length > positions:
        shorten = {"pixel_values_videos": "fewer frames", "pixel_values": "--max-pixels"}
        shorter = next((shorten[key] for key in shorten if key in inputs), "--sequence-length")
        raise InputError(
            f"a sequence of {length} tokens: {name} has {positions} positions; "
            f"give a shorter text, or {shorter}"
        )


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
    model: nn.Module, sequence: torch.Tensor, inputs: Mapping[str, torch.Tensor], name: str
) -> None:
    mask = inputs.get("attention_mask")
    _check_positions(model, sequence.shape[1], inputs, name)
    if mask is not None and mask.dim() == 2 and mask.shape != sequence.shape[:2]:
        raise InputError(
            f"attention_mask has shape {list(mask.shape)}, and the tokens "
            f"{list(sequence.shape[:2])}: expected the same [batch, sequence]"
        )


def _text_config(model: nn.Module) -> Any:
    return model.config.get_text_config()  # type: ignore[operator, union-attr]
