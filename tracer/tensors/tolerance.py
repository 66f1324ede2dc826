"""How far a pair of values may lie apart and still agree."""

import functools
import math
from dataclasses import dataclass, replace

import torch

from trace_model.annotations import checked
from tracer.errors import UsageError
from tracer.tensors.difference import Difference
from tracer.tensors.exact import is_inexact


@checked(UsageError)
@dataclass(frozen=True)
class Tolerance:
    """How far a pair of leaves may lie apart and still agree, as a limit on PEIR per dtype.

    The coarser dtype of a pair decides. Integers and booleans must be equal. The limits allow for
    rounding that has gone through a deep model: about 100 units in the last place in float32, 20
    and 10 in float16 and bfloat16, whose errors average out over the layers. The peak of many
    rounding errors has a long tail, above all in attention weights, so that up to four times the
    limit of the table agrees if the error as a whole (relative L2) is within it.
    `benchmarks/noise.py` prints what correct pairs of models reach.

    Attributes:
        peir: one strict limit for every floating dtype instead of the table, or None for the
            table.
        working: the dtypes that the two models work in. A value that a bfloat16 model passes on in
            float32 is no more exact than bfloat16. A run adds those that autocast computes in.
    """

    peir: float | None = None
    working: tuple[torch.dtype, ...] = ()

    def __post_init__(self) -> None:
        if self.peir is not None and not (self.peir >= 0.0 and math.isfinite(self.peir)):
            raise UsageError(
                f"tolerance {self.peir!r}: expected a finite PEIR of at least 0, such as 1e-5"
            )

    def working_in(self, *dtypes: torch.dtype) -> "Tolerance":
        """The same for models that work in further dtypes."""
        further = set(dtypes) - set(self.working)
        return replace(self, working=(*self.working, *further)) if further else self

    def limit(self, reference: torch.dtype, candidate: torch.dtype) -> float:
        """The largest PEIR at which a pair of these dtypes agrees."""
        limit = _rounding(reference, candidate, self.working)
        return limit if self.peir is None or limit == 0.0 else self.peir

    def below_rounding(self) -> tuple[torch.dtype, float] | None:
        """The dtype that the models work in, and its limit, where the one that was given is below
        what that allows for rounding; None where it is not."""
        own = Tolerance(working=self.working)
        dtype = max(self.working, key=lambda dtype: own.limit(dtype, dtype), default=None)
        if self.peir is None or dtype is None or self.peir >= (limit := own.limit(dtype, dtype)):
            return None
        return dtype, limit

    def is_coarse(self, dtype: torch.dtype | None, reference: torch.dtype | None) -> bool:
        """Whether a value of this dtype is coarser than the reference's and than both models."""
        if dtype is None or reference is None or not is_inexact(dtype):
            return False
        of_models = _rounding(reference, reference, self.working) if is_inexact(reference) else 0.0
        return self.limit(dtype, dtype) > of_models

    def agrees(
        self, difference: Difference, reference: torch.dtype, candidate: torch.dtype
    ) -> bool:
        """Whether a measured pair agrees."""
        return self.agrees_within(self.limit(reference, candidate), difference)

    def agrees_within(self, limit: float, difference: Difference) -> bool:
        """Whether a measured pair of which the limit is known agrees."""
        peak = difference.relative_peak
        if difference.mismatched or peak > _TAIL * limit:
            return False
        if peak <= limit:
            return True
        return self.peir is None and difference.relative_l2 <= limit


@functools.lru_cache(maxsize=4096)
def _rounding(
    reference: torch.dtype, candidate: torch.dtype, working: tuple[torch.dtype, ...]
) -> float:
    if not (is_inexact(reference) or is_inexact(candidate)):
        return 0.0
    dtypes = (reference, candidate, *working)
    return max(_PEIR_LIMITS.get(dtype, 0.2) for dtype in dtypes if is_inexact(dtype))


_TAIL = 4.0

_PEIR_LIMITS = {
    torch.float64: 1e-10,
    torch.complex128: 1e-10,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.float16: 2e-2,
    torch.bfloat16: 8e-2,
}
