"""The gradients of one call on both sides, paired and compared.

What is differentiated is the sum of a call's outputs with random weights, the same on both sides:
by the floats that the module is given, and by the parameters inside that both sides train and that
hold the same. Outputs at padded positions have no weight.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tracer.execution.backward import Forward, Trained, run_forward
from tracer.execution.fusions import Part
from tracer.execution.hooks import Call
from tracer.execution.offload import value_of
from tracer.execution.pairing import Pairing
from tracer.execution.torch_internals import parameters_of
from tracer.measurement.arguments import CallPair, read_output, scale_between
from tracer.measurement.rows import CallKey, Row
from tracer.tensors.difference import Difference
from tracer.tensors.roles import Roles, is_any
from tracer.tensors.tolerance import Tolerance
from tracer.tensors.value_path import OUTPUT, ValuePath
from tracer.text import with_class

Tensor = torch.Tensor


class CannotDifferentiateError(Exception):
    """A side raised in its forward with gradients or in its backward.

    Attributes:
        side: "reference" or "candidate".
    """

    def __init__(self, side: str, raised: Exception) -> None:
        super().__init__(with_class(raised))
        self.side = side


@dataclass(frozen=True)
class TrainedPair:
    """One call of a module on both sides.

    Attributes:
        key: the reference's name and the call index.
        outputs: the path of the candidate's float by that of the reference's; empty where they do
            not belong together.
        visible: which positions are not padding, [batch, sequence], as a call around it says.
    """

    key: CallKey
    reference: Trained
    candidate: Trained
    outputs: Mapping[ValuePath, ValuePath]
    visible: Tensor | None = None


@dataclass(frozen=True)
class Parameter:
    """A parameter that both sides have: the reference's name of its module, its own, and both."""

    module: str
    name: str
    reference: Tensor
    candidate: Tensor

    @property
    def is_frozen(self) -> bool:
        """Whether one side alone trains it."""
        return self.reference.requires_grad != self.candidate.requires_grad


def shared_parameters(pairing: Pairing, inside: str) -> list[Parameter]:
    """The parameters in a module of the reference's that hold the same on both sides, and that one
    of them trains.

    Of others the gradients are not each other's: those of a folded weight, say.
    """
    paired = list(_paired(pairing, inside))
    known = {id(parameter.reference) for parameter in paired}
    return paired + [p for p in _hidden(pairing, inside) if id(p.reference) not in known]


def _hidden(pairing: Pairing, inside: str) -> Iterator[Parameter]:
    """Those of modules that are paired by no call, as they are compiled, by their names."""
    named = []
    for modules in (pairing.reference, pairing.candidate):
        parameters = modules[""].named_parameters(remove_duplicate=False) if "" in modules else ()
        named.append({name.replace("_orig_mod.", ""): each for name, each in parameters})
    for name, r in named[0].items():
        module, _, last = name.rpartition(".")
        c = named[1].get(name)
        if c is None or r.is_meta or c.is_meta or not _is_inside(module, inside):
            continue
        is_hidden = module not in pairing.reference or module not in pairing.pairs.values()
        if is_hidden and _is_trained(r, c) and _holds_the_same(r, c):
            yield Parameter(module, last, r, c)


def _is_inside(name: str, inside: str) -> bool:
    return not inside or f"{name}.".startswith(f"{inside}.")


def _is_trained(r: Tensor, c: Tensor) -> bool:
    return r.requires_grad or c.requires_grad


def _paired(pairing: Pairing, inside: str) -> Iterator[Parameter]:
    found: set[int] = set()
    for own, name in pairing.pairs.items():
        modules = pairing.reference[name], pairing.candidate[own]
        if not _is_inside(name, inside) or any(isinstance(module, Part) for module in modules):
            continue
        if scale_between(*modules) != 1.0:
            continue
        theirs, owns = map(parameters_of, modules)
        for last, r in theirs.items():
            c = owns.get(last)
            if r is None or c is None or id(r) in found or not _is_trained(r, c):
                continue
            if _is_same(modules, last, r, c):
                found.add(id(r))
                yield Parameter(name, last, r, c)


def _is_same(modules: tuple[nn.Module, nn.Module], name: str, r: Tensor, c: Tensor) -> bool:
    if r.shape != c.shape:
        return False
    return _holds_the_same(value_of(modules[0], name, r), value_of(modules[1], name, c))


