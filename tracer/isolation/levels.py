"""Which modules are isolated: leaves, blocks, layers, or those that a glob names.

- `leaves`: every call of every module, and for a module that calls others what it computes in its
  own forward: every error is attributed to one of them.
- `layers`: the members of the outermost `nn.ModuleList`s, and of each `nn.Sequential` whose members
  are of one class and have modules of their own. Each is measured as a whole.
- `blocks`: the modules directly inside these layers that have modules of their own, such as
  attention and MLP; a layer without any is a block itself.
- a glob of the reference's names.
"""

import fnmatch
from collections.abc import Mapping

from torch import nn

from tracer.choices import LEVELS
from tracer.errors import UsageError, near_names
from tracer.execution.pairing import Pairing


def modules_at(level: str, pairing: Pairing) -> frozenset[str] | None:
    """The reference's names of the modules that a level chooses; None for all.

    Raises:
        UsageError: there are none.
    """
    if level == "leaves":
        return None
    names = frozenset(pairing.pairs.values())
    if level in LEVELS:
        layers = _layers(pairing.reference)
        chosen = names & (layers if level == "layers" else _blocks(layers, pairing.reference))
        if not chosen:
            raise UsageError(
                f"isolate {level!r}: the models have no lists of repeated modules in common; "
                "isolate leaves, or give a glob of module names"
            )
        return chosen
    matched = frozenset(fnmatch.filter(names, level))
    if not matched:
        raise UsageError(
            f"isolate {level!r} matches none of the {len(names)} modules that the models have in "
            f"common; expected {', '.join(LEVELS)}, or a glob of the reference's module names"
            f"{near_names(level, [*LEVELS, *sorted(names)])}"
        )
    return matched


def _layers(modules: Mapping[str, nn.Module]) -> frozenset[str]:
    found: set[str] = set()
    for name, module in modules.items():
        if is_repeated(module) and not any(name.startswith(f"{layer}.") for layer in found):
            members = _inside(name, module).items()
            # A list is never called: what is in it is.
            found.update(key for key, part in members if not isinstance(part, nn.ModuleList))
    return frozenset(found)


def is_repeated(module: nn.Module) -> bool:
    """Whether a module is a list of others that do the same kind of work."""
    if isinstance(module, nn.ModuleList):
        return True
    members = list(module.children())
    is_stack = len(members) > 1 and len({type(member) for member in members}) == 1
    return isinstance(module, nn.Sequential) and is_stack and any(members[0].children())


def _blocks(layers: frozenset[str], modules: Mapping[str, nn.Module]) -> frozenset[str]:
    found: set[str] = set()
    for layer in layers:
        inside = _inside(layer, modules[layer]) if layer in modules else {}
        found.update([name for name, child in inside.items() if any(child.children())] or [layer])
    return frozenset(found)


def _inside(name: str, module: nn.Module) -> dict[str, nn.Module]:
    """The children of a module by their names in the model."""
    return {f"{name}.{child}".lstrip("."): part for child, part in module.named_children()}
