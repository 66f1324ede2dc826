"""Modules of many kinds, and a photograph of everything that one holds."""

import copy
import random
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

X = {"x": torch.arange(8.0).reshape(2, 4) / 8}


class Zoo(nn.Module):
    """One linear module, and a forward that does something to what the model holds."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.other = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("counter", torch.zeros(3))
        self.plain = torch.zeros(4)
        self.items: list[Any] = [0, [1, {"deep": [2]}]]
        self.by_name = {"b": 1, "a": torch.zeros(2)}
        self.queue = deque([1, 2], maxlen=2)
        self.names = {"x"}
        self.array = np.zeros(3)
        self.settings = SimpleNamespace(count=0, inner=SimpleNamespace(seen=[]))
        self.generator = torch.Generator().manual_seed(3)

    def change(self) -> None:
        """What a forward does beside computing."""

    def forward(self, x: Tensor) -> Tensor:
        self.change()
        y: Tensor = self.a(x)
        return y


class Ema(Zoo):
    def forward(self, x: Tensor) -> Tensor:
        kept = self.a.weight.data
        self.a.weight.data = self.other.data
        try:
            y: Tensor = self.a(x)
            return y
        finally:
            self.a.weight.data = kept


class Swapped(Zoo):
    """Swaps for good."""

    def change(self) -> None:
        self.a.weight.data, self.other.data = self.other.data, self.a.weight.data


class Functional(Zoo):
    def forward(self, x: Tensor) -> Tensor:
        doubled = {"weight": self.a.weight * 2}
        y: Tensor = torch.func.functional_call(self.a, doubled, (x,))
        return y


class Scaled(Zoo):
    """Edits a weight and puts it back."""

    def forward(self, x: Tensor) -> Tensor:
        self.a.weight.data.mul_(2.0)
        y: Tensor = self.a(x)
        self.a.weight.data.mul_(0.5)
        return y


class Grows(Zoo):
    def change(self) -> None:
        self.other.mul_(1.5)


class AllGrow(Zoo):
    def change(self) -> None:
        for parameter in self.parameters():
            parameter.data.add_(1.0)


class Tied(Zoo):
    def change(self) -> None:
        self.a.weight = self.other


class Contents(Zoo):
    def change(self) -> None:
        self.plain += 1
        self.counter.add_(1)
        self.items[0] += 1
        self.items[1][1]["deep"].append(3)
        self.by_name["a"].add_(1)
        self.by_name["new"] = 2
        del self.by_name["b"]
        self.queue.append(3)
        self.names.add("y")
        self.array += 1
        self.settings.count += 1
        self.settings.inner.seen.append(1)
        torch.rand(1, generator=self.generator)


class Lazy(Zoo):
    """Makes a module and a hook when it is first called."""

    def change(self) -> None:
        if not hasattr(self, "made"):
            self.made = nn.Identity()
            self.a.register_forward_hook(lambda module, args, output: output + 1)


class Flags(Zoo):
    def change(self) -> None:
        self.a.bias.requires_grad_(False)
        self.a.train(not self.a.training)


ZOO = (Ema, Swapped, Functional, Scaled, Grows, AllGrow, Tied, Contents, Lazy, Flags)


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def photograph(value: Any, seen: frozenset[int] = frozenset()) -> Any:
    """Everything that a module holds, as values that compare."""
    if id(value) in seen:
        return "again"
    inside = seen | {id(value)}
    if isinstance(value, Tensor):
        values = value.detach().reshape(-1).tolist()
        return id(value), value.data_ptr(), values, value.requires_grad
    if isinstance(value, np.ndarray):
        return id(value), value.tolist()
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, dict):
        return id(value), [(key, photograph(item, inside)) for key, item in value.items()]
    if isinstance(value, list | tuple | deque | set):
        return type(value), [photograph(item, inside) for item in value]
    if isinstance(value, nn.Module | SimpleNamespace):
        return type(value), photograph(vars(value), inside)
    return value if isinstance(value, int | float | str | bool | None) else id(value)


def recurrent(kind: type[nn.Module]) -> Callable[[], nn.Module]:
    class Recurrent(nn.Module):
        """Goes on from where it was."""

        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(4, 4)
            self.state: Any = None

        def forward(self, x: Tensor) -> Any:
            output = self.cell(x) if self.state is None else self.cell(x, self.state)
            self.state = output[1] if isinstance(self.cell, nn.RNNBase) else output
            return output

    return Recurrent


LIBRARY: dict[str, Callable[[], nn.Module]] = {
    **{kind.__name__: recurrent(kind) for kind in (nn.RNN, nn.GRU, nn.LSTM, nn.GRUCell)},
    **{kind.__name__: recurrent(kind) for kind in (nn.LSTMCell, nn.RNNCell)},
    "batch norm": lambda: nn.BatchNorm1d(4),
    "cumulative batch norm": lambda: nn.BatchNorm1d(4, momentum=None),
    "instance norm": lambda: nn.InstanceNorm1d(2, affine=True, track_running_stats=True),
    "layer norm": lambda: nn.LayerNorm(4),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "rms norm": lambda: nn.RMSNorm(4),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)),
    "random relu": lambda: nn.RReLU(),
    "prelu": lambda: nn.PReLU(),
    "convolution": lambda: nn.Conv1d(2, 2, 1),
    "encoder layer": lambda: nn.TransformerEncoderLayer(4, 2, 4, 0.0, batch_first=True),
    "nested": lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4), nn.ELU())),
    "shared": lambda: nn.Sequential(*[nn.Linear(4, 4)] * 2),
}


def wrapped(module: Callable[[], nn.Module], shape: tuple[int, ...]) -> Callable[[], nn.Module]:
    """A module that takes another shape than [2, 4], fed from it."""

    class Shaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module()

        def forward(self, x: Tensor) -> Any:
            return self.inner(x.repeat(1, 32).reshape(-1)[: torch.Size(shape).numel()].view(shape))

    return Shaped


def with_hook(kind: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Zoo()
        for module in (model, model.a):
            getattr(module, kind)(lambda *_: None)
        return model

    return make


def changing(change: Callable[[Any], object]) -> Callable[[], nn.Module]:
    """A module whose forward does something to itself or to PyTorch's settings."""

    class Changing(Zoo):
        def change(self) -> None:
            change(self)

    return Changing


