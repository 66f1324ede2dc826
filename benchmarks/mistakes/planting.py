"""Ways to plant a mistake in a copy of a model, and what a row of a table states about it."""

import inspect
import linecache
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType
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
            it holds) or "computation" (its own forward).
        missed: why the verdict does not say so; the empty string for what is found.
        line: a piece of the text of the culprit's line, where the planted code does not say which it
            is: an attribute was changed, a part is not used, or another module is called.
        train: whether it leaves dropout active, which a comparison refuses unless it is asked for.
    """

    name: str
    plant: Plant
    module: str
    found: str
    missed: str = ""
    line: str = ""
    train: bool = False

    @property
    def is_in_own_lines(self) -> bool:
        """Whether it is planted in the forward of the module itself."""
        return self.found == "computation" and not self.missed

    def is_at(self, file: str, number: int, text: str) -> bool:
        """Whether a line of source is the one where the mistake was planted.

        It contains `line`; where that is not given it is one of the lines of the planted functions:
        of those with the comment `# wrong`, where there are any.
        """
        if self.line:
            return self.line in text
        return (file, number) in set(planted_lines(self.plant))


MARK = "# wrong"


def planted_lines(plant: Plant) -> Iterator[tuple[str, int]]:
    """The lines of the functions that a plant puts in, each as (file, number)."""
    for function in _functions(_planted(plant)):
        lines = list(_lines(function.__code__))
        marked = [line for line in lines if MARK in linecache.getline(*line)]
        yield from marked or lines


def _functions(values: Iterable[Any], seen: tuple[Any, ...] = ()) -> Iterator[Any]:
    """The functions among some values, in classes of ours too, and what they have closed over."""
    for value in values:
        if any(value is each for each in seen):
            continue
        if inspect.isclass(value) and value.__module__.startswith(__package__):
            yield from _functions(vars(value).values(), (*seen, value))
            continue
        function = inspect.unwrap(value) if callable(value) else value
        if inspect.isfunction(function):
            yield function
            cells = function.__closure__ or ()
            yield from _functions((cell.cell_contents for cell in cells), (*seen, value))


def _lines(code: CodeType) -> Iterator[tuple[str, int]]:
    numbers = {number for *_, number in code.co_lines() if number}
    yield from ((code.co_filename, number) for number in numbers)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _lines(inner)


def _planting(*functions: Any) -> Callable[[Plant], Plant]:
    """Says which functions a plant puts in; without any, its code does not say the line."""

    def noted(plant: Plant) -> Plant:
        plant.functions = functions  # type: ignore[attr-defined]
        return plant

    return noted


def reforward(path: str, forward: Callable[..., Any], **options: Any) -> Plant:
    """Replaces the forward of one module."""

    @_planting(*(options.values() if options else (forward,)))
    def plant(model: Any) -> None:
        module = model.get_submodule(path)
        module.forward = types.MethodType(_with_options(forward, **options), module)

    return plant


def recast(path: str, subclass: type) -> Plant:
    """Makes a module one of a class whose forward is another."""

    @_planting(subclass.__dict__["forward"])
    def plant(model: Any) -> None:
        module = model.get_submodule(path)
        module.__class__ = type(subclass.__name__, (subclass, type(module)), {})

    return plant


def helper(path: str, **functions: Callable[..., Any]) -> Plant:
    """Lets the forward of a module call other functions than those that its file defines.

    The file's own functions stay as they are, since the reference calls them too.
    """

    @_planting(*functions.values())
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

    @_planting(compute)
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

    @_planting(first, *arguments.values())
    def plant(model: Any) -> None:
        model.get_submodule(path).register_forward_pre_hook(pre_hook, with_kwargs=True)

    return plant


def assign(path: str, name: str, change: Change) -> Plant:
    """Changes a plain attribute of one module."""

    @_planting()
    def plant(model: Any) -> None:
        module = model.get_submodule(path)
        setattr(module, name, change(getattr(module, name)))

    return plant


def parameter(
    path: str, change: Callable[[torch.Tensor], torch.Tensor], name: str = "weight"
) -> Plant:
    """Gives one module another parameter than the reference has."""

    @_planting()
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

    @_planting()
    def plant(model: Any) -> None:
        value = getattr(model.get_submodule(other), name).detach().clone()
        setattr(model.get_submodule(path), name, nn.Parameter(value, requires_grad=False))

    return plant


def child(path: str, make: Callable[[Any], nn.Module]) -> Plant:
    """Puts another module instead of one."""

    @_planting()
    def plant(model: Any) -> None:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, make(model.get_submodule(path)))

    return plant


def exchange(first: str, second: str) -> Plant:
    """Puts two modules in each other's place."""

    @_planting()
    def plant(model: Any) -> None:
        modules = [model.get_submodule(path) for path in (first, second)]
        for path, module in zip((second, first), modules, strict=True):
            parent, _, name = path.rpartition(".")
            model.get_submodule(parent)._modules[name] = module

    return plant


def together(*plants: Plant) -> Plant:
    """Does several things to the same model."""

    @_planting(*(function for each in plants for function in _planted(each)))
    def plant(model: Any) -> None:
        for each in plants:
            each(model)

    return plant


def everywhere(kind: str, plant_at: Callable[[str], Plant]) -> Plant:
    """Does the same to all modules whose class has `kind` in its name."""

    @_planting(*_planted(plant_at("")))
    def plant(model: Any) -> None:
        for path, module in list(model.named_modules()):
            if kind in type(module).__name__:
                plant_at(path)(model)

    return plant


def _planted(plant: Plant) -> tuple[Any, ...]:
    return getattr(plant, "functions", (plant,))


def _with_options(forward: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs, **options)

    return method
