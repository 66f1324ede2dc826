"""The parameters that a forward edits in place, as its code reads."""

import dis
from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import CodeType, FunctionType

from torch import nn

from tracer.execution.walks import modules_of


def may_edit_parameters(model: nn.Module) -> bool:
    """Whether a forward inside a model is seen to edit parameters in place."""
    return bool(edited_parameters(modules_of(model)))


def edited_parameters(modules: Iterable[nn.Module]) -> set[int]:
    """The parameters that some forward around them is seen to edit in place."""
    found: set[int] = set()
    for module in modules:
        for name in _edited_names(type(module)):  # type: ignore[arg-type]
            found.update(
                id(parameter)
                for path, parameter in module.named_parameters()
                if name in ("data", "parameters") or path.rpartition(".")[2] == name
            )
    return found


@lru_cache(maxsize=4096)
def _edited_names(kind: type[nn.Module]) -> frozenset[str]:
    """Attributes whose values a module's forward edits in place, as its code reads."""
    found: set[str] = set()
    waiting, seen = ["forward"], set()
    while waiting:
        name = waiting.pop()
        function = getattr(kind, name, None)
        if name in seen or not isinstance(function, FunctionType):
            continue
        seen.add(name)
        if str(function.__module__).split(".")[0] == "torch":
            continue
        for code in _codes(function.__code__):
            waiting += code.co_names
            found |= _edited_in(code)
    return frozenset(found)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _edited_in(code: CodeType) -> set[str]:
    """`self.weight.mul_(2)`, `self.weight.data[0] = 1`, `for p in self.parameters(): p.mul_(2)`."""
    found: set[str] = set()
    recent: list[str] = []
    edits = False
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            name = str(step.argval)
            if name.endswith("_") and not name.endswith(("__", "requires_grad_")):
                found.update(recent[-1:])
                edits = True
            recent.append(name)
        elif step.opname == "STORE_SUBSCR":
            found.update(recent[-2:])
            recent.clear()
        elif step.opname == "BINARY_OP" and step.argrepr.endswith("="):
            found.update(recent[-2:])
        elif step.opname.startswith("STORE") or step.opname == "POP_TOP":
            recent.clear()
    loops = {"parameters", "named_parameters"} & set(code.co_names)
    return found | ({"parameters"} if loops and edits else set())
