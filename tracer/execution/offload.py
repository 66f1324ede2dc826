"""Models whose weights lie elsewhere until they are needed: on disk, or in the memory of the CPU.

    loaded = tracer.models.load("organisation/name", offload=True)

accelerate puts a hook around the forward of each module, which loads the module's own parameters
before it, and lets go of them after it; in between they lie on the meta device, without values.
What looks at parameters while no module runs reads them through the module's hook, one at a time.
The hooks are known by their attributes, so that nothing here needs accelerate but what makes them.
"""

import copy
import logging
import shutil
import tempfile
import weakref
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tracer.execution.torch_internals import (
    accelerate_hook,
    buffers_of,
    loading_hook,
    offloaded_weights,
    refusals_to_move,
)
from tracer.execution.walks import modules_of
from tracer.tensors.dequantised import dequantised


def is_offloaded(model: nn.Module) -> bool:
    """Whether any parameters of a model are loaded when they are needed, by accelerate's hooks."""
    return any(True for _ in _hooks(model))


def value_of(module: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A parameter or buffer of a module with its values, loaded and dequantised where need be.

    Args:
        name: of the tensor; it may belong to a module inside.

    Returns:
        The tensor itself where it has values, or none can be had.
    """
    if not tensor.is_meta:
        return dequantised(tensor)
    path, _, own = name.rpartition(".")
    hook = loading_hook(module.get_submodule(path))
    loaded = None if hook is None else hook.weights_map.get(own)
    return tensor if loaded is None else loaded.to(tensor.dtype)


def own_parameters(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A module's own parameters with their values, loaded one after the other."""
    for name, parameter in module.named_parameters(recurse=False):
        yield name, value_of(module, name, parameter)


def load_instead(module: nn.Module, name: str, value: torch.Tensor) -> Callable[[], None]:
    """Lets a module's hook load other values for a parameter; returns what ends that."""
    hook = loading_hook(module)
    if hook is None:
        return lambda: None
    before = hook.weights_map
    hook.weights_map = ChainMap({name: value}, before)

    def undo() -> None:
        hook.weights_map = before

    return undo


def copy_model(
    model: nn.Module,
    shared: Iterable[torch.Tensor] = (),
    aliases: Mapping[int, torch.Tensor] | None = None,
) -> Any:
    """A copy of a model of any kind; offloaded weights stay where they are, for both to load.

    Args:
        shared: tensors that the copy is to hold as well, not copies of them.
        aliases: by `id` of a tensor, what the copy is to hold instead.
    """
    maps = (hook.weights_map for hook in _hooks(model))
    kept: dict[int, object] = {id(value): value for value in (*shared, *maps)}
    kept.update(aliases or {})
    made = copy.deepcopy(model, kept)
    for module in made.modules():
        # They would move the original.
        for name in refusals_to_move(module):
            del vars(module)[name]
    return made


def unshare_offloaded(reference: nn.Module, candidate: nn.Module) -> nn.Module:
    """The candidate, or a copy_model of it where both load weights into modules that they share.

    The one that is through with a module first would let go of the weights under the other.
    """
    modules = {id(module) for module in modules_of(reference)}
    if any(id(module) in modules and loading_hook(module) for module in modules_of(candidate)):
        made: nn.Module = copy_model(candidate, (*candidate.parameters(), *candidate.buffers()))
        return made
    return candidate


def lacks_values(module: nn.Module) -> bool:
    """Whether any parameters lie on the meta device for good."""
    return any(
        parameter.is_meta and loading_hook(inner) is None
        for inner in module.modules()
        for parameter in inner.parameters(recurse=False)
    )


def execution_device(model: nn.Module) -> torch.device:
    """Where a model computes: on the device of its parameters while it does."""
    for hook in _hooks(model):
        return torch.device(hook.execution_device)
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def weights_folder(place: str | Path | None) -> Iterator[str]:
    """A new folder for weights that a checkpoint does not hold as they are needed.

    It is removed if anything is raised, and else with the model; see `remove_with`.

    Args:
        place: the folder to make it in; the system's for temporary files if None.
    """
    around = None if place is None else Path(place).expanduser()
    folder = tempfile.mkdtemp(prefix="trace_model_weights_", dir=around)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def remove_with(model: nn.Module, folder: str) -> None:
    """Removes a folder when an offloaded model and all its copies are gone."""
    weakref.finalize(_source(model), shutil.rmtree, folder, ignore_errors=True)


def index_tied_weights(model: nn.Module) -> None:
    """Lets tied weights be found under each of their names.

    Where transformers has to write weights to the folder, it writes one of them.
    """
    index = _source(model).index
    for names in getattr(model, "all_tied_weights_keys", {}).items():
        written = [index[name] for name in names if name in index]
        index.update(dict.fromkeys(names, written[0]))


def from_disk(model: nn.Module, folder: str, device: torch.device) -> None:
    """Writes a model's weights into a folder, to be loaded from there when they are needed."""
    from accelerate import disk_offload

    disk_offload(model, folder, execution_device=device)


def compute_on(model: nn.Module, device: torch.device) -> None:
    """Lets an offloaded model compute on a device."""
    for module in model.modules():
        hook = accelerate_hook(module)
        if hook is None:
            continue
        hook.execution_device = device
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_meta:
                buffers_of(module)[name] = buffer.to(device)


@contextmanager
def quiet_accelerate() -> Iterator[None]:
    """Without accelerate's warning that parameters lie on the meta device."""
    logger = logging.getLogger("accelerate")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _source(model: nn.Module) -> Any:
    """What all hooks of a model read from, each through a view of its own."""
    return next(offloaded_weights(hook) for hook in _hooks(model))


def _hooks(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        hook = loading_hook(module)
        if hook is not None:
            yield hook
