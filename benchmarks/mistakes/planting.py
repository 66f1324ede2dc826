"""Ways to plant a mistake in a copy of a model, and what a row of a table states about it."""

import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

Plant = Callable[[Any], None]
Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Mistake:
    """One planted mistake and the origin that must be found for it.

    Attributes:
        name: what was done, in a few words.
        plant: does it to a copy of the model.
        module: the module to be named; "" is the root.
        found: the argument that this module hands down wrongly; else "parameter" (something that
            it holds) or "computation" (its own lines).
        missed: why the verdict does not say so; the empty string for what is found.
    """

    name: str
    plant: Plant
    module: str
    found: str
    missed: str = ""


def reforward(path: str, forward: Callable[..., Any], **options: Any) -> Plant:
    """Replaces the forward of one module."""

    def plant(model: Any) -> None:
        module = model.get_submodule(path)
        module.forward = types.MethodType(_with_options(forward, **options), module)

    return plant


def recast(path: str, subclass: type) -> Plant:
    """Makes a module one of a class whose forward is another."""

    def plant(model: Any) -> None:
        module = model.get_submodule(path)
        module.__class__ = type(subclass.__name__, (subclass, type(module)), {})

    return plant


def helper(path: str, **functions: Callable[..., Any]) -> Plant:
    """Lets the forward of a module call other functions than those that its file defines.

    The file's own functions stay as they are, since the reference calls them too.
    """

    def plant(model: Any) -> None:
        module = model.get_submodule(path)
        decorated = type(module).forward
        own = inspect.unwrap(decorated)
        forward: Any = types.FunctionType(
            own.__code__,
            {**own.__globals__, **functions},
            own.__name__,
            own.__defaults__,
            own.__closure__,
        )
        forward.__kwdefaults__ = own.__kwdefaults__
        if decorated is not own:
            forward = merge_with_config_defaults(capture_outputs(forward))
        module.forward = types.MethodType(forward, module)

    return plant


def method(path: str, name: str, compute: Callable[..., Any]) -> Plant:
    """Replaces a method of a module; `compute` is given the module, its old method and what that
    was given."""

    def plant(model: Any) -> None:
        module = model.get_submodule(path)
        own = getattr(module, name)
        setattr(module, name, lambda *args, **kwargs: compute(module, own, *args, **kwargs))

    return plant


def after(path: str, change: Change) -> Plant:
    """Changes what one module's own forward returns."""
    return method(path, "forward", lambda _, own, *args, **kwargs: change(own(*args, **kwargs)))


def given(path: str, first: Change | None = None, **arguments: Change) -> Plant:
    """Lets the caller hand a module something else: as its first positional argument or by name."""

    def pre_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = args if first is None else (first(args[0]), *args[1:])
        new = {name: change(kwargs[name]) for name, change in arguments.items()}
        return changed, {**kwargs, **new}

    def plant(model: Any) -> None:
        model.get_submodule(path).register_forward_pre_hook(pre_hook, with_kwargs=True)

    return plant


def assign(path: str, name: str, change: Change) -> Plant:
    """Changes a plain attribute of one module."""

    def plant(model: Any) -> None:
        module = model.get_submodule(path)
        setattr(module, name, change(getattr(module, name)))

    return plant


def parameter(
    path: str, change: Callable[[torch.Tensor], torch.Tensor], name: str = "weight"
) -> Plant:
    """Gives one module another parameter than the reference has."""

    def plant(model: Any) -> None:
        module = model.get_submodule(path)
        value = change(getattr(module, name).detach().clone())
        setattr(module, name, nn.Parameter(value, requires_grad=False))

    return plant


def buffer(path: str, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Plant:
    """Gives one module another buffer than the reference has."""
    return assign(path, name, lambda value: change(value.clone()))


def take(path: str, other: str, name: str = "weight") -> Plant:
    """Gives one module the parameter of another one."""

    def plant(model: Any) -> None:
        value = getattr(model.get_submodule(other), name).detach().clone()
        setattr(model.get_submodule(path), name, nn.Parameter(value, requires_grad=False))

    return plant


def child(path: str, make: Callable[[Any], nn.Module]) -> Plant:
    """Puts another module in the place of one."""

    def plant(model: Any) -> None:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, make(model.get_submodule(path)))

    return plant


def exchange(first: str, second: str) -> Plant:
    """Puts two modules in each other's place."""

    def plant(model: Any) -> None:
        modules = [model.get_submodule(path) for path in (first, second)]
        for path, module in zip((second, first), modules, strict=True):
            parent, _, name = path.rpartition(".")
            model.get_submodule(parent)._modules[name] = module

    return plant


def together(*plants: Plant) -> Plant:
    """Does several things to the same model."""

    def plant(model: Any) -> None:
        for each in plants:
            each(model)

    return plant


def everywhere(kind: str, plant_at: Callable[[str], Plant]) -> Plant:
    """Does the same to all modules whose class has `kind` in its name."""

    def plant(model: Any) -> None:
        for path, module in list(model.named_modules()):
            if kind in type(module).__name__:
                plant_at(path)(model)

    return plant


def _with_options(forward: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs, **options)

    return method
