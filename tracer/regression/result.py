"""What the gate has decided, and why."""

from dataclasses import dataclass
from typing import Literal

from tracer.errors import no_truth_value
from tracer.regression.baseline import Figures
from tracer.regression.related import Mismatch
from tracer.reports.narrator import gate as narrator
from tracer.reports.narrator import lines

Kind = Literal["worse", "new", "gone", "better"]
# What a limit may be on; the names are those of a Difference.
Measure = Literal["peir", "sqnr", "cosine", "relative_l2"]


@dataclass(frozen=True)
class Change:
    """An output that is not as it was in the baseline.

    Attributes:
        kind: "worse" or "better", by more than the margins and than an estimate leaves open; "gone"
            is only in the baseline, "new" only in the comparison.
        module, call, value: as for a Row.
        before, now: None where there is none.
        fails: it is a regression.
    """

    kind: Kind
    module: str
    call: int
    value: str
    before: Figures | None
    now: Figures | None
    fails: bool


@dataclass(frozen=True)
class Limit:
    """What a limit on the outputs of some modules has found.

    Attributes:
        glob: of the modules' names.
        peir: the limit, where it is one on PEIR.
        outputs, exceeded: how many it was checked against, and how many are beyond it.
        module, call, value: the worst of them.
        worst: its figure; a PEIR as it is checked against a tolerance, see `Row.error`.
        measure: what it is a limit on: "peir" or "relative_l2", at most; "sqnr" or "cosine", at
            least.
        bound: the limit, of whatever measure.
    """

    glob: str
    peir: float | None
    outputs: int
    exceeded: int
    module: str
    call: int
    value: str
    worst: float
    measure: Measure = "peir"
    bound: float | None = None


# The level of `tracer.choices.FAIL_ON` from which up each fails.
_LEVELS = {
    "worse": "regression", "new": "regression", "limit": "regression", "agreed": "regression",
    "less": "coverage", "diverges": "divergence",
}  # fmt: skip


@dataclass(frozen=True)
class Less:
    """Something of which the comparison has less than the baseline.

    Attributes:
        what: "modules", "outputs", "calls" or "elements".
        count, total: of the modules and outputs, how many are gone; of the others, how many are
            there still; and how many the baseline has.
        modules: the names of those that are gone.
        first: the first output that is gone.
    """

    what: Literal["modules", "outputs", "calls", "elements"]
    count: int
    total: int
    modules: tuple[str, ...] = ()
    first: Change | None = None


@dataclass(frozen=True)
class Reason:
    """Something for which a comparison may fail.

    Attributes:
        kind: "worse", outputs are; "new", outputs that the baseline does not have diverge; "limit",
            outputs are beyond one; "agreed", the models did in the baseline; "less", of them was
            compared; "diverges", the models do.
        baseline: where that is from.
        count, total: how many outputs, and of how many.
        first, most: the first of them, and the worst.
        limit: the one that is exceeded.
        less: what there is less of.
    """

    kind: Literal["worse", "new", "limit", "agreed", "less", "diverges"]
    baseline: str = ""
    count: int = 0
    total: int = 0
    first: Change | None = None
    most: Change | None = None
    limit: Limit | None = None
    less: tuple[Less, ...] = ()

    @property
    def level(self) -> str:
        """From which of `tracer.choices.FAIL_ON` up it fails."""
        return _LEVELS[self.kind]

    @property
    def what(self) -> str:
        """In words: "2 of 58 outputs are worse than in main.json"."""
        return narrator.what(self)

    @property
    def where(self) -> str:
        """Which, and how much, in words."""
        return narrator.where(self)

    def __str__(self) -> str:
        return f"{self.what}: {self.where}" if self.where else self.what


@dataclass(frozen=True)
class Gate:
    """Whether a comparison passes, and why not.

    It is neither true nor false, as a Comparison is neither: ask `passes`.

    Attributes:
        passes: it does.
        fail_on: what was to fail, one of `tracer.choices.FAIL_ON`.
        reasons: why it does not.
        let_pass: what was found and was not to fail.
        diverges: the models do, beyond the limits that were given.
        baseline: where the baseline is from; None without one.
        outputs: how many are both in the baseline and in the comparison.
        changes: since the baseline, what fails first, and the worst of it.
        modules_gone: those that were compared in the baseline, and not now.
        limits: those that were given, with the worst of their outputs.
        mismatches: in what the baseline is of another comparison, where that was let pass.
        unchecked: what the baseline does not say of what it is of: "weights", "inputs", "settings".
    """

    passes: bool
    fail_on: str
    reasons: tuple[Reason, ...]
    let_pass: tuple[Reason, ...]
    diverges: bool
    baseline: str | None = None
    outputs: int = 0
    changes: tuple[Change, ...] = ()
    modules_gone: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    mismatches: tuple[Mismatch, ...] = ()
    unchecked: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        raise no_truth_value(self, "`.passes`")

    def __repr__(self) -> str:
        what = "; ".join(reason.what for reason in self.reasons)
        outcome = "passes" if self.passes else f"fails: {what}"
        return f"<Gate: {outcome} (fail_on={self.fail_on!r})>"

    def _repr_html_(self) -> str:
        from tracer.reports.notebook import WIDTH, page
        from tracer.reports.parts.gate import section

        return page(section(self, WIDTH))


lines.register(Gate)(narrator.lines)
