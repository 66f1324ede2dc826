"""compare(): two models and one set of inputs in, a Comparison out.

>>> comparison = tracer.compare(reference, candidate, {"input_ids": ids})
>>> comparison.verdict.agrees, comparison.verdict.origin.module
(False, 'model.layers.0.self_attn')
"""

import copy
import fnmatch
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from tracer.calls import Answer, Call, Phase, hides_children
from tracer.difference import Tolerance
from tracer.errors import (
    InputError,
    ModelRunError,
    NothingComparedError,
    UsageError,
    near_names,
)
from tracer.lockstep import EventKey, Failure, Outcome, Visitor, lockstep
from tracer.pairing import Pairing, pair
from tracer.rows import Comparer, FormDifference, Row, paired_arguments, reference_output
from tracer.values import dtype_name, tensor_leaves
from tracer.verdict import Verdict, judge

if TYPE_CHECKING:
    import pandas

Inputs = Mapping[str, object] | tuple[object, ...] | torch.Tensor

# A value that is edited in place before it can be compared costs one more run, in which it is
# cloned; that may bring to light another one.
_MOST_RUNS = 4


def compare(
    reference: nn.Module,
    candidate: nn.Module,
    inputs: Inputs,
    *,
    rename: Mapping[str, str] | None = None,
    tolerance: float | Tolerance | None = None,
    include: str | Sequence[str] = "*",
    confirm: bool = True,
    progress: Callable[[int], None] | None = None,
) -> "Comparison":
    """Runs two models side by side on the same inputs and says where they part, and why.

    Both run without gradients, in the mode (training or evaluation) they are in, from the same
    random state, each on its own copy of the inputs. Neither the models, nor the inputs, nor the
    random state are changed: buffers that training mode updates are put back. Where the models
    diverge, both are run again a few times to confirm the cause.

    Args:
        reference: the model that is right by definition.
        candidate: the model under test; it may share modules with the reference or be the same.
        inputs: keyword arguments as a dict, positional ones as a tuple, or a single tensor. Floats
            of the reference's dtype are cast to the candidate's where that is another one.
        rename: regular expressions and replacements that turn the candidate's module names into
            the reference's.
        tolerance: the PEIR (a ratio) up to which floats agree; by default a limit per dtype.
        include: globs of the reference's module names to compare.
        confirm: whether the origin of a divergence is tested by running again.
        progress: called with the number of finished pairs of calls.

    Raises:
        InputError: the inputs are of another type, or name arguments that forward does not take.
        UsageError: a glob or rename rule matches nothing, or the tolerance is no limit.
        ModelRunError: a model raised; `comparison` holds what was compared before.
        NothingComparedError: the models have no output in common.
    """
    if not isinstance(tolerance, Tolerance):
        working = (_working_dtype(model) for model in (reference, candidate))
        tolerance = Tolerance(tolerance, tuple(dtype for dtype in working if dtype is not None))
    session = _Session(reference, candidate, inputs, rename, include)
    clone: frozenset[EventKey] = frozenset()
    for _ in range(_MOST_RUNS):
        comparer = Comparer(tolerance, progress)
        outcome = session.run(comparer, clone)
        if comparer.edited <= clone:
            break
        clone |= comparer.edited

    def rerun(visitor: Visitor) -> str | None:
        failure = session.run(visitor, clone).failure
        return None if failure is None else _in_words(failure)

    verdict = judge(
        comparer,
        tolerance,
        rerun if confirm and outcome.failure is None else None,
        (session.pairing.reference, session.pairing.candidate),
        _unmatched_calls(outcome),
    )
    comparison = Comparison(
        verdict=verdict,
        coverage=_coverage(session.pairing, comparer, outcome),
        rows=tuple(comparer.rows),
        form_differences=tuple(
            form for record in comparer.records.values() for form in record.form_differences
        ),
    )
    _raise_failure(outcome, comparison)
    _check_something_compared(comparison, outcome)
    return comparison


@dataclass(frozen=True)
class Captured:
    """The values of one leaf on both sides; see `capture`.

    Attributes:
        module, call, value: as for a Row.
        reference, candidate: copies of both tensors.
    """

    module: str
    call: int
    value: str
    reference: torch.Tensor
    candidate: torch.Tensor


def capture(
    reference: nn.Module,
    candidate: nn.Module,
    inputs: Inputs,
    *,
    include: str | Sequence[str],
    rename: Mapping[str, str] | None = None,
) -> list[Captured]:
    """Runs two models side by side and keeps the arguments and outputs of some modules.

    Args and errors are those of `compare`; `include` names the modules to keep.
    """
    session = _Session(reference, candidate, inputs, rename, include)
    collector = _Collector()
    _raise_failure(session.run(collector, frozenset()), None)
    return collector.captured


