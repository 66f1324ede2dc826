"""A name or a path becomes a model with inputs, and a kind of candidate becomes a second model.

>>> loaded = load("random-llama", batch=2)
>>> {name: tuple(tensor.shape) for name, tensor in loaded.inputs.items()}
{'input_ids': (2, 32), 'attention_mask': (2, 32)}
>>> comparison = tracer.compare(loaded.model, candidate(loaded, "sdpa"), loaded.inputs)

A name is one of the built-in models, a local folder in transformers' layout, the id of a
repository on the Hugging Face hub, or a function of the user's (`tracer.models.factories`).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trace_model.annotations import checked
from tracer.adapters.opening import open_graph
from tracer.choices import (
    DEFAULT_BATCH,
    DEFAULT_DEVICE,
    DEFAULT_DTYPE,
    DEFAULT_PADDING,
    DTYPES,
    WITH_VOCABULARY,
)
from tracer.errors import InputError, UsageError, near_names
from tracer.execution.limits import user_path
from tracer.execution.offload import (
    compute_on,
    from_disk,
    index_tied_weights,
    is_offloaded,
    remove_with,
    weights_folder,
)
from tracer.execution.stepping import Stepping as Stepping
from tracer.execution.stepping import decode_step as decode_step
from tracer.execution.stepping import ending_in_steps as ending_in_steps
from tracer.execution.torch_internals import attention_implementation
from tracer.models import builtin as tiny
from tracer.models import factories
from tracer.models.checkpoints import load_pretrained, load_tokenizer
from tracer.models.inputs.images import from_images, open_image
from tracer.models.inputs.processors import Processor, check_processor, load_processor, tokens_of
from tracer.models.inputs.synthetic import image_and_text
from tracer.models.inputs.text import GeneratedInputs, InputSpec, check, from_text, read
from tracer.models.locate import (
    check_hub,
    check_offload,
    factory_of,
    is_graph,
    locate,
    locate_processor,
)
from tracer.tensors.rebuilding import map_tensors
from tracer.text import brief, listed

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

FLOAT_DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}

# The model types whose inputs can be made with images.
_WITH_IMAGES = ("qwen3_vl", "qwen3_vl_moe")


@dataclass(frozen=True)
class Loaded:
    """A model ready to be compared.

    Attributes:
        name: what it was loaded from.
        model: in evaluation mode, on its device.
        inputs: keyword arguments for it.
        tokenizer: None where there is none.
        notes: what was chosen on the way, in words, for reports.
        processor: where there are images, or one was asked for.
        request: what the inputs were made from; None if they were given.
        offload: whether the weights lie on disk, or where those that are no checkpoint's do.
        own_inputs: what the function that made the model returned as inputs, where others were
            given instead.
    """

    name: str
    model: nn.Module
    inputs: dict[str, Any]
    tokenizer: "PreTrainedTokenizerBase | None" = None
    notes: tuple[str, ...] = ()
    processor: "Processor | None" = None
    request: InputSpec | None = None
    offload: bool | str | Path = False
    own_inputs: dict[str, Any] | None = None


@checked(UsageError)
def load(
    name_or_path: str | Path,
    *,
    dtype: str | torch.dtype = DEFAULT_DTYPE,
    device: str | torch.device = DEFAULT_DEVICE,
    seed: int = 0,
    prompt: str | None = None,
    sequence_length: int | None = None,
    batch: int = DEFAULT_BATCH,
    padding: str = DEFAULT_PADDING,
    images: Sequence[str | Path] = (),
    processor: str | Path | None = None,
    max_pixels: int | None = None,
    video: int | None = None,
    inputs: Mapping[str, Any] | str | Path | None = None,
    attn_implementation: str = "eager",
    trust_remote_code: bool = False,
    offload: bool | str | Path = False,
) -> Loaded:
    """Loads a model and makes inputs for it.

    Of a file with an exported graph (`tracer.open_graph`) the inputs are by default those that it
    was exported with.

    Args:
        name_or_path: "tiny-llama" (trained), "random-llama", "tiny-qwen3-vl", a local folder, a hub
            id such as "organisation/name", or a function such as "port.py:build" or
            "package.module:build" that returns the model, or a pair of it and its inputs by name;
            its code is run.
        dtype: of the weights: "float32", so that a checkpoint in half precision does not hide
            differences behind its rounding; another name or torch dtype; "auto" as stored.
        seed: for random weights ("random-llama", "tiny-qwen3-vl") and random inputs. The global
            random state is left as it is.
        prompt: the text of the inputs, for a model with a tokenizer.
        sequence_length: tokens in the longest sequence. A text is repeated or cut to it.
        batch: number of sequences. Beyond 1 they have different lengths and are padded.
        padding: the side that is padded, "right" or "left".
        images: files to show to a Qwen3-VL before the prompt: all in one sequence; in a batch
            image i in sequence i, or the only one in all.
        processor: the folder or hub id of what prepares them; the model's own by default. A
            built-in model, which has none, is built with its vocabulary.
        max_pixels: shrinks larger images to this number of pixels.
        video: for synthetic inputs of a Qwen3-VL: adds a clip of as many frames.
        inputs: keyword arguments to use instead, or a safetensors file that holds them.
        attn_implementation: of transformers: "eager", "sdpa", ...
        trust_remote_code: run Python code that comes with a checkpoint.
        offload: leaves the weights on disk, from where each module's are loaded when it is called
            (`tracer.execution.offload`). Weights that are not in a checkpoint as they are needed
            are written to the folder that is named, or a temporary one, and removed with the model.

    Raises:
        UsageError: an unknown dtype, device or padding side, options that exclude each other, or
            weights to be offloaded without accelerate.
        ModelLoadError: nothing of that name, a broken checkpoint, or one that lacks weights.
        InputError: inputs that the model cannot take.
    """
    request = InputSpec(
        prompt,
        sequence_length,
        batch,
        padding,
        seed,
        images=tuple(user_path(image) for image in images),
        max_pixels=max_pixels,
        frames=video,
    )
    makes = processor is not None and str(name_or_path) not in WITH_VOCABULARY
    if inputs is not None and (makes or request != InputSpec(seed=seed, padding=padding)):
        raise UsageError(
            "inputs that are given exclude a prompt, a sequence length and a batch size, images, "
            "a processor and a video: these describe inputs that are made"
        )
    name, target, wanted = str(name_or_path), usable_device(device), _dtype(dtype)
    given = (
        dict(inputs) if isinstance(inputs, Mapping) else None if inputs is None else read(inputs)
    )
    source = locate(name)
    if is_graph(name):
        if request != InputSpec(seed=seed, padding=padding) or processor or offload is not False:
            raise UsageError(
                f"{name} is a graph, which takes inputs of the sizes that it was exported for: "
                "leave out what describes others, and weights on disk"
            )
        return _load_graph(name, given, target)
    if factory_of(name) is not None:
        if request.images or processor or video is not None or offload is not False:
            raise UsageError(
                f"{name} makes a model of its own: images, a processor, a video and weights on "
                "disk are for checkpoints"
            )
        return _load_built(name, request, given, target, wanted)
    pictures = [open_image(path) for path in request.images]
    prepares = None if processor is None else _processor(str(processor), trust_remote_code)
    build = partial(_model, name, source, seed, wanted, prepares, trust_remote_code)
    model, notes = build() if offload is False else _on_disk(build, offload, target)
    if pictures or prepares is not None or video is not None:
        _check_takes_images(model, name)
    if pictures and prepares is None:
        if name in tiny.TINY:
            raise UsageError(f"{name} has no processor for images: give --processor FOLDER|HUB_ID")
        prepares = _processor(name, trust_remote_code)
    tokenizer = None
    if prepares is not None:
        check_processor(model, prepares, name)
        tokenizer = prepares.tokenizer
        kind = type(prepares.image_processor).__name__
        notes += (f"processor: {processor or name}, with a {kind}",)
    elif name not in tiny.TINY and (given is None or "input_ids" in given):
        tokenizer = load_tokenizer(name, source, trust_remote_code=trust_remote_code)
    set_attention(model, attn_implementation, name)
    if given is not None:
        made, description = given, f"given: {listed(list(given))}"
    else:
        made, description = _make(model, tokenizer, prepares, request, pictures)
    check(model, made, name)
    if _takes_images(model) and not {"pixel_values", "pixel_values_videos"} & made.keys():
        description += "; without an image, so that the vision model is not called"
    return Loaded(
        name=name,
        model=(model if is_offloaded(model) else model.to(target)).eval(),
        inputs={key: moved_to(value, target) for key, value in made.items()},
        tokenizer=tokenizer,
        notes=(*notes, f"inputs: {description}"),
        processor=prepares,
        request=request if given is None else None,
        offload=offload,
    )


def _load_graph(name: str, given: dict[str, Any] | None, device: torch.device) -> Loaded:
    """An exported graph, with the inputs that it was exported with."""
    model = open_graph(name, device=device)
    own = model.example_inputs()
    made: Mapping[str, Any] | None = own if given is None else given
    if made is None:
        raise InputError(
            f"{name} does not hold the inputs that it was exported with: give "
            "--inputs FILE.safetensors"
        )
    names = listed([*made])
    return Loaded(
        name=name,
        model=model,
        inputs={key: moved_to(value, device) for key, value in made.items()},
        notes=(
            *model.notes,
            f"inputs: of {name}: {names}" if given is None else f"inputs: given: {names}",
        ),
        own_inputs=None if given is None or own is None else dict(own),
    )


def moved_to(value: Any, device: torch.device) -> Any:
    """A nested value with its tensors on a device."""
    return map_tensors(value, lambda tensor: tensor.to(device))


def _load_built(
    name: str,
    request: InputSpec,
    given: dict[str, Any] | None,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Loaded:
    """What a function of the user's makes; its attention implementation is its own."""
    built = factories.build(name, request.seed)
    model = built.model if dtype is None else cast(built.model, dtype)
    made, description = given, f"given: {listed(list(given or ()))}"
    own = built.inputs
    if own is not None:
        own = {key: cast_float(tensor, dtype).to(device) for key, tensor in own.items()}
    if made is None and own is not None:
        if request != InputSpec(seed=request.seed):
            raise UsageError(f"{name} makes its own inputs: leave out what describes others")
        made, description = own, f"of {name}: {listed(list(own))}"
    elif own is not None:
        description += f", and not what {name} returns: {listed(list(own))}"
    if made is None:
        if not hasattr(model, "get_input_embeddings"):
            raise InputError(
                f"{name} makes a {type(model).__name__}, whose inputs are not known: let it return "
                "a pair of the model and its inputs by name, or give --inputs FILE.safetensors"
            )
        made, description = from_text(model, None, request)
    if hasattr(model, "main_input_name"):
        check(model, own or made, name)
    return Loaded(
        name=name,
        model=model.to(device).eval(),
        inputs={key: moved_to(value, device) for key, value in made.items()},
        notes=(f"inputs: {description}",),
        request=None if given or own else request,
        own_inputs=None if given is None else own,
    )


