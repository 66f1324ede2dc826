"""What the tracer uses of `torch.compile` that PyTorch does not promise; see `torch_internals`."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import _TorchCompileInductorWrapper as _InductorWrapper
from torch import nn

from tracer.execution.torch_internals import TORCH


@dataclass(frozen=True)
class CompileSettings:
    """What `torch.compile` was given for a module.

    Attributes:
        backend: makes code of a graph and its inputs.
        name: of the backend.
        fullgraph, dynamic: as for `torch.compile`.
        inline: modules of PyTorch's own are compiled as others are; by their method `compile` only
            what they call is.
    """

    backend: Callable[..., Any]
    name: str
    fullgraph: bool
    dynamic: bool | None
    inline: bool


def compile_settings(module: nn.Module) -> CompileSettings | None:
    """How a compiled module was compiled; None where nothing is: `torch.compiler.disable`."""
    from torch._dynamo.eval_frame import OptimizeContext, innermost_backend

    cells = getattr(module._compiled_call_impl, "__closure__", None) or ()
    held = [vars(module).get("dynamo_ctx"), *(cell.cell_contents for cell in cells)]
    context = next((each for each in held if isinstance(each, OptimizeContext)), None)
    if context is None or not callable(context.callback):
        return None
    backend = innermost_backend(context.callback)
    name = getattr(backend, "compiler_name", getattr(backend, "__name__", type(backend).__name__))
    inline = module._compiled_call_impl is None
    return CompileSettings(backend, name, context.fullgraph, context._dynamic, inline)


def compile_in_place(module: nn.Module, *, inline: bool, **how: Any) -> None:
    """Compiles a module as its method `compile` does.

    Args:
        inline: as for `CompileSettings`.
        **how: as for `torch.compile`.
    """
    if not inline or not inspect.getfile(type(module)).startswith(TORCH):
        module.compile(**how)
        return
    call = module._call_impl

    def inlined(*args: object, **kwargs: object) -> object:
        return call(*args, **kwargs)  # type: ignore[no-untyped-call]

    module._compiled_call_impl = torch.compile(inlined, **how)


def is_of_aot(backend: Callable[..., Any]) -> bool:
    """Whether a backend compiles what AOT autograd has made of a graph."""
    from torch._dynamo.backends.common import AotAutograd

    return isinstance(getattr(backend, "compiler_fn", backend), AotAutograd)


def inductor_options(backend: Callable[..., Any]) -> dict[str, Any] | None:
    """The options of inductor; None for another backend."""
    return dict(backend.config) if isinstance(backend, _InductorWrapper) else None


def with_inductor_options(
    backend: Callable[..., Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """A backend that takes inductor's part of the work, under options of inductor."""
    from torch._inductor import config

    def compiler(module: Any, inputs: Sequence[Any]) -> Any:
        with config.patch(dict(options)):
            return backend(module, inputs)

    return compiler


@contextmanager
def many_compiled() -> Iterator[None]:
    """Lets the same code be compiled as often as there are modules and stages: beyond a limit it
    would run as it is written, without a word."""
    from torch._dynamo import config

    limits = {"recompile_limit": 4096, "accumulated_recompile_limit": 65536}
    with config.patch(limits):
        yield


def dynamo_counts() -> tuple[int, dict[str, int]]:
    """How many graphs were made so far, and how often what broke one, by the reason."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], dict(counters["graph_break"])


def backend_called(name: str) -> Callable[..., Any]:
    """The backend that `torch.compile` knows by a name."""
    from torch._dynamo.backends.registry import lookup_backend

    found: Callable[..., Any] = lookup_backend(name)
    return found
