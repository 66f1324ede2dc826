"""An `.onnx` file as a model, computed by ONNX Runtime; see `tracer.adapters.graph`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from tracer.adapters.graph import Graph
from tracer.adapters.onnx_engine import OnnxEngine, provider_of, run_session, session_of
from tracer.adapters.onnx_file import OnnxFile, read_file
from tracer.adapters.onnx_names import Named, named
from tracer.adapters.ports import PortedModel
from tracer.errors import ModelRunError
from tracer.text import brief


class OnnxModel(PortedModel):
    """See the module's docstring."""

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
        super().__init__(graph, OnnxEngine(file, opened.turned), file.inputs)

    @property
    def has_modules(self) -> bool:
        """Whether the file says of which modules its operations are."""
        return self._named.has_modules

    def named_after(self, other: nn.Module) -> "OnnxModel":
        """The same file, with the modules of another model that holds its weights."""
        return OnnxModel(self._file, named(self._file, other))

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
