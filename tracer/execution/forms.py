"""Calls whose values have neither the names nor the nesting of the source: those of a graph.

A part of a graph is given the values that enter it and gives those that leave it, one after the
other. Where the same call of a model in Python has `hidden_states`, a pair of `position_embeddings`
and a cache, the graph has four tensors, and none of what nobody uses. So such a call is seen in the
form of the other side's: each of its tensors stands where the other side has its counterpart, and
`Unused` where it has none. What a listener answers in that form is read back.

Counterparts are tensors of one kind (floats, whole numbers, booleans) and shape, first those that
hold about the same numbers, then in their order; of other shapes where as many are left over on
both sides. Of a cache that a call writes to, what has changed has its counterparts among what the
graph's call returns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tracer.execution.torch_internals import declared
from tracer.tensors.leaves import Unused, is_stateful, tensor_leaves, version_of
from tracer.tensors.rebuilding import deep_copy, replace_leaves

if TYPE_CHECKING:
    from tracer.execution.hooks import Call

# Tensors that could be each other are told apart by as many elements, up to this share.
_LOOKED_AT = 4096
_NEAR = 1e-2


def is_formless(module: nn.Module) -> bool:
    """Whether a module says that its calls pass values in no form of the source's."""
    return declared(module, "is_formless") is True


@dataclass(slots=True, eq=False)
class Form:
    """How a formless call is seen.

    Attributes:
        given: what it was given, by its own names.
        kept: the tensors in what the other side's call was given and may change, as they were.
        arguments: the own path of a tensor by its path in the arguments as they are seen.
        returned: what it returned; None until its end.
        output, written: the own paths in that by the paths in the output as it is seen, and in
            arguments that are seen to have been changed.
        seen: the output as it is seen.
    """

    given: dict[str, object]
    kept: dict[int, tuple[torch.Tensor, int | None]]
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


def returns_anew(module: nn.Module) -> bool:
    """Whether a module says that it changes no cache, list or dict that it is given, but returns
    what others leave there."""
    return declared(module, "returns_anew") is True


def may_have_forms(kind: type[nn.Module]) -> bool:
    """Whether calls of modules of a class may be seen in another form than they have."""
    return hasattr(kind, "is_formless") or hasattr(kind, "returns_anew")


def bring_to_form(call: "Call", other: "Call", *, has_ended: bool) -> None:
    """Lets one of two calls that have begun, or ended, be seen in the form of the other."""
    if is_formless(call.module):
        take_form(call, other, has_ended=has_ended)
    elif has_ended and returns_anew(call.module):
        leave_out_kept(call, other)


def leave_out_kept(call: "Call", other: "Call") -> None:
    """Takes out of two ended calls the arguments that only one of them may have changed."""
    for name in _stateful(call.arguments):
        call.arguments.pop(name)
        other.arguments.pop(name, None)


def take_form(call: "Call", other: "Call", *, has_ended: bool) -> None:
    """Lets a formless call be seen in the form of the other side's call."""
    form = call.form
    if form is None:
        form = call.form = Form(call.arguments, kept=_versions(_stateful(other.arguments)))
        places = _places(other.arguments, form.given)
        form.arguments, call.arguments = places, _seen(other.arguments, form.given, places)
    if not has_ended:
        return
    form.returned = call.output
    form.output = _places(other.output, form.returned, is_output=True)
    form.seen = call.output = _seen(other.output, form.returned, form.output)
    for name, value in _stateful(other.arguments).items():
        call.arguments[name] = _left(name, value, form)


def _stateful(arguments: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in arguments.items() if is_stateful(value)}


def _versions(value: object) -> dict[int, tuple[torch.Tensor, int | None]]:
    """The tensors of a value with their versions, by id; they are kept, so that ids stay theirs."""
    return {id(tensor): (tensor, version_of(tensor)) for _, tensor in tensor_leaves(value, "")}