@checked(UsageError)
def usable_device(device: str | torch.device) -> torch.device:
    """A device by its name.

    Raises:
        UsageError: there is none of that name here.
    """
    try:
        target = torch.device(device)
        if target.type == "meta":
            raise UsageError("the device 'meta' holds no values to compare: expected cpu or cuda")
        torch.empty(0, device=target)
    except UsageError:
        raise
    # What an absent device raises depends on its backend: RuntimeError, ModuleNotFoundError, ...
    except Exception as error:
        raise UsageError(
            f"device {str(device)!r} cannot be used here: {brief(error)}; this machine has "
            f"{', '.join(_devices())}"
        ) from error
    return target


@checked(UsageError)
def moved(loaded: Loaded, device: str | torch.device) -> Loaded:
    """A copy of a loaded model and its inputs on another device, for candidates made from it.

    Raises:
        UsageError: there is no such device here, or the weights lie on disk.
    """
    target = usable_device(device)
    if loaded.offload:
        raise UsageError("a model whose weights are loaded when needed is not moved: choose one")
    return replace(
        loaded,
        model=copy.deepcopy(loaded.model).to(target),
        inputs={key: moved_to(value, target) for key, value in loaded.inputs.items()},
    )


def _model(
    name: str,
    source: Path | str,
    seed: int,
    dtype: torch.dtype | None,
    processor: "Processor | None",
    trust_remote_code: bool,
    offload_folder: str | None = None,
) -> tuple[nn.Module, tuple[str, ...]]:
    """The model, and what is worth knowing about it, in words."""
    if name not in tiny.TINY:
        if isinstance(source, str):
            check_hub(source)
        return load_pretrained(
            name, source, dtype, trust_remote_code=trust_remote_code, offload_folder=offload_folder
        )
    knows_images = name in WITH_VOCABULARY and processor is not None
    model = tiny.build(name, seed, **({"tokens": tokens_of(processor)} if knows_images else {}))
    return (model if dtype is None else cast(model, dtype)), ()


