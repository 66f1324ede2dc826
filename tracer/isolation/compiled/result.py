"""What was found inside a compiled model."""

from dataclasses import dataclass

from tracer.execution.compilation import Stage
from tracer.measurement.rows import BEYOND_ROUNDING, Row


@dataclass(frozen=True)
class Rung:
    """The candidate compiled as far as one stage.

    Attributes:
        stage: which.
        backend: the name by which `torch.compile` knows it; empty for what is not compiled.
        agrees: whether it agrees with the reference; None where a model raised.
        peir: of its output; None where nothing was compared.
        error: what was raised.
        graphs: how many were made of it; None where it was not run anew.
        breaks: why graphs were broken off.
    """

    stage: Stage
    backend: str
    agrees: bool | None
    peir: float | None
    error: str = ""
    graphs: int | None = None
    breaks: tuple[str, ...] = ()


@dataclass(frozen=True)
class AloneCompiled:
    """A module that was compiled alone, and given the reference's inputs.

    Attributes:
        module: the reference's name.
        agrees: whether what it makes of them agrees; None where it raised.
        row: its worst output; None where it raised.
        floor: the PEIR that rounding alone makes of the same inputs; None where that was not
            measured.
        error: what it raised.
    """

    module: str
    agrees: bool | None
    row: Row | None = None
    floor: float | None = None
    error: str = ""

    @property
    def is_rounding(self) -> bool:
        """Whether it is no further off than its noise floor allows."""
        return self.floor is not None and self.peir <= BEYOND_ROUNDING * self.floor

    @property
    def peir(self) -> float:
        """Of its worst output, a ratio."""
        return float("nan") if self.row is None else self.row.peir

    @property
    def multiple(self) -> float | None:
        """The PEIR over the noise floor; None where that was not measured, or is nothing itself."""
        return self.peir / self.floor if self.floor else None


@dataclass(frozen=True)
class GraphNode:
    """A node of a graph that dynamo has made.

    Attributes:
        module: the module whose forward it comes from, as the compiled code names it; "" where that
            is the compiled module itself.
        name, operation: its own name, and the operation's.
        file, line, text: the line of the model that it was made of; empty and 0 where that is not
            known.
        peir: how far its value is off, a ratio; None where the graph lacks it or makes it besides.
        nodes: how many there are in its graph that compute.
    """

    module: str
    name: str
    operation: str
    file: str
    line: int
    text: str
    peir: float | None
    nodes: int

    @property
    def location(self) -> str:
        """The file and the line."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class LeftUncompiled:
    """The candidate with some modules left as they are written.

    Attributes:
        modules: their names.
        called: what these call, where each of that is compiled alone.
        agrees: whether the whole agrees then; None where a model raised.
        before, after: the PEIR of its output; None where nothing was compared.
        error: what was raised.
    """

    modules: tuple[str, ...]
    called: tuple[str, ...]
    agrees: bool | None
    before: float | None
    after: float | None
    error: str = ""


@dataclass(frozen=True)
class CompiledInside:
    """What was found inside a compiled candidate.

    Attributes:
        parts: the names of what is compiled; "" is all of it.
        rungs: the stages that were tried, in order.
        stage: the first at which it differs; None where none does.
        alone: the modules that were compiled alone.
        culprits: those that differ by themselves, or without which the whole agrees.
        together: no module differs alone; they are named for what is computed around them.
        node: the first of the graph's nodes that is wrong.
        left: the candidate with the culprits left uncompiled; None where there are none.
        draws: what differs are random numbers, which inductor draws in a way of its own.
    """

    parts: tuple[str, ...]
    rungs: tuple[Rung, ...]
    stage: Stage | None
    alone: tuple[AloneCompiled, ...] = ()
    culprits: tuple[str, ...] = ()
    together: bool = False
    node: GraphNode | None = None
    left: LeftUncompiled | None = None
    draws: bool = False

    @property
    def explanation(self) -> str:
        """The finding in words, several lines."""
        import tracer

        return tracer.explain(self)
