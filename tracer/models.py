"""A name or a path becomes a model with inputs, and a kind of candidate becomes a second model.

>>> loaded = load("tiny-llama", batch=2)
>>> {name: tuple(tensor.shape) for name, tensor in loaded.inputs.items()}
{'input_ids': (2, 32), 'attention_mask': (2, 32)}
>>> comparison = tracer.compare(loaded.model, candidate(loaded, "sdpa"), loaded.inputs)

A name is one of the built-in models, a local folder in transformers' layout, or the id of a
repository on the Hugging Face hub. transformers and wrappers are imported only where needed.
"""

import copy
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tracer import tiny
from tracer.checkpoints import load_pretrained, load_tokenizer
from tracer.choices import BUILT_IN, CANDIDATES, DTYPES, NEED_WRAPPERS
from tracer.errors import UsageError, near_names
from tracer.inputs import (
    Made,
    Request,
    check,
    encode,
    from_text,
    image_and_text,
    random_tokens,
    read,
)
from tracer.sources import check_hub, locate
from tracer.words import brief, listed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[Iterable[Any]], Iterable[Any]]

_DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}


@dataclass(frozen=True)
class Loaded:
    """A model ready to be compared.

    Attributes:
        name: what it was loaded from.
        model: in evaluation mode, on its device.
        inputs: keyword arguments for it.
        tokenizer: None where there is none.
        notes: what was chosen on the way, in words, for reports.
    """

    name: str
    model: nn.Module
    inputs: dict[str, torch.Tensor]
    tokenizer: "PreTrainedTokenizerBase | None" = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Calibration:
    """What a quantised candidate is calibrated on, and the same in words."""

    batches: tuple[dict[str, torch.Tensor], ...]
    description: str


def load(
    name_or_path: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    seed: int = 0,
    prompt: str | None = None,
    sequence_length: int | None = None,
    batch: int = 1,
    padding: str = "right",
    inputs: Mapping[str, torch.Tensor] | str | Path | None = None,
    attn_implementation: str = "eager",
    trust_remote_code: bool = False,
) -> Loaded:
    """Loads a model and makes inputs for it.

    Args:
        name_or_path: "tiny-llama", "tiny-qwen3-vl", a local folder, or a hub id such as
            "organisation/name".
        dtype: of the weights: "float32", so that a checkpoint in half precision does not hide
            differences behind its rounding; another name or torch dtype; "auto" as stored.
        seed: for the weights of a built-in model and for random inputs. The global random state
            is left as it is.
        prompt: the text of the inputs, for a model with a tokenizer.
        sequence_length: tokens in the longest sequence. A text is repeated or cut to it.
        batch: number of sequences. Beyond 1 they have different lengths and are padded.
        padding: the side that is padded, "right" or "left".
        inputs: keyword arguments to use instead, or a safetensors file that holds them.
        attn_implementation: of transformers: "eager", "sdpa", ...
        trust_remote_code: run Python code that comes with a checkpoint.

    Raises:
        UsageError: an unknown dtype, device or padding side, or options that exclude each other.
        ModelLoadError: nothing of that name, a broken checkpoint, or one that lacks weights.
        InputError: inputs that the model cannot take.
    """
    request = Request(prompt, sequence_length, batch, padding, seed)
    if inputs is not None and request != Request(seed=seed, padding=padding):
        raise UsageError(
            "inputs that are given exclude a prompt, a sequence length and a batch size: "
            "these describe inputs that are made"
        )
    name, target, wanted = str(name_or_path), _device(device), _dtype(dtype)
    given = (
        dict(inputs) if isinstance(inputs, Mapping) else None if inputs is None else read(inputs)
    )
    tokenizer = None
    notes: tuple[str, ...] = ()
    source = locate(name)
    if name in BUILT_IN:
        model = tiny.build(name, seed)
        if wanted is not None:
            cast(model, wanted)
    else:
        if isinstance(source, str):
            check_hub(source)
        model, notes = load_pretrained(name, source, wanted, trust_remote_code=trust_remote_code)
        if given is None or "input_ids" in given:
            tokenizer = load_tokenizer(name, source, trust_remote_code=trust_remote_code)
    _set_attention(model, attn_implementation, name)
    if given is None:
        made, description = _make(name, model, tokenizer, request)
    else:
        made, description = given, f"given: {listed(list(given))}"
    check(model, made, name)
    return Loaded(
        name=name,
        model=model.to(target).eval(),
        inputs={key: tensor.to(target) for key, tensor in made.items()},
        tokenizer=tokenizer,
        notes=(*notes, f"inputs: {description}"),
    )


