"""Which wrapper stands for which float class, in which variant.

    @register(nn.Linear)                                # the same in every variant
    @register(LlamaAttention, variant="prefill")        # this variant only
    @register("torch.nn.GELU")                          # by path: skipped if torch is not there

A look-up takes the exact variant, then `common`. A class matches only itself: a subclass may
compute something else, and needs a registration of its own. A family's wrappers are imported when
a class of the package that they are for is looked up.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from wrappers.core.module import QuantModule
from wrappers.errors import DuplicateWrapperError, MissingWrapperError, StaleWrapperError

COMMON = "common"

WrapperType = TypeVar("WrapperType", bound=type[QuantModule])

_WRAPPERS: dict[tuple[type[nn.Module], str], type[QuantModule]] = {}
# The modules that register wrappers, by the packages of the classes that these are for.
_FAMILIES: dict[str, str] = {}


def register(
    float_class: type[nn.Module] | str, *, variant: str = COMMON
) -> Callable[[WrapperType], WrapperType]:
    """A class decorator that makes the class the wrapper of `float_class`.

    Args:
        float_class: the class, or its dotted path for a package that may not be installed.
        variant: the form that the wrapper is; `common` for all that have none of their own.

    Raises:
        DuplicateWrapperError: the class has another wrapper in this variant.
        StaleWrapperError: the path's package is installed and has no such class.
    """
    resolved = _resolve(float_class) if isinstance(float_class, str) else float_class
    if resolved is not None:
        _import_family(resolved)

    def decorate(wrapper: WrapperType) -> WrapperType:
        if resolved is None:
            return wrapper
        present = _WRAPPERS.setdefault((resolved, variant), wrapper)
        if present is not wrapper:
            raise DuplicateWrapperError(
                f"{_path(resolved)} already has the wrapper {_path(present)} in the variant "
                f"{variant!r}: {_path(wrapper)} needs another class or variant"
            )
        return wrapper

    return decorate


def register_family(package: str, module: str) -> None:
    """Makes a module the one that registers the wrappers of a package's classes.

    Raises:
        DuplicateWrapperError: the package's classes have another such module.
    """
    present = _FAMILIES.setdefault(package, module)
    if present != module:
        raise DuplicateWrapperError(f"{present} is for the classes of {package}, and not {module}")


def has_wrapper(float_class: type[nn.Module]) -> bool:
    """The class has a wrapper in some variant."""
    _import_family(float_class)
    return any(registered is float_class for registered, _ in _WRAPPERS)


def wrapped_classes() -> list[type[nn.Module]]:
    """The classes that have a wrapper in some variant, in the order of their registration."""
    for module in _FAMILIES.values():
        importlib.import_module(module)
    return list(dict.fromkeys(float_class for float_class, _ in _WRAPPERS))


def float_class_of(wrapper: type[nn.Module]) -> type[nn.Module]:
    """The class that a wrapper stands for; of a class that is no wrapper, the class itself."""
    found = (float_class for (float_class, _), each in _WRAPPERS.items() if each is wrapper)
    return next(found, wrapper)


def lookup(float_class: type[nn.Module], variant: str) -> type[QuantModule]:
    """The wrapper of a class: of the exact variant, else the common one.

    Raises:
        MissingWrapperError: there is neither.
    """
    _import_family(float_class)
    for candidate in (variant, COMMON):
        wrapper = _WRAPPERS.get((float_class, candidate))
        if wrapper is not None:
            return wrapper
    variants = [name for registered, name in _WRAPPERS if registered is float_class]
    if variants:
        raise MissingWrapperError(
            f"{_path(float_class)} has no wrapper in the variant {variant!r}; it has "
            f"{', '.join(sorted(variants))}"
        )
    classes = sorted(map(_path, wrapped_classes()))
    raise MissingWrapperError(
        f"{_path(float_class)} has no wrapper; these classes have one: {', '.join(classes)}"
    )


def _import_family(float_class: type[nn.Module]) -> None:
    """Imports what registers the wrappers of a class, if it is of a family."""
    for package, module in _FAMILIES.items():
        if f"{float_class.__module__}.".startswith(f"{package}."):
            importlib.import_module(module)


def _resolve(path: str) -> type[nn.Module] | None:
    """The class at a dotted path; None if its package is not installed."""
    module_name, _, class_name = path.rpartition(".")
    if importlib.util.find_spec(path.partition(".")[0]) is None:
        return None
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise StaleWrapperError(
            f"a wrapper is registered for {path}, which the installed package does not have "
            f"({error}): it was renamed or removed; register the wrapper for its successor"
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise StaleWrapperError(f"a wrapper is registered for {path}, which is no nn.Module class")
    return found


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