def _left(name: str, value: object, form: Form) -> object:
    """An argument that the other side's call may have changed: what has changed with what the own
    call returned, and the rest as it was given."""
    tensors = dict(tensor_leaves(value, f".{name}"))
    new = {p: t for p, t in tensors.items() if form.kept.get(id(t), (t, -1))[1] != version_of(t)}
    form.written |= _matched(new, dict(tensor_leaves(form.returned, "")))
    old = {path: tensor for path, tensor in tensors.items() if path not in new}
    given = _matched(old, dict(tensor_leaves(form.given, "")), near=True)
    sources = (form.returned, form.written), (form.given, given)
    by_id = {
        id(tensors[path]): dict(tensor_leaves(own, ""))[place]
        for own, places in sources
        for path, place in places.items()
        if path in tensors
    }
    return deep_copy(value, _one_of(by_id))


def _seen(other: Any, own: object, places: Mapping[str, str]) -> Any:
    """An own value in the form of another one."""
    wanted, values = dict(tensor_leaves(other, "")), dict(tensor_leaves(own, ""))
    return deep_copy(other, _one_of({id(wanted[p]): values[own] for p, own in places.items()}))


def _one_of(by_id: Mapping[int, torch.Tensor]) -> Callable[[torch.Tensor], Any]:
    return lambda tensor: by_id.get(id(tensor), _UNUSED)


def _put(own: object, seen: object, places: Mapping[str, str]) -> object:
    """An own value with the tensors that stand in it as it is seen."""
    tensors = dict(tensor_leaves(seen, ""))
    values = {place: tensors[path] for path, place in places.items() if path in tensors}
    return replace_leaves(own, "", values) if values else own


_UNUSED = Unused("the graph has none, since nothing uses it")


def _places(other: object, own: object, *, is_output: bool = False) -> dict[str, str]:
    """The own paths of tensors by those of what they are the counterparts of."""
    wanted, values = dict(tensor_leaves(other, "")), dict(tensor_leaves(own, ""))
    # A tensor that stands in several places counts once.
    first = {id(tensor): path for path, tensor in reversed([*wanted.items()])}
    wanted = {path: wanted[path] for path in wanted if first[id(wanted[path])] == path}
    found = _matched(wanted, values)
    if not is_output or len(wanted) == len(values):
        return found | _of_other_shapes(wanted, values, found)
    if not found and len(values) == 1 and wanted:
        place, value = next(iter(values.items()))
        ranks = [path for path, tensor in wanted.items() if tensor.dim() == value.dim()]
        sizes = [path for path, tensor in wanted.items() if tensor.numel() == value.numel()]
        found[(*sizes, *ranks, *wanted)[0]] = place
    return found


def _of_other_shapes(
    wanted: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor], found: Mapping[str, str]
) -> dict[str, str]:
    """Pairs of what is left over, in order, where there are as many of a kind and rank."""
    left: dict[tuple[str, int], tuple[list[str], list[str]]] = {}
    taken = set(found), set(found.values())
    for side, tensors in enumerate((wanted, values)):
        for path, tensor in tensors.items():
            if path not in taken[side]:
                key = _kind(tensor), tensor.dim()
                left.setdefault(key, ([], []))[side].append(path)
    return {
        path: place
        for paths, places in left.values()
        if len(paths) == len(places)
        for path, place in zip(paths, places, strict=True)
    }


def _matched(
    wanted: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor], *, near: bool = False
) -> dict[str, str]:
    """Pairs of one kind and shape: those that hold about the same first, then in order.

    Args:
        near: only the former.
    """
    free, own = dict(wanted), dict(values)
    is_clear = len(free) == len(own) == 1 and not near
    found: dict[str, str] = {}
    ways: list[Callable[[torch.Tensor, torch.Tensor], bool]] = [
        lambda r, c: is_clear or _is_near(r, c),
        lambda _r, _c: not near,
    ]
    for is_near in ways:
        for path, tensor in list(free.items()):
            alike = (
                place
                for place, value in own.items()
                if _kind(value) == _kind(tensor)
                and value.shape == tensor.shape
                and is_near(tensor, value)
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