HOOKS = (
    *("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"),
    *("register_full_backward_pre_hook", "register_state_dict_post_hook"),
    *("register_state_dict_pre_hook", "register_load_state_dict_post_hook"),
)
PLAIN = (
    *(
        nn.Identity,
        nn.ReLU,
        nn.GELU,
        nn.SiLU,
        nn.Tanh,
        nn.Sigmoid,
        nn.Softplus,
        nn.Hardtanh,
        nn.ELU,
    ),
    *(nn.SELU, nn.CELU, nn.Mish, nn.LogSigmoid, nn.Softsign, nn.Hardswish, nn.Flatten),
)
CHANGES: dict[str, Callable[[Any], object]] = {
    "grad mode": lambda m: torch.set_grad_enabled(True),
    "autocast": lambda m: torch.set_autocast_enabled("cpu", True),
    "default dtype": lambda m: torch.set_default_dtype(torch.float64),
    "random state": lambda m: torch.rand(3),
    "new attribute": lambda m: setattr(m, "later", [torch.ones(2)]),
    "new parameter": lambda m: m.register_parameter("later", nn.Parameter(torch.ones(2))),
    "new buffer": lambda m: m.register_buffer("later", torch.ones(2)),
    "lost attribute": lambda m: m.__dict__.pop("names", None),
    "replaced tensor": lambda m: setattr(m, "plain", m.plain + 1),
    "resized list": lambda m: m.items.extend([1, 2]),
    "training flag": lambda m: m.train(),
    "replaced module": lambda m: setattr(m, "a", copy.copy(m.a)),
}
MODULES: dict[str, Callable[[], nn.Module]] = {
    **{kind.__name__: kind for kind in ZOO},
    **LIBRARY,
    **{kind.__name__: kind for kind in PLAIN},
    **{f"hook: {kind}": with_hook(kind) for kind in HOOKS},
    **{f"changes: {name}": changing(change) for name, change in CHANGES.items()},
    "convolution 2d": wrapped(lambda: nn.Conv2d(2, 2, 2), (1, 2, 4, 4)),
    "transposed convolution": wrapped(lambda: nn.ConvTranspose1d(2, 2, 2), (1, 2, 4)),
    "batch norm 2d": wrapped(lambda: nn.BatchNorm2d(2), (2, 2, 2, 2)),
    "pooling": wrapped(lambda: nn.MaxPool1d(2), (1, 2, 4)),
    "adaptive pooling": wrapped(lambda: nn.AdaptiveAvgPool2d(1), (1, 2, 4, 4)),
    "unfold": wrapped(lambda: nn.Unfold(2), (1, 2, 4, 4)),
    "pixel shuffle": wrapped(lambda: nn.PixelShuffle(2), (1, 4, 2, 2)),
}
"""By name: what each makes takes X["x"]."""


def settings() -> tuple[object, ...]:
    """What of PyTorch's and Python's state a run could leave changed."""
    return (
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        threading.active_count(),
        random.getstate(),
        [part.tolist() for part in np.random.get_state()[1:2]],
        sys.gettrace(),
    )