@dataclass(frozen=True)
class Coverage:
    """How much a comparison has seen. A verdict is worth no more than this.

    Attributes:
        paired_modules: the reference's names of modules with a counterpart that was seen.
        reference_only, candidate_only: names of modules on one side only, or called on one only.
        reasons: why, by name, for both of them.
        compared_calls: pairs of calls of which at least one leaf was compared.
        compared_elements: elements of all compared leaves, each pair of tensors counted once.
        unmatched_calls: (side, module, call index) of calls of paired modules that the other side
            did not make.
        held_bytes_peak: the most memory held back for calls in another order, in bytes.
    """

    paired_modules: tuple[str, ...]
    reference_only: tuple[str, ...]
    candidate_only: tuple[str, ...]
    reasons: Mapping[str, str]
    compared_calls: int
    compared_elements: int
    unmatched_calls: tuple[tuple[str, str, int], ...]
    held_bytes_peak: int

    def __str__(self) -> str:
        total = len(self.paired_modules) + len(self.reference_only)
        text = (
            f"{len(self.paired_modules)} of {total} modules, {self.compared_calls} calls, "
            f"{self.compared_elements:,} elements compared"
        )
        if self.candidate_only:
            text += f"; {len(self.candidate_only)} modules in the candidate only"
        return text


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two models on one set of inputs.

    Attributes:
        verdict: whether they agree, and if not, where and why they part.
        coverage: how much was compared.
        rows: one per compared leaf, in execution order.
        form_differences: arguments and outputs that the two sides pass in forms that do not
            compare; harmless unless the verdict names them.
    """

    verdict: Verdict
    coverage: Coverage
    rows: tuple[Row, ...]
    form_differences: tuple[FormDifference, ...]

    def to_frame(self) -> "pandas.DataFrame":
        """One row per compared leaf, in execution order.

        Columns: module, call, value, shape, dtype, mean, min, max, stddev, peir (a ratio), sqnr
        (dB), cosine, agrees; then candidate_dtype, limit, elements, mismatched,
        reference_nonfinite, candidate_nonfinite, peak_index, note.
        """
        import pandas

        records = [row_values(row) for row in self.rows]
        return pandas.DataFrame.from_records(records, columns=list(ROW_COLUMNS))

    def show(self, *, all_rows: bool = False) -> None:
        """Prints the table, the curve of PEIR and the verdict to the terminal."""
        from tracer.reports.console import show

        show(self, all_rows=all_rows)

    def save(self, path: str | Path) -> None:
        """Writes a report; the suffix chooses the format, `.json` for now.

        Raises:
            UsageError: another suffix, or a folder that does not exist.
        """
        from tracer.reports import save

        save(self, Path(path))


ROW_COLUMNS = (
    "module",
    "call",
    "value",
    "shape",
    "dtype",
    "mean",
    "min",
    "max",
    "stddev",
    "peir",
    "sqnr",
    "cosine",
    "agrees",
    "candidate_dtype",
    "limit",
    "elements",
    "mismatched",
    "reference_nonfinite",
    "candidate_nonfinite",
    "peak_index",
    "note",
)


def row_values(row: Row) -> dict[str, object]:
    """A row's values by column; see `Comparison.to_frame`."""
    difference = row.difference
    statistics = {
        name: None if difference is None else getattr(difference, name)
        for name in (
            "mean",
            "min",
            "max",
            "stddev",
            "sqnr",
            "cosine",
            "elements",
            "mismatched",
            "reference_nonfinite",
            "candidate_nonfinite",
            "peak_index",
        )
    }
    return {
        "module": row.module,
        "call": row.call,
        "value": row.value,
        "shape": row.shape,
        "dtype": dtype_name(row.dtype),
        "candidate_dtype": dtype_name(row.candidate_dtype),
        "peir": row.peir,
        "agrees": row.agrees,
        "limit": row.limit,
        "note": row.note,
        **statistics,
    }


