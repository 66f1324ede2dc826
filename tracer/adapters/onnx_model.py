"""An `.onnx` file as a model, computed by ONNX Runtime; see `tracer.adapters.graph`.

Its inputs bear the names of the eager model's arguments, and what is nested in one of them has
names that begin with it: `past_key_values_0_key`.
"""

from collections.abc import Mapping, Sequence
from inspect import Parameter, Signature
from pathlib import Path

import torch
from torch import nn

from tracer.adapters.graph import Graph, GraphModel
from tracer.adapters.onnx_engine import OnnxEngine, provider_of, run_session, session_of
from tracer.adapters.onnx_file import OnnxFile, Port, read_file
from tracer.adapters.onnx_names import Named, named
from tracer.errors import InputError, ModelRunError
from tracer.execution.inputs import hides_nothing
from tracer.tensors.leaves import describe, dtype_name, tensor_leaves
from tracer.tensors.roles import DEFAULT_ROLES
from tracer.text import brief, listed

_OTHERS = "others"


class OnnxModel(GraphModel):
    """See the module's docstring."""

    # A graph of ONNX returns its outputs one after the other, however they were nested.
    is_formless = True

    def __init__(self, file: OnnxFile, opened: Named) -> None:
        self._file = file
        self._named = opened
        graph = Graph(
            operations=opened.operations,
            inputs=tuple(port.name for port in file.inputs),
            outputs=tuple(port.name for port in file.outputs),
            held=opened.held,
            root_class=opened.root_class,
        )
        super().__init__(graph, OnnxEngine(file, opened.turned))

    @property
    def signature(self) -> Signature:
        """The graph's inputs, and whatever else the eager model takes."""
        kind = Parameter.POSITIONAL_OR_KEYWORD
        own = [Parameter(port.name, kind) for port in self._file.inputs]
        return Signature([*own, Parameter(_OTHERS, Parameter.VAR_KEYWORD)])

    @property
    def has_modules(self) -> bool:
        """Whether the file says of which modules its operations are."""
        return self._named.has_modules

    def named_after(self, other: nn.Module) -> "OnnxModel":
        """The same file, with the modules of another model that holds its weights."""
        return OnnxModel(self._file, named(self._file, other))

    def read_inputs(self, arguments: Mapping[str, object]) -> Sequence[object]:
        """The graph's inputs from arguments by name.

        Raises:
            InputError: they do not fit.
        """
        given = dict(arguments)
        others = given.pop(_OTHERS, {})
        assert isinstance(others, Mapping)
        found = _fitted(self._file.inputs, {**given, **others})
        sizes: dict[str, int] = {}
        for port, tensor in zip(self._file.inputs, found, strict=True):
            _check(port, tensor, sizes)
        return found

    def write_output(self, outputs: Sequence[object]) -> object:
        """The outputs in their order; one alone as it is."""
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def deployed(
        self, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> Sequence[tuple[str, torch.Tensor, torch.Tensor]]:
        """The outputs without and with the optimisations of ONNX Runtime.

        Raises:
            ModelRunError: it cannot run the whole file.
        """
        arguments = self.signature.bind_partial(*args, **kwargs).arguments
        plain = self.run(arguments)
        given = [t for t in self.read_inputs(arguments) if isinstance(t, torch.Tensor)]
        device = given[0].device if given else torch.device("cpu")
        try:
            session = session_of(str(self._file.path), device, optimised=True)
            made = run_session(session, given, device)
        except Exception as error:
            raise ModelRunError(
                f"ONNX Runtime cannot run {self._file.path} with its optimisations: {brief(error)}"
            ) from error
        names = [port.name for port in self._file.outputs]
        return list(zip(names, plain if len(names) > 1 else [plain], made, strict=True))  # type: ignore[call-overload]


def read_onnx(path: Path, device: torch.device | None = None) -> OnnxModel:
    """Opens a file.

    Raises:
        ModelLoadError: it cannot be read; see `tracer.adapters.onnx_file.read_file`.
        UsageError: ONNX Runtime has nothing that computes on the device.
    """
    file = read_file(path)
    model = OnnxModel(file, named(file))
    if device is not None:
        provider_of(device)
        model.to(device)
    return model


def _fitted(ports: Sequence[Port], given: Mapping[str, object]) -> list[torch.Tensor]:
    """A tensor for each input: those of its name, those nested in an argument of a name that its
    own begins with, or else all there are in their order."""
    leaves = {name: [t for _, t in tensor_leaves(value, "")] for name, value in given.items()}
    left = {name: list(tensors) for name, tensors in leaves.items() if tensors}
    found: dict[str, torch.Tensor] = {}
    for port in ports:
        names = [name for name in left if port.name == name or port.name.startswith(f"{name}_")]
        name = max(names, key=len, default=None)
        if name is not None and left[name]:
            found[port.name] = left[name].pop(0)
    unused = [n for n, rest in left.items() if rest and not _is_needless(n, given[n])]
    if len(found) == len(ports) and not unused:
        return [found[port.name] for port in ports]
    every = [tensor for tensors in leaves.values() for tensor in tensors]
    if len(every) == len(ports):
        return every
    expected = listed([port.name for port in ports])
    if unused:
        raise InputError(
            f"the graph has no input for {listed(unused)}: it takes {expected}; leave it out, or "
            "export the graph with it"
        )
    missing = listed([port.name for port in ports if port.name not in found])
    raise InputError(
        f"the graph takes {missing}, which is none of the inputs ({listed([*given]) or 'none'})"
    )


def _is_needless(name: str, value: object) -> bool:
    return DEFAULT_ROLES.is_mask(name) and hides_nothing(value)


def _check(port: Port, tensor: torch.Tensor, sizes: dict[str, int]) -> None:
    fits = port.dtype is None or tensor.dtype == port.dtype
    if port.shape is not None:
        fits &= len(port.shape) == tensor.dim()
        for size, own in zip(port.shape, tensor.shape, strict=False):
            if isinstance(size, int):
                fits &= size == own
            elif size != "?":
                fits &= sizes.setdefault(size, own) == own
    if not fits:
        expected = "" if port.dtype is None else f"{dtype_name(port.dtype)} "
        raise InputError(
            f"the graph takes {port.name!r} as {expected}{[*(port.shape or ())]}, and is given "
            f"{describe(tensor)}: give inputs of the sizes that it was exported for"
        )
