"""Calls whose values have neither the names nor the nesting of the source: those of a graph.

A part of a graph is given the values that enter it and gives those that leave it, one after the
other. Where the same call of a model in Python has `hidden_states`, a pair of `position_embeddings`
and a cache, the graph has four tensors, and none of what nobody uses. So such a call is seen in the
form of the other side's: each of its tensors stands where the other side has its counterpart, and
`Unused` where it has none. What a listener answers in that form is read back.

Counterparts are tensors of one kind (floats, whole numbers, booleans) and shape, first those that
hold about the same numbers, then in their order; what is left over of outputs by rank alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tracer.tensors.leaves import Unused, deep_copy, is_stateful, replace_leaves, tensor_leaves

if TYPE_CHECKING:
    from tracer.execution.hooks import Call

# Tensors that could be each other are told apart by as many elements, up to this share.
_LOOKED_AT = 4096
_NEAR = 1e-2


def is_formless(module: nn.Module) -> bool:
    """Whether a module says that its calls pass values in no form of the source's."""
    return getattr(module, "is_formless", False) is True


@dataclass(slots=True, eq=False)
class Form:
    """How a formless call is seen.

    Attributes:
        given: what it was given, by its own names.
        arguments: the own path of a tensor by its path in the arguments as they are seen.
        returned: what it returned; None until its end.
        output, written: the own paths in that by the paths in the output as it is seen, and in
            arguments that are seen to have been changed.
        seen: the output as it is seen.
    """

    given: dict[str, object]
    arguments: dict[str, str] = field(default_factory=dict)
    returned: object = None
    output: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    seen: object = None

    def passed(self, arguments: Mapping[str, object]) -> dict[str, object]:
        """Arguments as they are seen, as the module takes them."""
        made: Any = _put(self.given, dict(arguments), self.arguments)
        return dict(made)

    def put(self, output: object, arguments: Mapping[str, object]) -> object:
        """An output as it is seen, and what is left in the arguments, as the module returns it."""
        return _put(_put(self.returned, dict(arguments), self.written), output, self.output)

    def see(self, returned: object) -> object:
        """Another output of the module's own, as it is seen."""
        own = dict(tensor_leaves(returned, ""))
        values = {path: own[place] for path, place in self.output.items() if place in own}
        return replace_leaves(self.seen, "", values)


def take_form(call: "Call", other: "Call", *, has_ended: bool) -> None:
    """Lets a formless call be seen in the form of the other side's call."""
    form = call.form
    if form is None:
        form = call.form = Form(call.arguments)
        call.arguments, form.arguments = _seen(other.arguments, form.given)
    if not has_ended:
        return
    form.returned = call.output
    call.output, form.output = _seen(other.output, form.returned, by_rank=True)
    form.seen = call.output
    kept = {name: value for name, value in other.arguments.items() if is_stateful(value)}
    left, form.written = _seen(kept, form.returned)
    given, _ = _seen(kept, form.given)
    call.arguments.update(_filled(left, given))


def _seen(other: Any, own: object, *, by_rank: bool = False) -> tuple[Any, dict[str, str]]:
    """A value in the form of another one, and the own paths of its tensors by their paths there."""
    wanted, values = dict(tensor_leaves(other, "")), dict(tensor_leaves(own, ""))
    places = _places(wanted, values, by_rank=by_rank)
    by_id: dict[int, Any] = {id(wanted[path]): values[place] for path, place in places.items()}
    return deep_copy(other, lambda tensor: by_id.get(id(tensor), _UNUSED)), places


def _filled(left: Any, given: Any) -> Any:
    """What was left in arguments; where nothing was, what they were given with."""
    values = {
        path: tensor
        for path, tensor in tensor_leaves(given, "")
        if path not in dict(tensor_leaves(left, ""))
    }
    return replace_leaves(left, "", values) if values else left


def _put(own: object, seen: object, places: Mapping[str, str]) -> object:
    """An own value with the tensors that stand in it as it is seen."""
    tensors = dict(tensor_leaves(seen, ""))
    values = {place: tensors[path] for path, place in places.items() if path in tensors}
    return replace_leaves(own, "", values) if values else own


_UNUSED = Unused("the graph has none, since nothing uses it")


def _places(
    wanted: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor], *, by_rank: bool
) -> dict[str, str]:
    """The path of a value by the path of what it is the counterpart of."""
    # A tensor that stands in several places counts once.
    left = {id(tensor): path for path, tensor in reversed([*wanted.items()])}
    free = {path: wanted[path] for path in wanted if left[id(wanted[path])] == path}
    own = dict(values)
    is_clear = len(free) == len(own) == 1
    ways: list[Callable[[torch.Tensor, torch.Tensor], bool]] = [
        lambda r, c: r.shape == c.shape and (is_clear or _is_near(r, c)),
        lambda r, c: r.shape == c.shape,
        lambda r, c: r.numel() == c.numel(),
    ]
    ways += [lambda r, c: r.dim() == c.dim(), lambda _r, _c: is_clear] if by_rank else []
    found: dict[str, str] = {}
    for is_counterpart in ways:
        for path, tensor in list(free.items()):
            alike = (
                place
                for place, value in own.items()
                if _kind(value) == _kind(tensor) and is_counterpart(tensor, value)
            )
            if (place := next(alike, None)) is not None:
                found[path] = place
                del free[path], own[place]
    return found


def _kind(tensor: torch.Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "boolean"
    return "float" if tensor.is_floating_point() or tensor.is_complex() else "integer"


def _is_near(r: torch.Tensor, c: torch.Tensor) -> bool:
    """Whether two tensors of one shape hold about the same, as a few of their elements say."""
    if r is c:
        return True
    if r.is_meta or c.is_meta or not r.numel() or r.is_complex() or c.is_complex():
        return False
    step = -(-r.numel() // _LOOKED_AT)
    left, right = (t.detach().flatten()[::step].double() for t in (r, c))
    return bool((left - right.to(left.device)).norm() <= _NEAR * left.norm())
