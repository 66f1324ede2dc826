"""Candidates that wrappers make: wrapped, quantised, and the decode variant.

The wrappers are imported where they are needed, and known by their public names only.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from trace_model.annotations import checked
from tracer.choices import (
    CANDIDATES,
    DEFAULT_ACTIVATION,
    DEFAULT_VARIANT,
    DEFAULT_WEIGHT,
    NEED_WRAPPERS,
)
from tracer.errors import UsageError
from tracer.execution.limits import user_path
from tracer.execution.offload import (
    copy_model,
    execution_device,
)
from tracer.execution.stepping import Stepping
from tracer.execution.stepping import decode_step as decode_step
from tracer.execution.stepping import ending_in_steps as ending_in_steps
from tracer.models.calibration_data import Calibration as Calibration
from tracer.models.calibration_data import calibration as calibration
from tracer.models.loading import FLOAT_DTYPES, Loaded, cast, load, set_attention
from tracer.models.locate import factory_of, is_saved, locate, saved_variant
from tracer.text import listed

Progress = Callable[[Iterable[Any]], Iterable[Any]]

# The candidates that hold the model's own weights, and need no wrappers.
_KINDS = (*FLOAT_DTYPES, "sdpa", "eager", "compile")

# How many of the last tokens of each prompt a single decode step is calibrated on.
_CALIBRATED_STEPS = 8


def wrapped(model: nn.Module, config: Any, overrides: Mapping[str, str], variant: str) -> nn.Module:
    """The model wrapped for quantisation, with quantisation off.

    Args:
        config: a `wrappers.PTQConfig`.
        overrides: as for `candidate`.
    """
    import wrappers

    config = replace(config, variant=variant)
    if overrides:
        made = wrappers.overrides_for(model, config, overrides)
        config = replace(config, overrides=made)
    return wrappers.prepare(model, config).eval()


def check_wrappers(model: nn.Module, name: str, kind: str) -> None:
    """Refuses a model of which only linear layers, norms and the like would be wrapped.

    Raises:
        UsageError: there are no wrappers for its class.
    """
    from transformers import PreTrainedModel

    from wrappers.core.registry import has_wrapper, wrapped_classes

    # A head of another kind may stand on a model that has wrappers.
    body: nn.Module = getattr(model, "base_model", model)
    if has_wrapper(type(model)) or has_wrapper(type(body)):
        return
    known = [cls.__name__ for cls in wrapped_classes() if issubclass(cls, PreTrainedModel)]
    others = ", ".join(other for other in CANDIDATES if other not in NEED_WRAPPERS)
    raise UsageError(
        f"there are no wrappers for {type(model).__name__}, so {name} has no candidate "
        f"{kind!r}; there are for {listed(sorted(known))}; without wrappers work {others}, or the "
        "path of a model"
    )


def quantized(
    wrapped: nn.Module, batches: Iterable[dict[str, Any]], progress: Progress | None
) -> nn.Module:
    """A wrapped model, calibrated and quantised."""
    import wrappers

    wrappers.calibrate(wrapped, batches, progress=progress)
    return wrappers.convert(wrapped)


def decoding(
    model: nn.Module,
    wrap: Callable[[str], nn.Module],
    prompts: Sequence[dict[str, torch.Tensor]] | None,
    steps: int | None,
    progress: Progress | None,
) -> nn.Module:
    """The decode variant, after a prefill where there are steps; quantised if there are prompts."""
    import wrappers

    decode = wrap("decode")
    if steps is None:
        if prompts is None:
            return decode
        count = max(1, min(_CALIBRATED_STEPS, *map(_steps_at_most, prompts)))
        inputs = wrappers.decode_inputs(model, decode, prompts, steps=count, source="float")
        return quantized(decode, inputs, progress)
    prefill = wrap("prefill")
    if prompts is not None:
        wrappers.calibrate_both(
            prefill, decode, prompts, steps=steps, source="float", progress=progress
        )
        prefill, decode = wrappers.convert(prefill), wrappers.convert(decode)
    return Stepping(prefill, decode, steps=steps)


def _steps_at_most(prompt: Mapping[str, torch.Tensor]) -> int:
    """How many tokens each row ends in that can be steps: text, after at least one token."""
    ids = prompt["input_ids"]
    visible = prompt.get("attention_mask", torch.ones_like(ids)).bool()
    kinds = prompt.get("mm_token_type_ids", torch.zeros_like(ids)).bool()
    is_after = kinds.flip(1).cumsum(1).flip(1) == 0  # after the last image
    return int(torch.minimum(visible.sum(1) - 1, (visible & is_after).sum(1)).min())


@checked(UsageError)
def candidate(
    loaded: Loaded,
    kind: str,
    *,
    variant: str | None = None,
    steps: int | None = None,
    activation: str | None = None,
    weight: str | None = None,
    config: Any = None,
    overrides: Mapping[str, str] | None = None,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
    map_inputs: Mapping[str, str] | None = None,
) -> nn.Module:
    """Builds the model to compare with a loaded one, which stays as it is.

    Inputs that a function of yours returns with its model are not among the results: load it by
    `load("port.py:build")` for both, and give them to `compare` as `candidate_inputs`.

    Args:
        kind: one of `CANDIDATES`, or a name or path to load, of `wrappers.save` too:
            "wrapped": the model wrapped for quantisation, with quantisation off;
            "quantized": wrapped, calibrated and quantised;
            "bfloat16", "float16": a copy cast to that dtype;
            "sdpa", "eager": the same weights with another attention implementation;
            "compile": the same weights through torch.compile.
        variant: of the wrappers, for "wrapped" and "quantized" (default: the config's, prefill).
            What is in the variant "decode" is compared on a `decode_step`, and calibrated on such
            steps after a float prefill.
        steps: makes a `Stepping` of as many decode steps, to be compared with one of the loaded
            model. The variant "decode" then has a model in the variant "prefill" before it, as on
            an accelerator; any other candidate takes the steps itself.
        activation, weight: types for "quantized", such as "uint8", "int16", "fp8_e4m3", "nvfp4"
            (default: uint8).
        config: a `wrappers.PTQConfig` instead, which the variant, where it is given, is put into.
        overrides: other types, or "float", by globs of modules or quantization points;
            see `wrappers.overrides_for`.
        calibration: for "quantized"; the loaded model's inputs alone if None.
        progress: shows how far the calibration is, and yields what it iterates over.
        trust_remote_code: as for `load`, for a path.
        map_inputs: as for `compare`, for a path.

    Raises:
        UsageError: the kind is unknown, or not to be had for this model or on this machine; or
            integer types beside a config.
        ModelLoadError, InputError: as for `load`.
        wrappers.errors.WrappersError: the model cannot be wrapped or quantised that way.
    """
    if is_saved(kind):
        return _saved(loaded, kind, steps)
    if kind not in NEED_WRAPPERS:
        if kind in _KINDS:
            other = _unwrapped(loaded, kind)
        else:
            locate(kind, CANDIDATES)
            other = load_candidate(
                loaded, kind, trust_remote_code=trust_remote_code, map_inputs=map_inputs
            ).model
        return other if steps is None else Stepping(other, steps=steps)
    check_wrappers(loaded.model, loaded.name, kind)
    batches: Sequence[dict[str, torch.Tensor]] | None = None
    if kind == "quantized":
        batches = (loaded.inputs,) if calibration is None else calibration.batches
    config = _config(config, activation, weight)
    variant = variant or config.variant
    wrap = partial(wrapped, loaded.model, config, overrides or {})
    if variant == "decode":
        return decoding(loaded.model, wrap, batches, steps, progress)
    made = wrap(variant)
    if batches is not None:
        made = quantized(made, batches, progress)
    return made if steps is None else Stepping(made, steps=steps)


def _saved(loaded: Loaded, folder: str, steps: int | None) -> nn.Module:
    """A saved quantised model; of a prefill with a decode model inside, both where there are steps.

    Raises:
        UsageError: there are steps, and a decode model without its prefill.
        wrappers.errors.SavedModelError: it is damaged, or of another model than the loaded one.
    """
    import wrappers

    path = user_path(folder)
    made = wrappers.load(path, loaded.model)
    if steps is None:
        return made
    if saved_variant(folder) == "decode":
        raise UsageError(
            f"{folder} is a decode model, and steps begin with a prefill: give the folder of the "
            "prefill model that it lies in, or leave out the steps"
        )
    decode = wrappers.load(path / "decode", loaded.model) if is_saved(f"{path}/decode") else None
    return Stepping(made, decode, steps=steps)


def _config(config: Any, activation: str | None, weight: str | None) -> Any:
    import wrappers

    if config is None:
        return wrappers.PTQConfig(
            activation=wrappers.affine(activation or DEFAULT_ACTIVATION),
            weight=wrappers.affine(weight or DEFAULT_WEIGHT),
            variant=DEFAULT_VARIANT,
        )
    if not isinstance(config, wrappers.PTQConfig):
        raise UsageError(f"config is a {type(config).__name__}; expected a wrappers.PTQConfig")
    if activation is not None or weight is not None:
        raise UsageError("a config says what activations and weights are: leave them out beside it")
    return config


def _unwrapped(loaded: Loaded, kind: str) -> nn.Module:
    model = loaded.model
    if kind in FLOAT_DTYPES:
        return cast(copy_model(model), FLOAT_DTYPES[kind])
    if kind in ("sdpa", "eager"):
        other = share_parameters(model)
        set_attention(other, kind, loaded.name)
        return other
    if loaded.offload:
        raise UsageError("a model whose weights are loaded when needed cannot be compiled")
    return _compiled(model)


def load_candidate(
    loaded: Loaded,
    name: str,
    *,
    trust_remote_code: bool = False,
    map_inputs: Mapping[str, str] | None = None,
) -> Loaded:
    """Loads another model to be compared with a loaded one; see `candidate`.

    Returns:
        With `own_inputs`, where a function returned some; its `inputs` are the loaded one's.
    """
    model = loaded.model
    first = next(model.parameters(), None)
    names = map_inputs or {}
    own_names = {name: own for own, name in names.items()}
    return load(
        name,
        # What the user's own code makes is in the dtype that it is meant to be in.
        dtype="auto" if first is None or factory_of(name) is not None else first.dtype,
        device=execution_device(model),
        inputs={own_names.get(key, key): value for key, value in loaded.inputs.items()},
        trust_remote_code=trust_remote_code,
        offload=loaded.offload,
    )


@checked(UsageError)
def share_parameters(model: nn.Module) -> nn.Module:
    """A copy of a model that holds the same parameters and buffers, and a config of its own."""
    made: nn.Module = copy_model(model, shared=(*model.parameters(), *model.buffers()))
    return made


def _compiled(model: nn.Module) -> nn.Module:
    compilers = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and not any(compiler and shutil.which(compiler) for compiler in compilers):
        raise UsageError(
            "the candidate 'compile' needs a C++ compiler for the CPU, and neither g++ nor "
            "clang++ was found; install one or name it in the environment variable CXX"
        )
    # Random numbers are drawn as without compiling, so that dropout drops the same elements.
    compiled = torch.compile(share_parameters(model), options={"fallback_random": True})
    assert isinstance(compiled, nn.Module)
    return compiled
