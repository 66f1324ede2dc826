"""Where operations belong that say nothing themselves: by what is around them, and by weights."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import nn

from tracer.adapters.calls import Module

Stack = tuple[Module, ...]
# Of what two tensors have in common, so that the many of a model are not compared with each other.
_Key = tuple[int, float]


def filled(
    takes: Sequence[Sequence[str]],
    makes: Sequence[Sequence[str]],
    stacks: Sequence[Stack | None],
    is_silent: Sequence[bool],
) -> list[Stack]:
    """The modules of each operation; of those that say nothing, what they follow.

    They belong to what makes the values that they take, else to what all who take theirs have in
    common.

    Args:
        takes, makes: the values of each operation.
        stacks: what each says; None for nothing.
        is_silent: of those, which are to be left with the model itself.
    """
    found = list(stacks)
    users: dict[str, list[int]] = defaultdict(list)
    for index, taken in enumerate(takes):
        for name in taken:
            users[name].append(index)
    makers: dict[str, int] = {}
    for index, taken in enumerate(takes):
        if found[index] is None and not is_silent[index]:
            before = [found[makers[name]] for name in taken if name in makers]
            found[index] = _common(before)
        makers.update(dict.fromkeys(makes[index], index))
    for index in reversed(range(len(takes))):
        if found[index] is None and not is_silent[index]:
            found[index] = _common([found[user] for name in makes[index] for user in users[name]])
    return [stack or () for stack in found]


def _common(stacks: Sequence[Stack | None]) -> Stack | None:
    """The modules that all have in common; None where none of them is known."""
    known = [stack for stack in stacks if stack is not None]
    if not known:
        return None
    common = known[0]
    for stack in known[1:]:
        pairs = zip(common, stack, strict=False)
        common = tuple(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return common


class Weights:
    """The weights of a model, to be found by what they hold."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._used: set[str] = set()
        self._owners: dict[_Key, list[tuple[str, torch.Tensor]]] = defaultdict(list)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if not parameter.is_meta and parameter.dim() > 0:
                self._owners[_key(parameter)].append((name, parameter.detach()))

    def take(self, tensor: torch.Tensor, step: float) -> tuple[str, bool] | None:
        """The name of the weight that a tensor is, and whether it is transposed in the tensor.

        Of equal weights each is taken once, in the order of the modules.

        Args:
            step: how far its elements may lie apart, as quantisation leaves them.
        """
        own = tensor.float()
        every = [e for key, each in self._owners.items() if key[0] == own.numel() for e in each]
        found = [
            (name, is_turned)
            for name, parameter in (every if step else self._owners.get(_key(own), ()))
            for is_turned in ((False, True) if parameter.dim() > 1 else (False,))
            if _is_one(own, parameter.mT if is_turned else parameter, step)
        ]
        left = [each for each in found if each[0] not in self._used] or found
        if not left:
            return None
        self._used.add(left[0][0])
        return left[0]

    def stack(self, weight: str) -> Stack:
        """The module of a weight; what else belongs to those around it is not known."""
        owner = weight.rpartition(".")[0]
        return (Module(owner, owner, type(self._modules[owner]).__name__),) if owner else ()


def _is_one(tensor: torch.Tensor, parameter: torch.Tensor, step: float) -> bool:
    """Whether two tensors are the same up to a step."""
    if tensor.shape != parameter.shape:
        return False
    return bool(((tensor - parameter.float().cpu()).abs() <= step).all())


def _key(tensor: torch.Tensor) -> _Key:
    """What equal tensors have in common, also where they are transposed."""
    total = float(tensor.detach().double().abs().sum())
    return tensor.numel(), float(f"{total:.5g}")