def _on_disk(
    build: Callable[..., tuple[nn.Module, tuple[str, ...]]],
    offload: bool | str | Path,
    device: torch.device,
) -> tuple[nn.Module, tuple[str, ...]]:
    """The model, its weights on disk until they are needed, and the same words."""
    check_offload(offload)
    with weights_folder(None if isinstance(offload, bool) else offload) as folder:
        model, notes = build(offload_folder=folder)
        if not is_offloaded(model):
            from_disk(model, folder, device)
        index_tied_weights(model)
        compute_on(model, device)
        remove_with(model, folder)
    return model, (*notes, "the weights lie on disk, and are loaded module by module")


def _takes_images(model: nn.Module) -> bool:
    return getattr(getattr(model, "config", None), "model_type", None) in _WITH_IMAGES


def _check_takes_images(model: nn.Module, name: str) -> None:
    if not _takes_images(model):
        raise UsageError(
            f"{name} is a {type(model).__name__}: images, a processor and a video are for a "
            "Qwen3-VL; another model's go into --inputs FILE.safetensors"
        )


def _processor(name: str, trust_remote_code: bool) -> "Processor":
    source = locate_processor(name)
    if isinstance(source, str):
        check_hub(source)
    return load_processor(name, source, trust_remote_code=trust_remote_code)


