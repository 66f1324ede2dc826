"""Near ties: a choice that rounding has turned over, and no mistake.

`model.layers.0.mlp.gate` chooses otherwise at 1 of 192 positions, a near tie turned over by
rounding: at 57 the reference chooses 3, 9 and the candidate 3, 14 (apart by 0.00098).

What a router, an argmax, a sort or a rounding makes of values that are right within their tolerance
may be altogether different. Before such a module is blamed it is called again: it is a near tie if
the reference's own module, on the candidate's inputs, gives the candidate's result, or if both
sides' scores agree, what they choose by is closer than the tolerance, and all else is right.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tracer.errors import ModelRunError
from tracer.execution.hooks import Answer
from tracer.execution.torch_internals import TorchDispatchMode, as_written, is_compiled
from tracer.interventions.experiment import Experiment
from tracer.interventions.repeat_call import Recall
from tracer.interventions.substitution import give_output, in_form_of
from tracer.measurement.arguments import CallPair
from tracer.measurement.comparer import Comparer
from tracer.measurement.intervention import Intervention
from tracer.measurement.pairs import measured
from tracer.measurement.rows import CallKey, CallRecord, Row
from tracer.tensors.difference import Difference
from tracer.tensors.leaves import is_stateful
from tracer.tensors.tolerance import Tolerance
from tracer.tensors.value_path import OUTPUT

# Each round is one more run of both models, and each call that is looked at four of its module.
_MOST_ROUNDS, _MOST_CALLS = 4, 32
# The tolerance is that of a whole model; scores that are right by themselves are closer.
_NEAR = 0.25
_CHOOSING = ("topk", "sort", "argmax", "argmin", "max", "min")
_STEPPED = (
    *("round", "floor", "ceil", "trunc", "sign", "gt", "ge", "lt", "le", "bucketize"),
    *("searchsorted", "fake_quantize_per_tensor_affine_cachemask", "nonzero", "_to_copy"),
    "fake_quantize_per_channel_affine_cachemask",
)


@dataclass(frozen=True)
class NearTie:
    """A call that chooses otherwise than the reference's, by rounding alone.

    Attributes:
        module, call: the reference's name and the call index.
        rows: the positions where it does, each as its index in all dimensions but the last.
        positions: how many there are in all.
        margin: how far apart what was chosen and what would have been were, at most.
        chosen: at the first of them, what the reference and the candidate choose; None where
            nothing is chosen, as in a rounding.
    """

    module: str
    call: int
    rows: tuple[tuple[int, ...], ...]
    positions: int
    margin: float
    chosen: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def key(self) -> CallKey:
        """The module and the call index."""
        return self.module, self.call


def near_ties(comparer: Comparer, experiment: Experiment) -> tuple[NearTie, ...]:
    """The calls of a run whose choices were turned over by rounding.

    What follows from one is looked at with the reference's choice. In an experiment that has
    `same_choices` for all of them, what still disagrees is something else.

    Args:
        comparer: of the run.
        experiment: runs both models again.
    """
    ties: dict[CallKey, NearTie] = {}
    tried: set[CallKey] = set()
    for _ in range(_MOST_ROUNDS):
        suspects = _suspects(comparer, experiment) - tried
        if not suspects:
            break
        tried |= suspects
        probing = _Probing(suspects, ties)
        run = experiment.choosing_alike(ties).rerun(probing)
        if run.failure is not None or not probing.ties:
            break
        ties |= probing.ties
        comparer = run.comparer
    return tuple(ties.values())


def _suspects(comparer: Comparer, experiment: Experiment) -> set[CallKey]:
    """Calls with right arguments and something wrong in them, the innermost, and all that make
    other whole numbers; a module of PyTorch's own chooses nothing, and the whole model is run again
    only where it does."""
    wrong = [row for row in comparer.rows if not row.agrees and not row.is_mask]
    found: dict[CallKey, None] = {}
    for row in wrong:
        record: CallRecord | None = comparer.records[row.module, row.call]
        if row.is_output and _is_whole(row):
            found[row.module, row.call] = None
        while record is not None and not (_starts_right(record) and record.end >= row.order):
            record = None if record.parent is None else comparer.records[record.parent]
        if record is not None and (record.parent is not None or _is_whole(row)):
            found[record.key] = None
    modules = experiment.modules[0]
    chosen = [key for key in found if not _is_of_torch(modules[key[0]])]
    return set(chosen[:_MOST_CALLS])


def _is_whole(row: Row) -> bool:
    return row.dtype is not None and not row.dtype.is_floating_point


def _starts_right(record: CallRecord) -> bool:
    return all(row.agrees or row.is_mask for row in record.arguments.values())


def _is_of_torch(module: nn.Module) -> bool:
    return type(as_written(module)).__module__.startswith("torch.")


class _Probing(Intervention):
    """Calls some modules again; where it is a near tie, the candidate goes on with the
    reference's output."""

    def __init__(self, suspects: Collection[CallKey], known: Collection[CallKey]) -> None:
        self.ties: dict[CallKey, NearTie] = {}
        self._settled = set(known)  # with the calls around them
        self._suspects = suspects
        self._probes: dict[CallKey, _Probe] = {}

    def on_start(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Takes down what a call begins with."""
        if record.key in self._suspects and _starts_right(record) and not _is_compiled(calls):
            self._probes[record.key] = _Probe(calls)
        return None

    def on_end(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Looks for a near tie."""
        probe = self._probes.pop(record.key, None)
        if any(child in self._settled for child in record.children):
            self._settled.add(record.key)  # what it makes follows from that choice
            return None
        flip = None if probe is None else probe.flip(calls, run.tolerance)
        if flip is None:
            return None
        rows = tuple(tuple(map(int, row)) for row in flip.turned.nonzero())
        tie = NearTie(*record.key, rows, flip.turned.numel(), flip.margin, flip.chosen(rows[0]))
        self.ties[record.key] = tie
        self._settled.add(record.key)
        return give_output(calls)


def _is_compiled(calls: CallPair) -> bool:
    """Whether a part of either side is compiled: what is called under an observer is never compiled
    again."""
    both = calls.reference.module, calls.candidate.module
    return any(is_compiled(module) for side in both for module in side.modules())


class _Probe:
    """The modules of a pair of calls, to be called again; to be made at their start."""

    def __init__(self, calls: CallPair) -> None:
        arguments = {
            name: c if is_stateful(r) or is_stateful(c) else in_form_of(r, c, set(), None)
            for name, r, c in calls.arguments()
            if name in calls.reference.arguments
        }
        self._reference = Recall(calls.reference)
        self._candidate = Recall(calls.candidate)
        self._exchanged = Recall(calls.reference, arguments)

    def flip(self, calls: CallPair, tolerance: Tolerance) -> "_Flip | None":
        """Where rounding has turned a choice over, if that is all that is wrong."""
        try:
            _, expected = _observed(self._reference)
            output, exchanged = _observed(self._exchanged)
            _, own = _observed(self._candidate)
        except ModelRunError:  # what is wrong may be that it does not take such arguments
            return None
        repeated = replace(calls, reference=replace(calls.reference, output=output))
        flip = _first_flip(expected, exchanged)
        if flip is not None and _agree(repeated, tolerance, None):
            return flip
        flip = _first_flip(expected, own)
        if flip is None or not flip.is_near(tolerance) or not _agree(calls, tolerance, flip):
            return None
        return flip


@dataclass(frozen=True)
class _Choice:
    """One operation: what it has chosen by, along the last dimension, and what it has made; of one
    that rounds, what it makes of other values."""

    kind: str
    scores: torch.Tensor
    made: torch.Tensor
    step: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True)