class _Session:
    """Two models, their pairs of modules and their inputs: what every run has in common."""

    def __init__(
        self,
        reference: nn.Module,
        candidate: nn.Module,
        inputs: Inputs,
        rename: Mapping[str, str] | None,
        include: str | Sequence[str],
    ) -> None:
        self.reference = reference
        self.candidate = candidate
        self.inputs = _arguments(inputs, reference)
        self.pairing = pair(reference, candidate, rename)
        self.pairs = _included(self.pairing, [include] if isinstance(include, str) else include)
        self.cast = _casting(reference, candidate)

    def run(self, visitor: Visitor, clone: frozenset[EventKey]) -> Outcome:
        """Runs both models once, each on its own copy of the inputs."""
        with torch.no_grad(), _buffers_kept((self.reference, self.candidate)):
            return lockstep(
                self.reference,
                self.candidate,
                lambda: self._call(self.reference, None),
                lambda: self._call(self.candidate, self.cast),
                self.pairs,
                visitor,
                reference_names={id(m): name for name, m in self.pairing.reference.items()},
                candidate_names={id(m): name for name, m in self.pairing.candidate.items()},
                clone=clone,
            )

    def _call(self, model: nn.Module, cast: tuple[torch.dtype, torch.dtype] | None) -> object:
        args, kwargs = _copied(self.inputs, cast)
        return model(*args, **kwargs)


@contextmanager
def _buffers_kept(models: Sequence[nn.Module]) -> Iterator[None]:
    """Puts back the buffers that modules in training mode update, such as running statistics."""
    modules = {id(m): m for model in models for m in model.modules() if m.training}
    kept = [
        (buffer, buffer.detach().clone())
        for module in modules.values()
        for buffer in module.buffers(recurse=False)
    ]
    try:
        yield
    finally:
        # Whether they changed or not: batch normalisation writes past their version counters.
        for buffer, copied in kept:
            with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                buffer.copy_(copied)


class _Collector:
    """A visitor that keeps copies of the values."""

    def __init__(self) -> None:
        self.captured: list[Captured] = []

    def visit(self, reference: Call, candidate: Call, phase: Phase) -> Answer:
        """Copies the arguments of two calls that have started, or the outputs of two ended."""
        if phase is Phase.START:
            for name, r, c in paired_arguments(reference, candidate):
                self._keep(reference, f"kwargs.{name}", r, c)
        else:
            self._keep(reference, "output", reference.output, reference_output(candidate))
        return None

    def stale(self, key: EventKey, paths: frozenset[str]) -> None:
        """What was edited in place meanwhile is kept as it is by then."""

    def _keep(self, call: Call, path: str, r: object, c: object) -> None:
        candidates = dict(tensor_leaves(c, path))
        for leaf_path, leaf in tensor_leaves(r, path):
            if leaf_path in candidates:
                both = leaf.detach().clone(), candidates[leaf_path].detach().clone()
                self.captured.append(Captured(call.name, call.index, leaf_path, *both))


def _arguments(inputs: Inputs, model: nn.Module) -> tuple[tuple[object, ...], dict[str, object]]:
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, tuple):
        return inputs, {}
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"inputs are a {type(inputs).__name__}; expected a dict of keyword arguments, a tuple "
            "of positional ones, or a single tensor"
        )
    kwargs = {str(name): value for name, value in inputs.items()}
    parameters = inspect.signature(getattr(model, "_orig_mod", model).forward).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for name in kwargs:
            if name not in parameters:
                raise InputError(
                    f"inputs name {name!r}, which forward of {type(model).__name__} does not take; "
                    f"it takes {', '.join(parameters) or 'nothing'}{near_names(name, parameters)}"
                )
    return (), kwargs


def _included(pairing: Pairing, globs: Sequence[str]) -> dict[str, str]:
    """The pairs whose reference name matches a glob."""
    names = list(pairing.pairs.values())
    wanted: set[str] = set()
    for glob in globs:
        matched = fnmatch.filter(names, glob)
        if not matched:
            raise UsageError(
                f"{glob!r} matches none of the {len(names)} modules that the models have in "
                f"common, such as {', '.join([n for n in names if n][:3]) or 'the root'}"
                f"{near_names(glob, names)}"
            )
        wanted.update(matched)
    return {name: target for name, target in pairing.pairs.items() if target in wanted}


def _working_dtype(model: nn.Module) -> torch.dtype | None:
    """The floating dtype of most of a model's parameters; None if it has none."""
    sizes: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] += parameter.numel()
    return max(sizes, key=sizes.__getitem__, default=None)


def _casting(reference: nn.Module, candidate: nn.Module) -> tuple[torch.dtype, torch.dtype] | None:
    """The dtypes that float inputs are cast from and to for the candidate; None if they fit."""
    r, c = (
        {p.dtype for p in model.parameters() if p.is_floating_point()}
        for model in (reference, candidate)
    )
    return (r.pop(), c.pop()) if len(r) == len(c) == 1 and r != c else None


