"""Finds the adapter of a module, by its type; no library is imported that is not there already."""

from collections.abc import Iterator

from torch import nn

from tracer.adapters.quantised import compressed, torchao, wrapq
from tracer.adapters.quantised.adapter import Adapter
from tracer.execution.walks import named_modules_of


def adapter_of(module: nn.Module) -> Adapter | None:
    """What is known of a module that others quantised; None for any other."""
    found = torchao.adapter_of(module) or compressed.adapter_of(module) or wrapq.adapter_of(module)
    return found if found is not None and found.tensors else None


def adapters(model: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """The modules of a model that others quantised, each once, by the outermost name."""
    seen: set[nn.Module] = set()
    for name, module in named_modules_of(model):
        adapter = adapter_of(module)
        if adapter is not None and adapter.module not in seen:
            seen.add(adapter.module)
            yield name, adapter


def is_quantized(model: nn.Module) -> bool:
    """Whether others quantised any module of a model."""
    return any(True for _ in adapters(model))


def settle(*models: nn.Module) -> None:
    """Brings models into the state in which they compute, where their first forward would do so."""
    for model in models:
        compressed.settle(model)
