"""Writes a model as a graph with static shapes.

    step = Step(quantized.model.layers[0].self_attn)
    export(step, (hidden_states, cos, sin, mask, past_key, past_value), "attention.circle")

| suffix | written by | read by |
|---|---|---|
| `.pt2` | `torch.export` | `torch.export.load` |
| `.circle` | tico, of the extra `export` | runtimes and compilers of accelerators |

A `.pt2` keeps fake quantisation as operators between floats. In a `.circle` a quantised tensor,
an input or output of the graph as well, is an integer with its scale and zero point.

Circle's converter gives a range to a tensor and not to a place where it is used: a tensor that is
quantised for one of its users is so for all of them, such as the residual sum beside a norm. So a
`.circle` may differ from the quantised model by some steps of the quantisation.

Beside a `.circle` stands a map of the modules that its operations are of (`FILE.circle.map.json`),
by which `trace_model compare` names them.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers.utils import ModelOutput

from trace_model.annotations import checked
from wrappers.core.module import iter_points, iter_wrappers
from wrappers.core.point import Mode
from wrappers.core.transformers_compat import tree_leaves
from wrappers.deploy.circle_map import MAP_SUFFIX, map_of, written
from wrappers.deploy.circle_types import check_types
from wrappers.errors import ArgumentError, ExportError, MissingExtraError, ModeError, WrappersError
from wrappers.numerics.microscaling import MXQuantizer
from wrappers.quantize import ModelInputs, call_arguments, listed

_FLOAT_LIMIT = 1e-4
"""Largest error of a float `.circle`, over the interval of the model's output."""

_DROPOUT = (torch.ops.aten.dropout.default, torch.ops.aten.native_dropout.default)

_logger = logging.getLogger(__name__)


@checked(ArgumentError, but=("example_inputs",))
def export(
    model: nn.Module, example_inputs: ModelInputs, path: str | PathLike[str], *, check: bool = True
) -> None:
    """Writes a model, float, wrapped or quantised, as a graph.

    The file is there whole or not at all. Outputs that are a transformers `ModelOutput` are written
    as a tuple of what it holds, so that reading them back takes no transformers.

    Args:
        model: a `Step`, a wrapped layer, a vision model with fixed grids, or any other module whose
            outputs are tensors.
        example_inputs: what `model` is called with, as in `calibrate`: they give the graph its
            shapes and dtypes. What is no tensor becomes a constant.
        path: `.pt2` or `.circle`, in a folder that exists.
        check: run a `.circle` once on the example inputs, by tico's reference runtime, before it is
            written: its outputs must have the shapes of the model's and, where nothing is
            quantised, their values. That takes about a forward pass.

    Raises:
        ExportError: another suffix; a folder that cannot be written to; a model that torch cannot
            capture or tico cannot convert, or that Circle has no type for.
        MissingExtraError: tico is not installed.
        ModeError: the model is being calibrated.
        ModelInputError: inputs in none of the forms that a model is called with.
    """
    write_graph(model, example_inputs, Path(path), check=check)


def write_graph(
    model: nn.Module, example_inputs: ModelInputs, path: Path, *, check: bool = True
) -> ExportedProgram:
    """Writes a file as `export` does, and returns the graph that it was made of."""
    suffix = path.suffix
    if suffix not in _WRITERS:
        raise ExportError(
            f"found the suffix {suffix!r} of {path}; expected {' or '.join(_WRITERS)}"
        )
    calibrating = [
        name or "the root"
        for name, wrapper in iter_wrappers(model)
        if wrapper.mode is Mode.CALIBRATE
    ]
    if calibrating:
        raise ModeError(
            f"{len(calibrating)} wrappers are being calibrated and would be written without their "
            f"quantisation: {listed(calibrating)}; call convert() first"
        )
    return _WRITERS[suffix](model, example_inputs, path.expanduser().resolve(), check)


def _write_pt2(
    model: nn.Module, inputs: ModelInputs, target: Path, _check: bool
) -> ExportedProgram:
    with _replaced(target) as file:
        program = _captured(model, inputs)
        torch.export.save(program, file)
    return program


def _write_circle(
    model: nn.Module, inputs: ModelInputs, target: Path, check: bool
) -> ExportedProgram:
    check_types(model, inputs)
    if importlib.util.find_spec("tico") is None:
        raise MissingExtraError(
            "a .circle is written by tico, which is not installed: pip install 'tico>=0.3'"
        )
    beside = target.with_name(target.name + MAP_SUFFIX)
    with _replaced(target) as file, _replaced(beside) as map_file:
        with _microscaling_by_tico(model):
            program = _captured(model, inputs)
        found = map_of(program)
        circle = _converted(program)
        if check:
            _check_result(circle, model, inputs)
        file.write_bytes(circle)
        map_file.write_text(written(found, circle))
    return program


