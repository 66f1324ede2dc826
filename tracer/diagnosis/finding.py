"""What is found of one divergence: where it begins, how, and the evidence for that."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tracer.diagnosis.parameters import ParameterDifference, Setting
from tracer.diagnosis.trials import Proof
from tracer.execution.side import Draws
from tracer.interventions.trial import Replacements
from tracer.measurement.rows import Row
from tracer.tensors.known_mistakes import Fit


class OriginKind(StrEnum):
    """What is wrong at an origin."""

    PARAMETER = "parameter"
    COMPUTATION = "computation"
    ARGUMENT = "argument"
    GRADIENT = "gradient"


@dataclass(frozen=True)
class Origin:
    """Where the divergence begins.

    Attributes:
        module: the module whose forward or parameters introduce it; "" is the root.
        argument: the argument that this module passed wrongly, if that is what it did.
        kind: what is wrong.
        reference_line, candidate_line: "file:line" on each side; None where there is no source.
        candidate_module: the candidate's name of the module; None where it is the reference's.
    """

    module: str
    argument: str | None
    kind: OriginKind
    reference_line: str | None
    candidate_line: str | None
    candidate_module: str | None = None


class FindingKind(StrEnum):
    """How a divergence comes about at its origin."""

    EDITED = "edited"  # an argument is edited in place, and used again after it
    PASSED = "passed"  # a wrong argument is passed
    BEFORE_CALL = "before_call"  # in its own forward: what it computes for another module
    AFTER_CALLS = "after_calls"  # in its own forward, after the last call that it makes
    INSIDE = "inside"  # of a module that calls no other
    LEFT = "left"  # what it leaves in an argument
    PARAMETERS = "parameters"
    RAISES = "raises"
    BACKWARD = "backward"  # the gradients that it passes on
    FROZEN = "frozen"  # parameters that the reference trains
    NOT_FROZEN = "not_frozen"  # parameters that the reference does not train
    COMPILED = "compiled"  # inside of what is compiled, which cannot be seen
    SCRIPTED = "scripted"  # likewise
    MISCOMPILED = "miscompiled"  # compiled it differs, as it is written it does not
    OPTIMISED = "optimised"  # by the optimisations of the runtime that computes a graph
    GROWS = "grows"  # no single value is the cause


@dataclass(frozen=True)
class Finding:
    """The origin that was found for a divergence, and the evidence.

    Attributes:
        origin: where it begins.
        kind: how it comes about.
        proof: what a run with the reference's value there has shown; None where none is made.
        other: the module that was passed the wrong value, or that was called last; of what a
            runtime optimises, the side.
        more_calls: how many further calls were passed it.
        from_outside: what runs the model passed it.
        passed: what each side passed for it, in words; the candidate's is empty where the two are
            distinguished by `peir` alone.
        peir: how far it is off.
        since: the last module before it whose results agree.
        names: the arguments that are edited, or the argument that something is left in; of a
            backward, the arguments and parameters whose gradients are wrong; outputs of a graph.
        parameters: those that differ, by name.
        equals: those of them that equal another one of the reference's, whose name it is.
        settings: those of its module that differ, and the dtypes of what raises.
        form_alone: the value comes in another form.
        growth: the first value with the error, and where that is beyond the tolerance.
        unexplained: how many more values disagree although their inputs are right.
    """

    origin: Origin
    kind: FindingKind
    proof: Proof | None = None
    other: str | None = None
    more_calls: int = 0
    from_outside: bool = False
    passed: tuple[str, str] = ("", "")
    peir: float | None = None
    since: str | None = None
    names: tuple[str, ...] = ()
    parameters: Mapping[str, ParameterDifference] = field(default_factory=dict)
    equals: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()
    form_alone: bool = False
    growth: tuple[Row, Row] | None = None
    unexplained: int = 0

    @property
    def confirmed(self) -> bool:
        """Whether a run with the reference's value there takes it away."""
        return self.proof is not None and self.proof.confirmed

    @property
    def is_hidden(self) -> bool:
        """Whether it lies where nothing can be seen."""
        return self.kind in (FindingKind.COMPILED, FindingKind.SCRIPTED)

    @property
    def mistakes(self) -> tuple[Fit, ...]:
        """Known kinds of mistake that explain it, best first."""
        return () if self.proof is None else self.proof.mistakes

    @property
    def trial(self) -> Replacements | None:
        """What was replaced in that run; None where none was made."""
        return None if self.proof is None else self.proof.trial


@dataclass(frozen=True)
class TightTolerance:
    """A tolerance below what rounding alone may come to in the dtype that the models work in.

    Attributes:
        peir: the tolerance.
        dtype: the dtype, as a word.
        limit: the limit that goes by it.
    """

    peir: float
    dtype: str
    limit: float


@dataclass(frozen=True)
class RandomDraws:
    """Models that draw random numbers in evaluation.

    Attributes:
        sides: those that do, the reference first.
        agreed: their values agree all the same: both began from one random state.
    """

    sides: tuple[Draws, ...]
    agreed: bool
