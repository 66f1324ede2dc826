"""What `torch.compile` has compiled in a model, and how to compile it again, as far as a stage.

>>> compiled_parts(torch.compile(model))
{'': Compilation(name='inductor', ...)}
>>> compiled_parts(torch.compile(model))[""].stages
(<Stage.AS_WRITTEN: 'as_written'>, <Stage.DYNAMO: 'dynamo'>, <Stage.AOT: 'aot'>, ...)

A stage does what compiling does up to there, and runs what it has made without the rest.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from tracer.execution.compile_internals import (
    CompileSettings,
    backend_called,
    compile_in_place,
    compile_settings,
    inductor_options,
    is_of_aot,
    with_inductor_options,
)
from tracer.execution.offload import copy_model
from tracer.execution.stepping import stages_of
from tracer.execution.torch_internals import as_written, is_compiled


class Stage(StrEnum):
    """How far a model is compiled; in the order in which that is done."""

    AS_WRITTEN = "as_written"  # not at all
    DYNAMO = "dynamo"  # its Python code becomes graphs, which run as they are
    AOT = "aot"  # their operators become functional, on tensors without views and edits
    DECOMPOSED = "decomposed"  # and are broken down to the few that a compiler knows
    BACKEND = "backend"  # code is generated, or whatever else the backend does


_BACKENDS = {
    Stage.DYNAMO: "eager",
    Stage.AOT: "aot_eager",
    Stage.DECOMPOSED: "aot_eager_decomp_partition",
}


@dataclass(frozen=True)
class Compilation:
    """How a module is compiled.

    Attributes:
        settings: what `torch.compile` was given.
        options: those of inductor, to be given in place of its backend.
    """

    settings: CompileSettings
    options: Mapping[str, Any] | None = field(default=None)

    @property
    def name(self) -> str:
        """The name of the backend."""
        return self.settings.name

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages up to its own, which is the last."""
        every = tuple(Stage)
        for stage, name in _BACKENDS.items():
            if name == self.name:
                return every[: every.index(stage) + 1]
        if self.name == "inductor":
            return every
        aot = (Stage.AOT,) if is_of_aot(self.settings.backend) else ()
        return (Stage.AS_WRITTEN, Stage.DYNAMO, *aot, Stage.BACKEND)

    def name_of(self, stage: Stage) -> str:
        """The name of the backend for a stage, or for the last of its own before that."""
        last = [each for each in self.stages if _place(each) <= _place(stage)][-1]
        return self.name if last is self.stages[-1] else _BACKENDS[last]

    def backend_of(self, stage: Stage) -> str | Callable[..., Any]:
        """What `torch.compile` is given as `backend` for it."""
        name = self.name_of(stage)
        return self.settings.backend if name == self.name else name

    def drawing_alike(self) -> "Compilation | None":
        """The same where random numbers are drawn as without compiling; None where they are
        already, or what draws them is not known."""
        options = inductor_options(self.settings.backend)
        if options is None or options.get("fallback_random"):
            return None
        return replace(self, options={**options, "fallback_random": True})

    def apply(
        self,
        module: nn.Module,
        stage: Stage,
        *,
        is_part: bool = True,
        may_break: bool = False,
        around: Callable[[Any], Any] | None = None,
    ) -> None:
        """Compiles a module in place, as far as a stage.

        Args:
            is_part: it is what is compiled; else a module inside that.
            may_break: graphs may break, whatever was asked for.
            around: makes the backend that is used of the one that would be.
        """
        if stage is Stage.AS_WRITTEN:
            return
        how: dict[str, Any] = {"backend": self.backend_of(stage)}
        options = self.options or inductor_options(self.settings.backend)
        if options and stage is Stage.DECOMPOSED:
            # Among them is how random numbers are drawn, which is a matter of this stage.
            how["backend"] = with_inductor_options(backend_called(how["backend"]), options)
        elif self.options is not None and stage is Stage.BACKEND:
            how = {"backend": "inductor", "options": dict(self.options)}
        if around is not None:
            how["backend"] = around(how["backend"])
        how["fullgraph"] = self.settings.fullgraph and not may_break
        how["dynamic"] = self.settings.dynamic
        if is_part:
            # What was compiled of the same code before, and may serve as well, is left alone.
            how["isolate_recompiles"] = True
        compile_in_place(module, inline=self.settings.inline or not is_part, **how)


def _place(stage: Stage) -> int:
    return tuple(Stage).index(stage)


def compiled_parts(model: nn.Module) -> dict[str, Compilation]:
    """The outermost compiled modules by their names in the model without compiling.

    Those whose backend cannot be told are left out: modules that `torch.compiler.disable` returned.
    """
    found: dict[str, Compilation] = {}
    for stage, part in stages_of(model).items():
        hidden: list[str] = []
        for name, module in part.named_modules():
            if any(name.startswith(prefix) for prefix in hidden) or not is_compiled(module):
                continue
            hidden.append(f"{name}." if name else "")
            settings = compile_settings(module)
            if settings is not None:
                found[f"{stage}.{name}".strip(".")] = Compilation(settings)
    return found


def uncompiled_copy(model: nn.Module) -> nn.Module:
    """A copy of a model that holds the same parameters and buffers, and in which nothing is
    compiled."""
    with _taken_out(model):
        inner = as_written(model)
        made: nn.Module = copy_model(inner, shared=(*inner.parameters(), *inner.buffers()))
    return made


@contextmanager
def _taken_out(model: nn.Module) -> Iterator[None]:
    """Puts what was compiled where `torch.compile` has put what it returned."""
    replaced = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()  # also a second name of one that has two
        if child is not None and as_written(child) is not child and as_written(parent) is parent
    ]
    try:
        for parent, name, child in replaced:
            parent._modules[name] = as_written(child)
        yield
    finally:
        for parent, name, child in replaced:
            parent._modules[name] = child


def leave_uncompiled(module: nn.Module) -> None:
    """Takes a module out of what is compiled around it, with all that it calls.

    Not by `recursive=False`: PyTorch then never compiles its code again, in no other module either.
    """
    module.forward = torch.compiler.disable(module.forward)
