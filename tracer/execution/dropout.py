"""Training mode: dropout that is active, on which two models agree only if both draw alike.

>>> list(active_dropout(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1)).train()))
[Dropout(module='1', setting='p', rate=0.1)]

A comparison refuses it unless it is asked for; then every paired call draws from a stream of its
own on both sides (`tracer.execution.state.RandomNumbers`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from tracer.errors import UsageError
from tracer.execution.standin import StandIn
from tracer.execution.walks import modules_of, named_modules_of
from tracer.text import module_in_words

_DROPOUT = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


@dataclass(frozen=True)
class Dropout:
    """A module that draws random numbers in the mode that it is in.

    Attributes:
        module: its name.
        setting: the attribute that says how often it drops.
        rate: its value, above 0.
    """

    module: str
    setting: str
    rate: float

    def __str__(self) -> str:
        return f"{module_in_words(self.module)} drops out ({self.setting} {self.rate:g})"


def active_dropout(model: nn.Module) -> Iterator[Dropout]:
    """The modules in training mode that drop out at random.

    Those are PyTorch's own, and modules with an attribute named for it ("attention_dropout",
    "drop_prob", "layerdrop") that is above 0. Other random numbers cannot be seen from outside.
    """
    for name, module in named_modules_of(model):
        if not module.training or _is_computed_elsewhere(module):
            continue
        for setting, value in vars(module).items():
            is_rate = isinstance(value, float | int) and not isinstance(value, bool)
            if is_rate and 0.0 < value <= 1.0 and _is_of_dropout(module, setting):
                yield Dropout(name, setting, value)


def check_training(reference: nn.Module, candidate: nn.Module, *, train: bool) -> None:
    """Checks that random numbers are drawn only where they were asked for, and can be alike.

    Raises:
        UsageError: dropout is active and training was not asked for; it was, and neither model is
            in training mode, or one is a recording; or the models draw on different devices.
    """
    sides = ("reference", reference), ("candidate", candidate)
    recordings = [m.label for _, m in sides if isinstance(m, StandIn) and not m.computes]
    if train and recordings:
        raise UsageError(
            f"train=True: {recordings[0]} is a recording, whose random numbers are not known: "
            "give a model instead"
        )
    if train and not any(module.training for module in modules_of(reference, candidate)):
        raise UsageError(
            "train=True, and neither model is in training mode: call .train() on both before, or "
            "leave train out"
        )
    found = [(side, next(active_dropout(model), None)) for side, model in sides]
    drops = [f"{dropout} in the {side}" for side, dropout in found if dropout is not None]
    if drops and not train:
        raise UsageError(
            f"{drops[0]}, which is in training mode: call .eval() on both models before, or give "
            "train=True for the same random numbers on both sides"
        )
    if drops and len(devices := _device_types(reference, candidate)) > 1:
        raise UsageError(
            f"{drops[0]}, and the models are on {' and '.join(sorted(devices))}, which never draw "
            "the same random numbers: compare them on one device, or call .eval() on both before"
        )


def _is_computed_elsewhere(module: nn.Module) -> bool:
    return isinstance(module, StandIn) and not module.computes


def _is_of_dropout(module: nn.Module, setting: str) -> bool:
    if isinstance(module, _DROPOUT):
        return setting == "p"
    if isinstance(module, nn.RNNBase) and module.num_layers == 1:
        return False  # it drops between layers
    return "drop" in setting.lower()


def _device_types(*models: nn.Module) -> set[str]:
    tensors: list[torch.Tensor] = [tensor for model in models for tensor in model.parameters()]
    return {tensor.device.type for tensor in tensors} - {"meta"}