def candidate(
    loaded: Loaded,
    kind: str,
    *,
    variant: str = "prefill",
    activation: str = "uint8",
    weight: str = "uint8",
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Builds the model to compare with a loaded one, which stays as it is.

    Args:
        kind: one of `CANDIDATES`, or a name or path to load:
            "wrapped": the model wrapped for quantisation, with quantisation off;
            "quantized": wrapped, calibrated and quantised;
            "bfloat16", "float16": a copy cast to that dtype;
            "sdpa", "eager": the same weights with another attention implementation;
            "compile": the same weights through torch.compile.
        variant: of the wrappers, for "wrapped" and "quantized".
        activation, weight: integer types for "quantized", such as "uint8", "int16", "uint4".
        calibration: for "quantized"; the loaded model's inputs alone if None.
        progress: shows how far the calibration is: hands on what it iterates over.
        trust_remote_code: as for `load`, for a path.

    Raises:
        UsageError: the kind is unknown, or not to be had for this model or on this machine.
        ModelLoadError, InputError: as for `load`.
        wrappers.errors.WrappersError: the model cannot be wrapped or quantised that way.
    """
    model = loaded.model
    if kind in NEED_WRAPPERS:
        wrapped = _wrapped(loaded, kind, variant, activation, weight)
        return wrapped if kind == "wrapped" else _quantized(loaded, wrapped, calibration, progress)
    if kind in _DTYPES:
        return cast(copy.deepcopy(model), _DTYPES[kind])
    if kind in ("sdpa", "eager"):
        twin = share_parameters(model)
        _set_attention(twin, kind, loaded.name)
        return twin
    if kind == "compile":
        return _compiled(model)
    locate(kind, CANDIDATES)
    first = next(model.parameters())
    return load(
        kind,
        dtype=first.dtype,
        device=first.device,
        inputs=loaded.inputs,
        trust_remote_code=trust_remote_code,
    ).model


def calibration(
    loaded: Loaded, *, count: int = 8, text: str | Path | None = None, seed: int = 0
) -> Calibration:
    """Makes data to calibrate on: the model's own inputs, and sequences of the same length.

    Inputs that are more than token ids (an image) stay the only ones.

    Args:
        count: how many sequences to add.
        text: a text file; its tokens are cut into sequences, of which the first are taken. None
            for random tokens of the vocabulary.
        seed: for the random tokens.

    Raises:
        UsageError: a negative count, or a text that cannot be read, holds too little, or does not
            go with the model.
    """
    if count < 0:
        raise UsageError(f"calibrate {count}: expected a number of sequences, at least 0")
    own = loaded.inputs
    ids = own.get("input_ids")
    if ids is None or set(own) - {"input_ids", "attention_mask"}:
        if text is not None:
            raise UsageError(
                f"{loaded.name} takes {listed([*own])}: text alone cannot calibrate it"
            )
        return Calibration((own,), "the inputs themselves")
    length = ids.shape[1]
    if text is None:
        # Another seed than that of random inputs, or the first sequence would be the inputs again.
        sequences = random_tokens(loaded.model, (count, 1, length), seed + 1)
        source = f"{count} random sequences of {length} tokens (seed {seed})"
    else:
        sequences = _windows(loaded, Path(text), length)[:count]
        source = f"the first {len(sequences)} sequences of {length} tokens of {text}"
    batches = [
        {"input_ids": sequence, "attention_mask": torch.ones_like(sequence)}
        for sequence in sequences.to(ids.device)
    ]
    added = f" and {source}" if batches else ""
    return Calibration((own, *batches), f"the inputs themselves{added}")


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts a model's weights in place, as loading its checkpoint in that dtype would.

    Buffers that a checkpoint does not hold (rotary frequencies) keep their precision.
    """
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    config = getattr(model, "config", None)
    if config is not None:
        config.dtype = dtype
    return model


def share_parameters(model: nn.Module) -> nn.Module:
    """A copy of a model that holds the same parameters and buffers, and a config of its own."""
    shared: dict[int, object] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _make(
    name: str,
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase | None",
    request: Request,
) -> Made:
    if name == "tiny-qwen3-vl":
        return image_and_text(model, request)
    return from_text(model, tokenizer, request)


def _wrapped(loaded: Loaded, kind: str, variant: str, activation: str, weight: str) -> nn.Module:
    import wrappers

    config = wrappers.PTQConfig(
        activation=wrappers.affine(activation), weight=wrappers.affine(weight), variant=variant
    )
    wrapped = wrappers.prepare(loaded.model, config).eval()
    originals = dict(loaded.model.named_modules())
    family = type(loaded.model).__module__
    if not any(
        isinstance(module, wrappers.QuantModule) and type(originals[name]).__module__ == family
        for name, module in wrapped.named_modules()
        if name in originals
    ):
        # Its linear layers and norms alone would pass for the model.
        others = ", ".join(other for other in CANDIDATES if other not in NEED_WRAPPERS)
        raise UsageError(
            f"there are no wrappers for {type(loaded.model).__name__} yet, so {loaded.name} has no "
            f"candidate {kind!r}; these work without: {others}, or the path of a model"
        )
    return wrapped


def _quantized(
    loaded: Loaded,
    wrapped: nn.Module,
    calibration: Calibration | None,
    progress: Progress | None,
) -> nn.Module:
    import wrappers

    batches = (loaded.inputs,) if calibration is None else calibration.batches
    wrappers.calibrate(wrapped, batches, progress=progress)
    return wrappers.convert(wrapped)


def _set_attention(model: nn.Module, kind: str, name: str) -> None:
    set_attention = getattr(model, "set_attn_implementation", None)
    if set_attention is None:
        raise UsageError(f"{name}: the attention implementation of this model cannot be chosen")
    try:
        set_attention(kind)
    except (ValueError, ImportError) as error:
        raise UsageError(f"{name}: no attention implementation {kind!r}: {brief(error)}") from error
    chosen = model.config._attn_implementation  # type: ignore[union-attr]
    if chosen != kind:
        raise UsageError(f"{name}: no attention implementation {kind!r}; it stays with {chosen!r}")


def _compiled(model: nn.Module) -> nn.Module:
    compilers = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and not any(compiler and shutil.which(compiler) for compiler in compilers):
        raise UsageError(
            "the candidate 'compile' needs a C++ compiler for the CPU, and neither g++ nor "
            "clang++ was found; install one or name it in the environment variable CXX"
        )
    compiled = torch.compile(share_parameters(model))
    assert isinstance(compiled, nn.Module)
    return compiled


def _dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The dtype of a name; None for "auto"."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return None
    known = _DTYPES.get(dtype)
    if known is None:
        names = ["auto", *_DTYPES]
        raise UsageError(
            f"unknown dtype {dtype!r}: expected {', '.join(names)}{near_names(dtype, names)}"
        )
    return known


def _device(device: str | torch.device) -> torch.device:
    try:
        target = torch.device(device)
        if target.type == "meta":
            raise UsageError("the device 'meta' holds no values to compare: expected cpu or cuda")
        torch.empty(0, device=target)
    # What an absent device raises depends on its backend: RuntimeError, AssertionError, ...
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"device {str(device)!r} cannot be used here: {brief(error)}; this machine has "
            f"{', '.join(_devices())}"
        ) from error
    return target


def _devices() -> list[str]:
    accelerator = torch.accelerator.current_accelerator()
    found = [] if accelerator is None or torch.accelerator.device_count() == 0 else [accelerator]
    return ["cpu", *(str(device) for device in found)]


def _windows(loaded: Loaded, path: Path, length: int) -> torch.Tensor:
    """The tokens of a text file in pieces of one length, [pieces, 1, length]."""
    if loaded.tokenizer is None:
        raise UsageError(
            f"{loaded.name} has no tokenizer, so the text {path} cannot calibrate it; without a "
            "text, random tokens are used"
        )
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the calibration text {path} cannot be read: {brief(error)}") from error
    ids = encode(loaded.tokenizer, text)
    if len(ids) < length:
        raise UsageError(
            f"the calibration text {path} has {len(ids)} tokens: one sequence takes {length}"
        )
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, 1, length)
