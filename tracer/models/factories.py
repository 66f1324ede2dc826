"""A model that a function of the user's makes: `port.py:build`, or `package.module:build`.

    def build():
        return Port(), {"x": torch.randn(2, 8)}  # or the model alone

Instead of the function there may be a class without arguments, or a model. The
file's folder, or the working directory, comes first on the path of imports, as for a script. Code
of the user's is run: to name it is to trust it.
"""

import hashlib
import importlib
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from tracer.errors import ModelLoadError, near_names
from tracer.execution.limits import user_path
from tracer.execution.state import random_state_kept
from tracer.models.locate import factory_of
from tracer.text import first_line, listed


@dataclass(frozen=True)
class Built:
    """What a function has made.

    Attributes:
        model: as it was made: its dtype, device and mode are its own.
        inputs: keyword arguments for it; None if it came alone.
    """

    model: nn.Module
    inputs: dict[str, torch.Tensor] | None = None


def build(name: str, seed: int) -> Built:
    """Imports the code and calls the function.

    Args:
        name: "FILE.py:FUNCTION" or "MODULE:FUNCTION".
        seed: of PyTorch's random numbers meanwhile; the state around is left as it is.

    Raises:
        ModelLoadError: the code cannot be imported, or the function is not there, or raises, or
            returns something else than a model, or a model and its inputs.
    """
    factory = factory_of(name)
    assert factory is not None
    with random_state_kept():
        torch.manual_seed(seed)
        try:
            target: Any = _imported(factory[0])
        # Whatever the user's code raises; a script may end the process where it is imported.
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise ModelLoadError(
                f"{name}: {factory[0]} cannot be imported: {_in_words(error)}"
            ) from error
        for part in factory[1].split("."):
            target = _attribute(target, part, name)
        if isinstance(target, nn.Module):
            return Built(target)
        if not callable(target):
            raise ModelLoadError(
                f"{name} is a {type(target).__name__}: expected a function that makes a model"
            )
        torch.manual_seed(seed)  # whether or not the import was the first, and drew some
        try:
            made = target()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise ModelLoadError(f"{name} cannot be called: {_in_words(error)}") from error
    built = _checked(made, name)
    if any(parameter.is_meta for parameter in built.model.parameters()):
        raise ModelLoadError(
            f"{name} makes a model with parameters on the meta device, which have no values: let "
            "it load its weights"
        )
    return built


def _imported(place: str) -> ModuleType:
    if not place.endswith(".py"):
        _put_first(Path.cwd())
        return importlib.import_module(place)
    path = user_path(place).resolve()
    _put_first(path.parent)
    # The same file for both models is imported once, so that their classes are the same.
    digest = hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()
    name = f"{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _put_first(folder: Path) -> None:
    """It stays there: a model may import more when it is run."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _attribute(owner: object, part: str, name: str) -> object:
    try:
        return getattr(owner, part)
    except AttributeError as error:
        known = [key for key in vars(owner) if not key.startswith("_")]
        raise ModelLoadError(f"{name}: there is no {part!r}{near_names(part, known)}") from error


def _checked(made: object, name: str) -> Built:
    expected = "expected an nn.Module, or a pair of it and its inputs, tensors by name"
    if isinstance(made, nn.Module):
        return Built(made)
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise ModelLoadError(f"{name} returned a {type(made).__name__}: {expected}")
    model, inputs = made
    if not isinstance(inputs, Mapping):
        raise ModelLoadError(f"{name} returned inputs of type {type(inputs).__name__}: {expected}")
    others = [str(key) for key, value in inputs.items() if not isinstance(value, torch.Tensor)]
    if others or not inputs:
        found = f"{listed(others)} that are no tensors" if others else "no inputs"
        raise ModelLoadError(f"{name} returned {found}: {expected}")
    return Built(model, {str(key): value for key, value in inputs.items()})


def _in_words(error: BaseException) -> str:
    """What was raised, and where in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_of_others(frame.filename)]
    where = f", at {own[-1].filename}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {first_line(str(error)) or 'no message'}{where}"


def _is_of_others(file: str) -> bool:
    return file in (__file__, importlib.__file__) or "-packages" in file or file.startswith("<")