def _make(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase | None",
    processor: "Processor | None",
    request: InputSpec,
    images: "Sequence[Image]",
) -> GeneratedInputs:
    if images and processor is not None:
        return from_images(processor, request, images)
    if _takes_images(model) and (request.prompt is None or request.frames is not None):
        return image_and_text(model, request)
    return from_text(model, tokenizer, request)


def _dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The dtype of a name; None for "auto"."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return None
    if dtype not in FLOAT_DTYPES:
        names = ["auto", *FLOAT_DTYPES]
        known = ", ".join(names) + near_names(dtype, names)
        raise UsageError(f"unknown dtype {dtype!r}: expected {known}")
    return FLOAT_DTYPES[dtype]


def _devices() -> list[str]:
    accelerator = torch.accelerator.current_accelerator()
    found = [] if accelerator is None or torch.accelerator.device_count() == 0 else [accelerator]
    return ["cpu", *(str(device) for device in found)]


@checked(UsageError)
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


def cast_float(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def set_attention(model: nn.Module, kind: str, name: str) -> None:
    set_attention = getattr(model, "set_attn_implementation", None)
    if set_attention is None:
        raise UsageError(f"{name}: the attention implementation of this model cannot be chosen")
    try:
        set_attention(kind)
    except (ValueError, ImportError) as error:
        raise UsageError(f"{name}: no attention implementation {kind!r}: {brief(error)}") from error
    chosen = attention_implementation(model)
    if chosen != kind:
        raise UsageError(f"{name}: no attention implementation {kind!r}; it stays with {chosen!r}")