_WRITERS: dict[str, Callable[[nn.Module, ModelInputs, Path, bool], ExportedProgram]] = {
    ".pt2": _write_pt2,
    ".circle": _write_circle,
}


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A file beside `target` that takes its place at the end, and is gone after an error."""
    if target.is_dir():
        raise ExportError(f"{target} is a folder; give the path of a file in it")
    if not target.parent.is_dir():
        raise ExportError(f"directory {target.parent} does not exist; create it first")
    beside = target.with_name(f".{secrets.token_hex(8)}.{target.name}")
    try:
        # Before the work, which may take long.
        beside.touch(exist_ok=False)
    except OSError as error:
        raise ExportError(
            f"cannot write to the folder {target.parent}: {error.strerror}; give another one"
        ) from error
    try:
        yield beside
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _captured(model: nn.Module, inputs: ModelInputs) -> ExportedProgram:
    args, kwargs = call_arguments(inputs)
    hook = model.register_forward_hook(_plain_output)
    try:
        with torch.no_grad():
            program = torch.export.export(model, args, kwargs, strict=False)
    except WrappersError:
        raise
    except Exception as error:
        raise ExportError(
            f"torch.export cannot capture {type(model).__name__}: {_summary(error)}"
        ) from error
    finally:
        hook.remove()
    # Its third argument says whether it does anything.
    if any(node.target in _DROPOUT and node.args[2] for node in program.graph.nodes):
        raise ExportError("the graph holds dropout: call eval() on the model before its export")
    return program


def _plain_output(_model: nn.Module, _args: Any, output: Any) -> Any:
    plain = output.to_tuple() if isinstance(output, ModelOutput) else output
    others = {type(leaf).__name__ for leaf in tree_leaves(plain) if not isinstance(leaf, Tensor)}
    others -= {"NoneType"}
    if others:
        raise ExportError(
            f"found {', '.join(sorted(others))} among the outputs, and a file holds tensors only; "
            "export a Step, or call the model with use_cache=False"
        )
    return plain


class _TicoMX(MXQuantizer):
    """Microscaling as the one operator that tico looks for."""

    def fake_quantize(self, x: Tensor, *, may_overwrite: bool = False) -> Tensor:
        axis = self.axis % x.dim()  # counted from the front, or tico refuses it
        rounded: Tensor = torch.ops.circle_custom.mx_fake_quantize(x, self.element, axis)
        return rounded


@contextmanager
def _microscaling_by_tico(model: nn.Module) -> Iterator[None]:
    import tico  # noqa: F401 - registers the operator

    scaled = [
        (point, point.quantizer)
        for _, _, point in iter_points(model)
        if isinstance(point.quantizer, MXQuantizer)
    ]
    for point, quantizer in scaled:
        point.quantizer = _TicoMX(quantizer.element, quantizer.block_size, quantizer.axis)
    try:
        yield
    finally:
        for point, quantizer in scaled:
            point.quantizer = quantizer


def _converted(program: ExportedProgram) -> bytes:
    import tico
    from tico.config import get_default_config

    config = get_default_config()
    # What is no tensor would otherwise be an input as well.
    config.set("remove_constant_input", True)
    printed = io.StringIO()
    with _Errors("tico") as logged, redirect_stdout(printed):
        try:
            circle: bytes = tico.convert_from_exported_program(program, config).circle_binary
        except Exception as error:
            reasons = "; ".join([_summary(error), *logged.messages])
            raise ExportError(f"tico cannot convert the graph to Circle: {reasons}") from error
    for line in printed.getvalue().splitlines():
        _logger.info("tico: %s", line)
    return circle


def _check_result(circle: bytes, model: nn.Module, inputs: ModelInputs) -> None:
    # Tico's simplifications of a graph do not always keep what it computes.
    from tico.circle.runtime import (
        CircleReferenceRuntime,
        CircleRuntimeError,
        ExecutionMode,
        UnsupportedCircleOperatorError,
    )

    args, kwargs = call_arguments(inputs)
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    try:
        found = CircleReferenceRuntime(circle).run(given, mode=ExecutionMode.FAKE_QUANTIZE).outputs
    except UnsupportedCircleOperatorError as error:
        _logger.info("not checked by running it: %s", _summary(error))
        return
    except CircleRuntimeError as error:
        raise ExportError(f"tico made a graph that does not run: {_summary(error)}") from error
    with torch.no_grad():
        output = _plain_output(model, args, model(*args, **kwargs))
    expected = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    quantized = any(wrapper.mode is Mode.QUANT for _, wrapper in iter_wrappers(model))
    _compare(expected, [torch.tensor(array) for array in found], values=not quantized)


def _compare(expected: Sequence[Tensor], found: Sequence[Tensor], *, values: bool) -> None:
    shapes = [list(tensor.shape) for tensor in expected]
    if (of_file := [list(tensor.shape) for tensor in found]) != shapes:
        raise ExportError(
            f"tico made a graph whose outputs have the shapes {of_file}, and those of the model "
            f"have {shapes}"
        )
    for i, (reference, candidate) in enumerate(zip(expected, found, strict=True)):
        if not values or not reference.numel():
            continue
        reference, candidate = reference.double(), candidate.double()
        error = (reference - candidate).abs().max()
        if error > _FLOAT_LIMIT * (reference.max() - reference.min()):
            raise ExportError(
                f"tico made a graph whose output {i} is off by {error:.2e}; the model's lies "
                f"between {reference.min():.2e} and {reference.max():.2e}"
            )


class _Errors(logging.Handler):
    """Collects what a library logs as errors: its exceptions leave the details to its log."""

    def __init__(self, library: str) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []
        self._logger = logging.getLogger(library)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(_first_lines(record.getMessage(), 2))

    def __enter__(self) -> Self:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)


def _summary(error: Exception) -> str:
    """The class of an error and the first line of what it says."""
    return f"{type(error).__name__}: {_first_lines(str(error), 1)}".removesuffix(": ")


def _first_lines(text: str, count: int) -> str:
    lines = (line.strip() for line in text.splitlines())
    return ", ".join([line for line in lines if line][:count])
