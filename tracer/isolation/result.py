"""The result of isolation: what each module adds to the error, and what causes it.

The error that modules introduce themselves (leaves):
    9.1%  `model.layers.0.mlp.down_proj`, PEIR 0.0596, relative L2 0.106
          without `weight` (uint4 weight): relative L2 0.106 → 0.000131
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.isolation.causes import Cause, Rounding
from tracer.measurement.rows import CallKey

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class IsolatedCall:
    """The error that one call introduces.

    Attributes:
        module, call: the reference's name and the call index.
        value: which of its values is the worst: "output", "output.logits", "written....", or with
            `leaves` what it passes to a module that it calls: "o_proj.kwargs.input".
        receiver: that module, by its name inside this one: "o_proj"; empty for an output.
        passed_as: the argument's name, where the receiver takes several values.
        own_lines: it calls others, and this is what it computes in its own forward.
        depth: in how many other chosen modules it is; 0 with `leaves`.
        input_peir: the largest PEIR among its inputs where both models run freely; None where no
            input is compared.
        peir: that of the value in the same run; None where it was not compared there.
        introduced_peir: that of the value where the inputs are the reference's.
        introduced: its relative L2 error there, sqrt(sum d^2 / sum r^2).
        share: `introduced` squared over the sum of these squares of all calls of this depth, so
            noise power over the power of the signal that it is in. Shares sum to 1, or are all 0
            where there is no error; calls of infinite error (other shapes, values that are not
            finite on one side) share all of it. How much of it reaches the model's output is
            another question, which `what_if` answers.
    """

    module: str
    call: int
    value: str
    own_lines: bool
    depth: int
    input_peir: float | None
    peir: float | None
    introduced_peir: float
    introduced: float
    share: float = 0.0
    receiver: str = ""
    passed_as: str = ""


@dataclass(frozen=True)
class IsolatedModule:
    """The error that a module introduces in all its calls, and what causes it.

    Attributes:
        module: the reference's name.
        worst: its call of the largest introduced error.
        calls: how many calls it has.
        share: the sum of their shares.
        causes: the switches of the candidate that explain most, where they were looked for: of
            modules that are alike but for their layer in the worst one.
    """

    module: str
    worst: IsolatedCall
    calls: int
    share: float
    causes: tuple[Cause, ...] = ()


@dataclass(frozen=True)
class IsolatedGroup:
    """Modules whose names differ in the number of their layer only, and the error of all of them.

    Attributes:
        pattern: their name with a star for each such number: "model.layers.*.input_layernorm".
        modules: how many of them introduce an error.
        share: the sum of their shares.
        worst: the name of the one of the largest share.
        worst_share: that share.
        introduced: the largest relative L2 error that a call of one of them introduces.
    """

    pattern: str
    modules: int
    share: float
    worst: str
    worst_share: float
    introduced: float


@dataclass(frozen=True)
class IsolatedPoint:
    """A switch of the candidate's, such as a quantization point, over all layers that have it.

    Attributes:
        pattern: its name with a star for the number of each layer:
            "model.layers.*.self_attn.softmax".
        kind: what it is in words: "uint8 activation"; several with commas, where layers differ.
        meaning: what is there, where the candidate says it.
        modules: how many modules have it.
        share: the part of the whole error that goes away without it, one module at a time: the sum
            over its modules of their share times `Cause.part`. Errors of several points in a row
            can hide one another, or add up, so that these shares need not sum to 1.
        rounding: what rounding does there in all of them, where the candidate counts it.
        measured: in how many of them it was left out, where the others are taken to be like these;
            None for all.
    """

    pattern: str
    kind: str
    meaning: str
    modules: int
    share: float
    rounding: Rounding | None = None
    measured: int | None = None


@dataclass(frozen=True)
class Recovery:
    """How far the model's own output recovers with modules of the reference's in it.

    Attributes:
        modules: the reference's names of the modules that computed instead of the candidate's,
            from the candidate's inputs; each with the modules that it calls.
        before, after: PEIR of the model's first output.
        before_l2, after_l2: its relative L2 error, which a single value does not decide.
        unswapped: those of them whose output could not replace the candidate's.
    """

    modules: tuple[str, ...]
    before: float
    after: float
    before_l2: float
    after_l2: float
    unswapped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Isolation:
    """The error that each of some modules introduces; see `tracer.isolation.measure`.

    Attributes:
        level: what was chosen: "leaves", "blocks", "layers" or a glob.
        calls: one for each chosen call, in execution order.
        modules: the same by module, those that introduce most first.
        groups: the same by pattern of their names, over all layers.
        points: by quantization point over all layers, those that cost most first; nothing without
            causes.
        recoveries: one for each module that was swapped, and one for all of them together.
        unforced: (module, call) of those that could not be given the reference's values; what comes
            after them inherits their error.
    """

    level: str
    calls: tuple[IsolatedCall, ...]
    modules: tuple[IsolatedModule, ...]
    recoveries: tuple[Recovery, ...] = ()
    unforced: tuple[CallKey, ...] = ()
    groups: tuple[IsolatedGroup, ...] = ()
    points: tuple[IsolatedPoint, ...] = ()

    @property
    def is_repetitive(self) -> bool:
        """Whether the groups say more than the modules do."""
        return any(group.modules > 1 for group in self.groups)

    def __repr__(self) -> str:
        worst = self.modules[0] if self.modules else None
        most = ""
        if worst is not None and worst.share > 0.0:
            most = f", most by {worst.module or 'the root'}, {worst.share:.1%}"
        return f"<Isolation: {len(self.modules)} modules ({self.level}){most}>"

    def _repr_html_(self) -> str:
        from tracer.reports.notebook import html

        return html(self)

    @property
    def explanation(self) -> str:
        """The worst modules with their shares and causes, and what swapping did, in words."""
        import tracer

        return tracer.explain(self)

    def to_frame(self) -> "pandas.DataFrame":
        """One row per call, in execution order, with the attributes of `IsolatedCall`."""
        import pandas

        columns = list(IsolatedCall.__dataclass_fields__)
        records = [[getattr(call, name) for name in columns] for call in self.calls]
        return pandas.DataFrame(records, columns=columns)