def _holds_the_same(r: Tensor, c: Tensor) -> bool:
    """Whether two parameters are equal, up to the rounding of the coarser dtype."""
    is_inexact = all(each.is_floating_point() or each.is_complex() for each in (r, c))
    if r.shape != c.shape or not is_inexact or r.is_complex() != c.is_complex():
        return False
    coarser = max(r.dtype, c.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    c = c.to(r.device)
    return torch.equal(r, c.to(r.dtype)) or torch.equal(r.to(coarser), c.to(coarser))


def outputs_together(calls: CallPair) -> dict[ValuePath, ValuePath]:
    """Which floats of two ended calls' outputs belong together: the path of the candidate's by that
    of the reference's. Caches are left out; nothing where that cannot be told."""
    sides = [_floats(output, calls.roles) for output in calls.outputs()]
    reference, candidate = sides
    if reference.keys() != candidate.keys():
        if len(reference) != len(candidate):
            return {}
        candidate = dict(zip(reference, candidate.values(), strict=True))
    if any(reference[path].numel() != candidate[path].numel() for path in reference):
        return {}
    return dict(zip(reference, sides[1] if candidate is not sides[1] else reference, strict=True))


def _floats(output: object, roles: Roles) -> dict[ValuePath, Tensor]:
    return {
        path: leaf
        for path, leaf in OUTPUT.tensors(output).items()
        if (leaf.is_floating_point() or leaf.is_complex()) and not is_any(path, roles.caches)
    }


def gradient_rows(
    pair: TrainedPair,
    parameters: Sequence[Parameter],
    tolerance: Tolerance,
    roles: Roles,
    order: int = 0,
) -> list[Row]:
    """The compared gradients of one call, inputs first.

    Args:
        parameters: those inside.
        order: the place of the first row in execution order.

    Raises:
        CannotDifferentiateError: a side raised.
    """
    r = _differentiate(pair, 0, parameters, roles)
    c = _differentiate(pair, 1, parameters, roles)
    both = r.beside(c, parameters, roles)
    largest = max((_peak(gradient) for gradient, _ in both.values()), default=0.0)
    rows = [
        _row((order + place, pair.key[1]), key, values, tolerance, largest)
        for place, (key, values) in enumerate(both.items())
    ]
    if all(row.agrees for row in rows):
        return rows
    noise = r.beside(_differentiate(pair, 0, parameters, roles, _moved), parameters, roles)
    return [row if row.agrees else _allowing(row, *noise[row.module, row.value]) for row in rows]


@dataclass(frozen=True)
class _Gradients:
    """One side's gradients: by the floats in its arguments, and by parameters."""

    call: Call
    inputs: Mapping[ValuePath, Tensor]
    held: Sequence[Tensor]

    def beside(
        self, other: "_Gradients", parameters: Sequence[Parameter], roles: Roles
    ) -> dict[tuple[str, ValuePath], tuple[Tensor, Tensor]]:
        """Both sides' of what they have in common, by module and path."""
        found = {}
        calls = CallPair(self.call, other.call, roles)
        is_declared = any(hasattr(c.module, "to_reference_input") for c in (self.call, other.call))
        for name, own in ({} if is_declared else calls.names()).items():
            for path, gradient in self.inputs.items():
                if path.argument != name or is_any(path.in_argument, roles.caches):
                    continue
                theirs = other.inputs.get(ValuePath(path.kind, own, path.inside))
                if theirs is not None and theirs.numel() == gradient.numel():
                    both = gradient, theirs.reshape(gradient.shape)
                    found[self.call.name, ValuePath.of_gradient(path.in_argument)] = both
        for parameter, r, c in zip(parameters, self.held, other.held, strict=True):
            found[parameter.module, ValuePath.of_gradient(parameter.name)] = r, c
        return found


def differentiated(
    pair: TrainedPair, side: int, forward: Forward, roles: Roles, of: Sequence[Tensor]
) -> list[Tensor]:
    """One side's gradients of a forward pass that has been run.

    Args:
        side: 0 for the reference, 1 for the candidate.
    """
    known = _floats(
        read_output(pair.candidate.side if side else pair.reference.side, forward.call), roles
    )
    paths = list(pair.outputs.values() if side else pair.outputs)
    outputs = [known[path] for path in paths]
    visible = visible_in(forward.call, roles)
    visible = pair.visible if visible is None else visible
    weights = [_weight(output, place, visible) for place, output in enumerate(outputs)]
    return forward.gradients(outputs, weights, of)


def _differentiate(
    pair: TrainedPair,
    side: int,
    parameters: Sequence[Parameter],
    roles: Roles,
    perturb: Callable[[Tensor], Tensor] | None = None,
) -> _Gradients:
    trained = pair.candidate if side else pair.reference
    try:
        with run_forward(trained, perturb) as forward:
            inputs = leaves_given(forward)
            held = [p.candidate if side else p.reference for p in parameters]
            found = differentiated(pair, side, forward, roles, [*inputs.values(), *held])
    except Exception as raised:  # whatever a model raises
        raise CannotDifferentiateError(trained.side, raised) from raised
    count = len(inputs)
    return _Gradients(
        forward.call, dict(zip(inputs, found[:count], strict=True)), tuple(found[count:])
    )


def leaves_given(forward: Forward) -> dict[ValuePath, Tensor]:
    """The leaf of the graph for each float among a call's arguments."""
    return {
        path: forward.given[id(tensor)]
        for name, value in forward.call.arguments.items()
        for path, tensor in ValuePath.of_argument(name).tensors(value).items()
        if id(tensor) in forward.given
    }


def _weight(output: Tensor, place: int, visible: Tensor | None) -> Tensor:
    """Random numbers, the same for outputs of one size; 1 for a single element, a loss."""
    output = torch.view_as_real(output) if output.is_complex() else output
    if output.numel() == 1:
        return torch.ones_like(output)
    generator = torch.Generator().manual_seed(place)
    weight = torch.randn(output.numel(), generator=generator).reshape(output.shape)
    if visible is not None and output.shape[: visible.dim()] == visible.shape:
        weight *= visible.reshape(*visible.shape, *[1] * (output.dim() - visible.dim()))
    elif visible is not None and output.shape[:1] == visible.flatten().shape:
        weight *= visible.reshape(-1, *[1] * (output.dim() - 1))
    return weight


def visible_in(call: Call, roles: Roles) -> Tensor | None:
    """Which positions are not padding, [batch, sequence]; None where nothing says so."""
    for name, value in call.arguments.items():
        if isinstance(value, Tensor) and value.dim() == 2 and is_any(name, roles.padding):
            return (value != 0).cpu()
    return None


def _moved(tensor: Tensor) -> Tensor:
    """A value that is moved by one unit in its last place, up or down at random."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    generator = torch.Generator().manual_seed(tensor.numel())
    signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.device) * 2 - 1
    eps = torch.finfo(tensor.dtype).eps
    return tensor * (1 + signs.to(tensor.dtype) * eps)


def _row(
    place: tuple[int, int],
    key: tuple[str, ValuePath],
    both: tuple[Tensor, Tensor],
    tolerance: Tolerance,
    largest: float,
) -> Row:
    """A compared gradient.

    Args:
        largest: the largest element of all; what is less than its rounding is none.
    """
    r, c = both[0], both[1].to(both[0].device)
    difference = Difference.of(r, c)
    limit = tolerance.limit(r.dtype, c.dtype)
    eps = torch.finfo(max(r.dtype, c.dtype, key=lambda dtype: torch.finfo(dtype).eps)).eps
    # Gradients that should be zero, as those of a bias of keys, are rounding of all the others.
    is_nothing = bool(((r - c).abs() <= eps * largest).all())
    return Row(
        order=place[0],
        module=key[0],
        call=place[1],
        value=key[1],
        shape=tuple(r.shape),
        dtype=r.dtype,
        candidate_dtype=c.dtype,
        difference=difference,
        limit=limit,
        agrees=is_nothing or (not difference.mismatched and difference.relative_peak <= limit),
    )


def _allowing(row: Row, reference: Tensor, moved: Tensor) -> Row:
    """A row that allows for what rounding makes of the reference's gradient."""
    return row.allowing(Difference.of(reference, moved).relative_peak)


def _peak(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