class _Flip:
    """Two choices that differ, at the positions that are `turned`."""

    reference: _Choice
    candidate: _Choice
    turned: torch.Tensor

    @property
    def margin(self) -> float:
        """How far apart, in the reference's scores, what was chosen on both sides is; for an
        operation that rounds, how far apart what it rounds is."""
        scores, others = self.reference.scores.double(), self.candidate.scores.double()
        if self.reference.kind in _CHOOSING:
            both = (scores.gather(-1, choice.made) for choice in (self.reference, self.candidate))
            scores, others = (chosen.sort(-1).values for chosen in both)
        return float((scores - others).abs().amax(-1)[self.turned].max())

    def chosen(self, row: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """What both sides choose at a position."""
        if self.reference.kind not in _CHOOSING:
            return None
        both = (self.reference.made[row].tolist(), self.candidate.made[row].tolist())
        return tuple(both[0]), tuple(both[1])

    def is_near(self, tolerance: Tolerance) -> bool:
        """Whether the scores agree well, the margin is within as much, and the reference's
        operation makes of the candidate's what the candidate's does."""
        r, c = self.reference.scores, self.candidate.scores
        step = self.reference.step
        if step is not None and not torch.equal(step(c), self.candidate.made):
            return False
        difference = Difference.of(r, c)
        most = _NEAR * tolerance.limit(r.dtype, c.dtype) * difference.interval
        errors = self.margin, difference.relative_peak * difference.interval
        return not difference.mismatched and max(errors) <= most


def _first_flip(expected: list[_Choice], found: list[_Choice]) -> _Flip | None:
    for r, c in zip(expected, found, strict=False):
        if (r.kind, r.made.shape, r.scores.shape) != (c.kind, c.made.shape, c.scores.shape):
            return None
        turned = (r.made != c.made).any(-1)
        if turned.any():
            return _Flip(r, c, turned)
    return None


def _observed(recall: Recall) -> tuple[object, list[_Choice]]:
    """What a call gives, and what was chosen in it."""
    choices = _Choices()
    output, _ = recall(choices)
    return output, choices.found


class _Choices(TorchDispatchMode):
    """Keeps what is chosen, and by what."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[_Choice] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        rest = args[1:], dict(kwargs or {})

        def step(values: torch.Tensor) -> torch.Tensor:
            made: Any = func(values.clone(), *rest[0], **rest[1])
            first: torch.Tensor = made[0] if isinstance(made, tuple | list) else made
            return first

        name = func.overloadpacket.__name__.rstrip("_")
        choice = _choice(name, args, kwargs or {}, result, step)
        if choice is not None:
            self.found.append(choice)
        return result


def _choice(
    kind: str,
    args: Any,
    kwargs: dict[str, Any],
    result: Any,
    step: Callable[[torch.Tensor], torch.Tensor],
) -> _Choice | None:
    if kind not in (*_CHOOSING, *_STEPPED) or not isinstance(args[0], torch.Tensor):
        return None
    scores = args[0].detach().clone()
    made = result[-1] if kind in _CHOOSING and isinstance(result, tuple | list) else result
    made = made[0] if isinstance(made, tuple | list) else made
    if kind in _STEPPED:
        is_stepped = kind != "_to_copy" or not made.dtype.is_floating_point
        if not is_stepped or made.shape != scores.shape or not scores.is_floating_point():
            return None
        return _Choice(kind, torch.atleast_1d(scores), torch.atleast_1d(made.clone()), step)
    if made.dtype != torch.int64 or not scores.dim():
        return None  # the largest of two, or of all
    position = 2 if kind == "topk" else 1
    dim = kwargs.get("dim", args[position] if len(args) > position else None)
    if dim is None:
        dim = -1 if kind in ("topk", "sort") else None
    if dim is None:
        return _Choice(kind, scores.flatten()[None], made.reshape(1, 1).clone())
    if made.dim() < scores.dim():
        made = made.unsqueeze(dim)
    return _Choice(kind, scores.movedim(dim, -1), made.movedim(dim, -1).clone())


def _agree(calls: CallPair, tolerance: Tolerance, flip: _Flip | None) -> bool:
    """Whether the outputs of both calls agree, but for the positions that are turned over."""
    reference, candidate = map(OUTPUT.tensors, calls.outputs())
    if reference.keys() != candidate.keys():
        return False
    for path, r in reference.items():
        c = candidate[path]
        if flip is not None:
            kept = ~flip.turned.flatten()
            rows = [
                value.reshape(len(kept), -1) for value in (r, c) if not value.numel() % len(kept)
            ]
            if len(rows) < 2:
                return False
            r, c = (value[kept] for value in rows)
        found = measured(r, c, tolerance, lambda: None, is_mask=False)
        if found is None or not found.agrees:
            return False
    return True
