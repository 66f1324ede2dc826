"""Arguments and outputs of both sides, paired and in the same form.

A module whose form differs on purpose from that of the model it was made from says how to read it
back, by `to_reference_output(output)` and `to_reference_input(name, value)`. Where its output, and
its own parameters with it, carry a factor over the reference's, it declares that factor as its
`reference_output_scale`. Nothing else is known of it. As a rule that is the candidate's; a
reference that was made in the same way is read back too.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from tracer.errors import ModelRunError
from tracer.execution.forms import is_formless
from tracer.execution.hooks import Call
from tracer.execution.torch_internals import declared
from tracer.measurement.plain_values import is_number
from tracer.tensors.roles import DEFAULT_ROLES, Roles

# Arguments that could be each other are told apart by as many elements, up to this share.
_LOOKED_AT = 4096
_NEAR = 1e-2


def read_output(side: str, call: Call) -> object:
    """An output, read back where its module says how.

    Args:
        side: "reference" or "candidate".
        call: one that has ended.
    """
    convert = declared(call.module, "to_reference_output")
    if convert is None:
        return call.output
    try:
        return convert(call.output)
    except Exception as error:
        raise ModelRunError(
            f"to_reference_output of the {side}'s module {call.name!r} raised "
            f"{type(error).__name__}: {error}"
        ) from error


def read_argument(side: str, call: Call, name: str, value: object) -> object:
    """A value of an argument, read back where the call's module says how.

    Args:
        side: "reference" or "candidate".
        name: the reference's name of the argument.
    """
    convert = declared(call.module, "to_reference_input")
    if convert is None:
        return value
    try:
        return convert(name, value)
    except Exception as error:
        raise ModelRunError(
            f"to_reference_input of the {side}'s module {call.name!r} raised "
            f"{type(error).__name__} for {name!r}: {error}"
        ) from error


@dataclass(frozen=True, slots=True)
class CallPair:
    """Two paired calls, both started or both ended.

    Attributes:
        roles: what their arguments are, as their names say.
    """

    reference: Call
    candidate: Call
    roles: Roles = DEFAULT_ROLES

    @property
    def key(self) -> tuple[str, int]:
        """The reference's name of the module, and the call index."""
        return self.reference.name, self.reference.index

    def autocast_on_one_side(self) -> tuple[torch.dtype, ...]:
        """The dtypes that autocast computes in around the calls, where it is not the same.

        Of the candidate only where it is switched on for most of the model: for a part alone, that
        is a cast of the model's own.
        """
        reference, candidate = self.reference.autocast, self.candidate.autocast
        if reference == candidate:
            return ()
        found = () if reference is None else (reference,)
        counts = candidate is not None and _is_switched_on_for_most(self.candidate)
        return (*found, candidate) if candidate is not None and counts else found

    def names(self) -> dict[str, str]:
        """The candidate's name of an argument by the reference's.

        By name; then tensors that are alike in what they are and of a size, by value where there
        are several, and masks; then what is alike and passed by position on both sides, by place.
        What one side leaves out is paired by place alone.
        """
        reference, candidate = self.reference.arguments, self.candidate.arguments
        names = {name: name for name in candidate if name in reference}

        if len(names) == len(reference) or len(names) == len(candidate):
            return names
        kinds = [
            {name: self._kind(name, value) for name, value in side.items()}
            for side in (reference, candidate)
        ]
        alike = [
            (name, own)
            for name, kind in kinds[0].items()
            for own in candidate
            if name not in names and own not in names and kind == kinds[1][own] is not None
        ]
        of_a_size = [
            (n, own)
            for n, own in alike
            if _size(reference[n]) is not None and _size(reference[n]) == _size(candidate[own])
        ]
        counts = Counter(name for name, _ in of_a_size)
        several = [(n, own) for n, own in of_a_size if counts[n] > 1]
        equal = [(n, own) for n, own in several if _is_near(reference[n], candidate[own])]
        by_place = zip(self.reference.positional, self.candidate.positional, strict=False)
        in_place = [(n, o) for n, o in by_place if None in (kinds[0][n], kinds[1][o])]
        positional = {*self.reference.positional}, {*self.candidate.positional}
        placed = [
            (n, own)
            for n, own in alike
            if (n in positional[0] and own in positional[1]) or self.roles.is_mask(n)
        ]
        for name, own in (*equal, *of_a_size, *placed, *in_place):
            if name not in names and own not in names.values():
                names[name] = own
        return names

    def _kind(self, name: str, value: object) -> tuple[str, bool] | None:
        """What an argument is; None where it is left out, but for a mask."""
        if self.roles.is_mask(name):
            return "mask", False
        if value is None:
            return None
        dtype = getattr(value, "dtype", None)
        if not isinstance(dtype, torch.dtype):
            return "number" if is_number(value) else type(value).__name__, False
        if dtype.is_floating_point or dtype.is_complex:
            return "activation", False
        return "indices", "pos" in name.lower()

    @property
    def is_of_graph(self) -> bool:
        """Whether one of them is a call of a graph: it has the form of what that was exported
        from, which has the other's unless it says how to read it back."""
        return self.reference.form is not None or self.candidate.form is not None

    def arguments(self) -> Iterable[tuple[str, object, object]]:
        """(The reference's parameter name, its value, the candidate's in the same form) of each.

        An argument that one side does not pass counts as None there.
        """
        reference, candidate = self.reference, self.candidate
        is_read_back = not self.is_of_graph and (
            declared(reference.module, "to_reference_input") is not None
            or declared(candidate.module, "to_reference_input") is not None
        )
        if not is_read_back and reference.arguments.keys() == candidate.arguments.keys():
            given = candidate.arguments
            return [(name, value, given[name]) for name, value in reference.arguments.items()]
        return self._arguments_by_name()

    def _arguments_by_name(self) -> Iterator[tuple[str, object, object]]:
        reference, candidate = self.reference, self.candidate
        if self.is_of_graph:
            names = dict.fromkeys([*reference.arguments, *candidate.arguments])
            for name in names:
                yield name, reference.arguments.get(name), candidate.arguments.get(name)
            return
        own_names = {own: name for name, own in self.names().items()}
        values = {}
        for own, value in candidate.arguments.items():
            name = own_names.get(own, own)
            values[name] = read_argument("candidate", candidate, name, value)
        for name, value in reference.arguments.items():
            yield name, read_argument("reference", reference, name, value), values.pop(name, None)
        for name, value in values.items():
            yield name, None, value

    def outputs(self) -> tuple[object, object]:
        """Both outputs in the same form."""
        if self.is_of_graph:
            return self.reference.output, self.candidate.output
        return read_output("reference", self.reference), read_output("candidate", self.candidate)

    def is_of_one_form(self, method: str) -> bool:
        """Whether a value of the reference's can replace the candidate's as it is.

        Args:
            method: which of the two would have to read it back.
        """
        if self.is_of_graph:
            return True
        modules = self.reference.module, self.candidate.module
        declared = [hasattr(module, method) for module in modules]
        return not any(declared) or (all(declared) and type(modules[0]) is type(modules[1]))


