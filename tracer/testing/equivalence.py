"""assert_equivalent(): a comparison for a test, which fails where the models do not agree.

>>> def test_port():
...     tracer.assert_equivalent(original, port, {"input_ids": ids}, peir=1e-5)
"""

from collections.abc import Mapping, Sequence

from torch import nn

from trace_model.annotations import checked
from tracer.adapters.opening import Model, as_model
from tracer.comparison.result import Comparison
from tracer.comparison.run import compare
from tracer.errors import NotEquivalentError, UsageError
from tracer.execution.inputs import Inputs
from tracer.isolation.causes import switches_of
from tracer.tensors.tolerance import Tolerance
from tracer.testing.failure import render


@checked(UsageError, but=("inputs", "candidate_inputs"))
def assert_equivalent(
    reference: Model,
    candidate: Model,
    inputs: Inputs | None = None,
    *,
    peir: float | Tolerance | None = None,
    candidate_inputs: Inputs | None = None,
    map_inputs: Mapping[str, str] | None = None,
    rename: Mapping[str, str] | None = None,
    include: str | Sequence[str] = "*",
    min_modules: int = 1,
    train: bool = False,
    strict: bool = False,
    confirm: bool = True,
    isolate: str | None = None,
    noise_floor: bool = False,
    samples: int = 0,
) -> Comparison:
    """Compares two models and raises where they do not agree.

    Args:
        reference, candidate, inputs, candidate_inputs, map_inputs: as for `compare`.
        peir: the peak error to interval ratio up to which values agree; by default a limit per
            dtype. A quantised candidate, which differs everywhere, needs one.
        min_modules: how many modules have to be compared at least, the model itself among them.
        rename, include, train, strict, confirm, isolate, noise_floor, samples: as for `compare`.

    Returns:
        The comparison of models that agree.

    Raises:
        NotEquivalentError: they do not, or too few modules were compared. It is an AssertionError
            that shows the verdict, the rows around the first divergence and the source of both
            sides; `comparison` holds the rest.
        UsageError: a quantised candidate without a limit, or as for `compare`.
        InputError, StorageError, ModelRunError, NothingComparedError: as for `compare`.
    """
    __tracebackhide__ = True  # pytest shows the test's line last
    reference, candidate = as_model(reference), as_model(candidate)
    _check_limit(reference, candidate, peir)
    comparison = compare(
        reference,
        candidate,
        inputs,
        candidate_inputs=candidate_inputs,
        map_inputs=map_inputs,
        rename=rename,
        tolerance=peir,
        include=include,
        train=train,
        strict=strict,
        confirm=confirm,
        isolate=isolate,
        noise_floor=noise_floor,
        samples=samples,
    )
    if not comparison.verdict.agrees:
        raise NotEquivalentError(render(comparison), comparison)
    compared = len(comparison.coverage.paired_modules)
    if compared < min_modules:
        reason = f"{compared} modules were compared, and at least {min_modules} were expected"
        raise NotEquivalentError(render(comparison, reason), comparison)
    return comparison


def _check_limit(
    reference: nn.Module, candidate: nn.Module, peir: float | Tolerance | None
) -> None:
    """Refuses a quantised candidate without a limit, unless the reference is quantised as well."""
    points = [switch.point for switch in switches_of(candidate)]
    if peir is None and points and not any(switches_of(reference)):
        raise UsageError(
            f"the candidate quantises at {len(points)} points, such as {points[0]}, so that "
            "everything differs: say how far it may be off, by peir=0.1 for instance"
        )