def _copied(
    inputs: tuple[tuple[object, ...], dict[str, object]],
    cast: tuple[torch.dtype, torch.dtype] | None,
) -> tuple[tuple[object, ...], dict[str, object]]:
    """A copy of everything, caches and other objects included, tensors free of their graph.

    The models may edit what they are given, so each gets its own.
    """
    memo: dict[int, object] = {}
    for _, tensor in tensor_leaves(inputs, ""):
        copied = tensor.detach().clone()
        memo[id(tensor)] = copied.to(cast[1]) if cast and tensor.dtype == cast[0] else copied
    return copy.deepcopy(inputs, memo)


def _raise_failure(outcome: Outcome, comparison: "Comparison | None") -> None:
    if outcome.failure is not None:
        raise ModelRunError(_in_words(outcome.failure), comparison) from outcome.failure.exception


def _in_words(failure: Failure) -> str:
    where = "outside its modules"
    if failure.call is not None:
        where = f"in module {failure.call.name!r}" if failure.call.name else "in its own forward"
        where += f" ({type(failure.call.module).__name__}, call {failure.call.index})"
    text = f"the {failure.side} raised {type(failure.exception).__name__} {where}: "
    also = "" if failure.also is None else "; the candidate raised too"
    return f"{text}{failure.exception}{also}"


def _check_something_compared(comparison: "Comparison", outcome: Outcome) -> None:
    compared = [row for row in comparison.rows if row.is_output and row.difference is not None]
    met = any(row.module for row in comparison.rows if row.is_output)
    called, others = (
        [name for name in calls if name]
        for calls in (outcome.reference_calls, outcome.candidate_calls)
    )
    hint = "Are these the same model? If only the names differ, give rename rules"
    if not compared:
        raise NothingComparedError(
            "no output of the candidate could be compared with the reference's: none of its "
            f"{len(others) + 1} called modules has an output of the same shape as its counterpart "
            f"among the reference's {len(called) + 1}. {hint}"
        )
    if called and others and not comparison.verdict.agrees and not met:
        raise NothingComparedError(
            f"the outputs differ, and none of the reference's {len(called)} called modules (such "
            f"as {', '.join(called[:3])}) has a counterpart among the candidate's {len(others)} "
            f"(such as {', '.join(others[:3])}). {hint}"
        )


def _coverage(pairing: Pairing, comparer: Comparer, outcome: Outcome) -> Coverage:
    reasons: dict[str, str] = {}
    paired, one_sided = set(), set()
    for own, target in pairing.pairs.items():
        called = target in outcome.reference_calls, own in outcome.candidate_calls
        if called == (True, False):
            reasons[target] = "called by the reference, not by the candidate"
        elif called == (False, True):
            reasons[own] = reasons[target] = "called by the candidate, not by the reference"
            one_sided.add(own)
        else:
            paired.add(target)
    hidden = [
        (own, target)
        for own, target in pairing.pairs.items()
        if hides_children(pairing.candidate[own]) or hides_children(pairing.reference[target])
    ]
    for name in pairing.reference:
        if name not in paired:
            around = [(target, own) for own, target in hidden]
            reasons.setdefault(name, _why_unseen(name, around, "candidate"))
    for name in pairing.candidate:
        if name not in pairing.pairs:
            one_sided.add(name)
            reasons.setdefault(name, _why_unseen(name, hidden, "reference"))
    measured = [row for row in comparer.rows if row.difference is not None]
    return Coverage(
        paired_modules=tuple(name for name in pairing.reference if name in paired),
        reference_only=tuple(name for name in pairing.reference if name not in paired),
        candidate_only=tuple(name for name in pairing.candidate if name in one_sided),
        reasons=reasons,
        compared_calls=len({(row.module, row.call) for row in measured}),
        compared_elements=comparer.compared_elements,
        unmatched_calls=_unmatched_calls(outcome),
        held_bytes_peak=outcome.held_bytes_peak,
    )


def _why_unseen(name: str, hidden: Sequence[tuple[str, str]], other_side: str) -> str:
    """Why a module has no counterpart; `hidden` pairs its side's names with the other side's."""
    for outer, counterpart in hidden:
        if not outer or name.startswith(f"{outer}."):
            place = f"`{counterpart}`" if counterpart else "the root"
            return f"hidden: {place} of the {other_side} is compiled or scripted"
    return f"the {other_side} has no such module"


def _unmatched_calls(outcome: Outcome) -> tuple[tuple[str, str, int], ...]:
    sides = (
        ("reference", outcome.unmatched_reference),
        ("candidate", outcome.unmatched_candidate),
    )
    return tuple((side, name, call) for side, calls in sides for name, call in calls)
