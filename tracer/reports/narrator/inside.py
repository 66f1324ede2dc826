"""What was found inside a compiled model, in words.

Compiled in stages, the first that differs is the backend (inductor):
  as written                                agrees, PEIR 0
  dynamo (eager)                            agrees, PEIR 0
  AOT (aot_eager)                           agrees, PEIR 0
  AOT and decompositions (...)              agrees, PEIR 0
  the backend (inductor)                    differs, PEIR 0.000244
Compiled alone, on the reference's inputs, 1 of 4 modules differs:
  `layers.1.mlp`, PEIR 0.000244 (limit 1e-05), 2.1e+03 times its noise floor
The first of the 6 nodes of its graph that is wrong is `y`, PEIR 0.000244:
  to at port/mlp.py:40
    y = x.half().float()
With `layers.1.mlp` left uncompiled, the whole agrees: its PEIR falls from 0.000244 to 1.2e-07.
  module = model.get_submodule("layers.1.mlp")
  module.forward = torch.compiler.disable(module.forward)
"""

from collections.abc import Iterator

from tracer.execution.compilation import Stage
from tracer.isolation.compiled.result import (
    AloneCompiled,
    CompiledInside,
    GraphNode,
    LeftUncompiled,
    Rung,
)
from tracer.text import FEW, few, figure, module_in_words, short_line

_STAGES = {
    Stage.AS_WRITTEN: "as written",
    Stage.DYNAMO: "dynamo",
    Stage.AOT: "AOT",
    Stage.DECOMPOSED: "AOT and decompositions",
    Stage.BACKEND: "the backend",
}
_MOST_MODULES = 5


def lines(inside: CompiledInside) -> list[str]:
    """The ladder, the modules, the node, and what mends it."""
    return list(_lines(inside))


def _lines(inside: CompiledInside) -> Iterator[str]:
    parts = few([f"`{name}`" if name else "The candidate" for name in inside.parts], " and ")
    compiled = f"{parts} {'is' if len(inside.parts) == 1 else 'are'} compiled"
    failed = next((rung for rung in inside.rungs if rung.stage is inside.stage), None)
    if failed is None:
        yield f"{compiled}; in stages, none differs:"
    elif inside.stage is Stage.AS_WRITTEN:
        yield f"{compiled}, and that is not why: the candidate differs as it is written."
    else:
        yield f"{compiled}; in stages, the first that differs is {_stage(failed)}:"
    if inside.stage is not Stage.AS_WRITTEN:
        yield from map(_rung, inside.rungs)
    yield from _breaks(inside.rungs)
    if inside.draws:
        yield (
            "What differs are random numbers: inductor draws its own, unless torch.compile is "
            'given options={"fallback_random": True}; with that it agrees.'
        )
    yield from _alone(inside)
    if inside.node is not None:
        yield from _node(inside.node)
    if inside.left is not None:
        yield from _left(inside, inside.left)


def _stage(rung: Rung) -> str:
    return _STAGES[rung.stage] + (f" ({rung.backend})" if rung.backend else "")


def _rung(rung: Rung) -> str:
    if rung.agrees is None:
        return f"  {_stage(rung):<52} raises: {rung.error}"
    peir = "" if rung.peir is None else f", PEIR {figure(rung.peir)}"
    return f"  {_stage(rung):<52} {'agrees' if rung.agrees else 'differs'}{peir}"


def _breaks(rungs: tuple[Rung, ...]) -> Iterator[str]:
    broken = next((rung for rung in rungs if rung.breaks), None)
    if broken is not None:
        count = f"{broken.graphs} graphs" if broken.graphs != 1 else "1 graph"
        yield f"Its code is broken into {count}: {few(list(broken.breaks), '; ')}"


def _alone(inside: CompiledInside) -> Iterator[str]:
    differing = [item for item in inside.alone if item.agrees is False]
    differing.sort(key=lambda item: item.module not in inside.culprits)  # and what is around them
    if inside.alone:
        count = f"{len(differing) or 'none'} of {len(inside.alone)} modules"
        verb = "differ" if len(differing) > 1 else "differs"
        yield f"Compiled alone, on the reference's inputs, {count} {verb}{':' * bool(differing)}"
    yield from (_item(item) for item in differing[:_MOST_MODULES])
    if len(differing) > _MOST_MODULES:
        yield f"  and {len(differing) - _MOST_MODULES} more"
    for item in [item for item in inside.alone if item.agrees is None][:FEW]:
        yield f"  {module_in_words(item.module)} raises when it is compiled alone: {item.error}"
    if inside.together and inside.alone:
        yield "What differs is what is computed around them, or of several of them in one piece."


def _item(item: AloneCompiled) -> str:
    assert item.row is not None
    said = f"  {module_in_words(item.module)}, PEIR {figure(item.peir)}"
    said += f" (limit {figure(item.row.limit)})"
    if item.floor == 0.0:
        return f"{said}, where rounding makes nothing"
    return said + ("" if item.multiple is None else f", {item.multiple:.3g} times its noise floor")


def _node(node: GraphNode) -> Iterator[str]:
    where = f" in `{node.module}`" if node.module else ""
    how = "" if node.peir is None else f", PEIR {figure(node.peir)}"
    first = f"The first of the {node.nodes} nodes of its graph that is wrong is"
    if node.nodes == 1:
        first = "The only node of its graph is"
    yield f"{first} `{node.name}`{where}{how}:"
    if not node.line:
        yield f"  {node.operation} (no source)"
        return
    yield f"  {node.operation} at {short_line(node.location)}"
    yield f"    {node.text}"


def _left(inside: CompiledInside, left: LeftUncompiled) -> Iterator[str]:
    modules = few([module_in_words(name) for name in left.modules], " and ")
    if left.called:
        modules = f"the forward of {modules} itself"
    if left.agrees is None:
        yield f"With {modules} left uncompiled, {left.error}."
        return
    fall = ""
    if left.before is not None and left.after is not None:
        verb = "falls" if left.after < left.before else "goes"
        fall = f": the PEIR of its output {verb} from {figure(left.before)} to {figure(left.after)}"
    outcome = "agrees" if left.agrees else "still differs"
    yield f"With {modules} left uncompiled, the whole {outcome}{fall}."
    if left.agrees:
        # A part that is compiled itself is not, where what it calls is.
        parts = [name for name in left.modules if name not in inside.parts or not left.called]
        for name in parts[:FEW]:
            yield f'  module = model.get_submodule("{name}")'
            yield "  module.forward = torch.compiler.disable(module.forward)"
        for name in left.called[:FEW]:
            yield f'  model.get_submodule("{name}").compile(...)'
