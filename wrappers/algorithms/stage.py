"""What an algorithm is: a stage `(model, config, batches) -> model`, and how stages run in a row.

    stages = [Rotation(), SmoothQuant(), GPTQ(group_size=32), BiasCorrection()]
    quantized = quantize(model, config, batches, stages)

A stage leaves the model that it is given as it is and keeps the names of its modules. One that
rewrites a float model (rotation, smoothing, equalisation) gives a float model that computes the
same function; one that needs quantization points (GPTQ, bias correction) takes a float or a
prepared model and gives a prepared one. So the first kind comes before the second; `rewrites_float`
of a stage says of which kind it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wrappers.core.config import PTQConfig
from wrappers.core.module import QuantModule, iter_wrappers
from wrappers.core.offloading import is_offloaded, replace_loaded
from wrappers.core.point import Mode
from wrappers.core.transformers_compat import share_loaded
from wrappers.errors import ModelInputError, WrapError
from wrappers.quantize import ModelInputs, calibrate, call_arguments, convert, prepare

BEFORE_ROUNDING = "before_rounding"

Stage = Callable[[nn.Module, PTQConfig, Sequence[ModelInputs]], nn.Module]


def quantize(
    model: nn.Module,
    config: PTQConfig,
    batches: Sequence[ModelInputs],
    stages: Sequence[Stage] = (),
) -> nn.Module:
    """The model after all stages, calibrated and quantised.

    Args:
        model: a float model, which stays as it is.
        config: how it is quantised.
        batches: calibration inputs; each stage and the calibration run over all of them.
        stages: in the order in which they run.

    Raises:
        WrapError: a stage cannot take the model that the one before it gives.
        ModelInputError: there are no batches.
    """
    checked(batches)
    check_order(stages)
    for stage in stages:
        model = stage(model, config, batches)
    wrapped = as_prepared(model, config)
    vars(wrapped).pop(BEFORE_ROUNDING, None)
    calibrate(wrapped, batches)
    return convert(wrapped)


def check_order(stages: Sequence[Stage]) -> None:
    """Checks that no stage that rewrites a float model comes after one that prepares it.

    Raises:
        WrapError: one does.
    """
    preparing = None
    for stage in stages:
        rewrites = getattr(stage, "rewrites_float", None)  # None: of another's making
        if rewrites and preparing is not None:
            first, later = type(preparing).__name__, type(stage).__name__
            raise WrapError(
                f"{later} rewrites a float model, and {first} before it gives a prepared one: put "
                f"{later} before {first}"
            )
        if rewrites is False:
            preparing = preparing or stage


def checked(batches: Sequence[ModelInputs]) -> Sequence[ModelInputs]:
    """The batches, if they can be run over more than once.

    Raises:
        ModelInputError: there are none, or they are an iterator.
    """
    if not isinstance(batches, Sequence) or not len(batches):
        raise ModelInputError(
            "an algorithm needs a list of calibration inputs with at least one in it, found "
            + (f"a {type(batches).__name__}" if not isinstance(batches, Sequence) else "none")
        )
    return batches


def is_prepared(model: nn.Module) -> bool:
    """Whether the model has wrappers."""
    return any(True for _ in iter_wrappers(model))


def as_prepared(model: nn.Module, config: PTQConfig) -> nn.Module:
    """The model itself if it is prepared, else a prepared one of it."""
    return model if is_prepared(model) else prepare(model, config)


def copied(model: nn.Module) -> nn.Module:
    """A copy of a model that shares parameters and buffers with it, so that some can be replaced.

    What accelerate loads weights from is shared too.

    Raises:
        WrapError: a parameter has no values, and is not loaded when its module is called.
    """
    shared = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for name, module in model.named_modules():
        share_loaded(module, memo)
        if not is_offloaded(module) and any(p.is_meta for p in module.parameters(recurse=False)):
            raise WrapError(
                f"the weights of {name or 'the model'} are on the meta device, and no hook of its "
                "own loads them: offload single modules, without preload_module_classes"
            )
    before = vars(model).get(BEFORE_ROUNDING)
    memo[id(before)] = before
    return copy.deepcopy(model, memo)


def note_before_rounding(wrapped: nn.Module, before: nn.Module) -> None:
    """Keeps with a prepared model the one that it was before its weights were rounded."""
    vars(wrapped).setdefault(BEFORE_ROUNDING, before)  # no child: its names stay what they are


def before_rounding(wrapped: nn.Module) -> nn.Module:
    """A prepared model with the weights from before they were rounded, if they were."""
    kept: nn.Module = vars(wrapped).get(BEFORE_ROUNDING, wrapped)
    return kept


def float_copy(model: nn.Module, stage: str) -> nn.Module:
    """`copied`, for stages that rewrite float models.

    Raises:
        WrapError: the model is prepared already, or accelerate loads weights when they are needed.
    """
    if is_prepared(model):
        raise WrapError(f"{stage} rewrites a float model, and this one is prepared: run it earlier")
    for name, module in model.named_modules():
        if is_offloaded(module):
            raise WrapError(
                f"the weights of {name or 'the model'} are loaded when they are needed, and "
                f"{stage} rewrites several at a time: load the model into memory"
            )
    return copied(model)


def replace_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Gives a module a parameter of its own in place of one that it may share."""
    before: Tensor | None = getattr(module, name)
    if is_offloaded(module):
        replace_loaded(module, name, value if before is None else value.to(before.dtype))
        return
    dtype = value.dtype if before is None else before.dtype
    wanted = before is not None and before.requires_grad
    setattr(module, name, nn.Parameter(value.detach().to(dtype), requires_grad=wanted))


@contextmanager
def listening(
    modules: dict[str, nn.Module], hear: Callable[[str, nn.Module, Tensor, Tensor], None]
) -> Iterator[None]:
    """Tells of each call of some modules: (name, module, first input, output)."""

    def hook(name: str) -> Callable[..., None]:
        def tell(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            hear(name, module, next(iter((*args, *kwargs.values()))), output)

        return tell

    handles = [
        module.register_forward_hook(hook(name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run(model: nn.Module, batch: ModelInputs) -> None:
    """One forward over a calibration input, without a cache."""
    args, kwargs = call_arguments(batch)
    model(*args, **kwargs)


def set_unquantized(model: nn.Module) -> None:
    """Switches quantisation off in all wrappers."""
    for _, module in iter_wrappers(model):
        module.mode = Mode.NO_QUANT


def weighted_layers(model: nn.Module) -> dict[str, QuantModule]:
    """The prepared linear layers of a model by name, each once."""
    return {
        name: module
        for name, module in iter_wrappers(model)
        if isinstance(module, nn.Linear) and "weight" in module.points
    }