def _is_switched_on_for_most(call: Call) -> bool:
    """Whether the autocast around a call covers at least half of the model's parameters."""
    outermost = call
    while outermost.parent is not None and outermost.parent.autocast == call.autocast:
        outermost = outermost.parent
    inside = root = outermost.parent or outermost
    while root.parent is not None:
        root = root.parent
    sizes = [sum(p.numel() for p in each.module.parameters()) for each in (inside, root)]
    return inside is root or 2 * sizes[0] >= sizes[1]


def _size(value: object) -> int | None:
    shape = getattr(value, "shape", None)
    return None if shape is None else math.prod(shape)


def _is_near(r: object, c: object) -> bool:
    """Whether two tensors of one size hold about the same, as a few of their elements say."""
    if not isinstance(r, torch.Tensor) or not isinstance(c, torch.Tensor):
        return False
    if r.is_meta or c.is_meta or not r.numel():
        return False
    step = -(-r.numel() // _LOOKED_AT)
    left, right = (t.detach().flatten()[::step].double() for t in (r, c))
    return bool((left - right.to(left.device)).norm() <= _NEAR * left.norm())


def scale_between(reference: nn.Module, candidate: nn.Module) -> float | None:
    """The factor that the candidate's output and own parameters carry over the reference's.

    1 where neither declares anything, or both the same form; None where one says how to read its
    output back, and declares no `reference_output_scale`.
    """
    if is_formless(reference) or is_formless(candidate):
        return 1.0
    scales = _declared_scale(reference), _declared_scale(candidate)
    if scales == (None, None) and type(reference) is type(candidate):
        return 1.0
    return None if scales[0] is None or scales[1] is None else scales[1] / scales[0]


def declared_rows(reference: nn.Module, candidate: nn.Module) -> torch.Tensor | None:
    """Which row of the candidate's own weight is each of the reference's, where it is a linear
    layer and says that its output has the reference's channels in another order; else None."""
    read = getattr(candidate, "to_reference_output", None)
    if read is None or not isinstance(candidate, nn.Linear):
        return None
    if hasattr(reference, "to_reference_output") or is_formless(reference):
        return None
    channels = torch.arange(candidate.weight.shape[0], dtype=torch.float32)
    try:
        order = read(channels[None])
    except Exception:  # it reads what a call alone gives it, and so is more than an order
        return None
    if not isinstance(order, torch.Tensor) or order.shape != (1, len(channels)):
        return None
    return order[0].long() if torch.equal(order[0].sort().values, channels) else None


def _declared_scale(module: nn.Module) -> float | None:
    if not hasattr(module, "to_reference_output"):
        return 1.0
    scale: float | None = getattr(module, "reference_output_scale", None)
    return scale
