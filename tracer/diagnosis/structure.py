"""How a file quantises its tensors, against the quantization points of the model on the other side.

A tensor is right if a point of its module, or of one around or beside it, has the same type, scale
and zero point: a residual sum has those of the norm that follows. That needs no run of the file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tracer.adapters.graph import GraphModel, QuantisedTensor
from tracer.execution.session import Session
from tracer.traces.dataflow import points_of

_SAME_SCALE = 1e-5


@dataclass(frozen=True)
class WrongTensor:
    """A tensor that no point of the other side is quantised like.

    Attributes:
        name: the tensor's in the file.
        module: where it is made or used.
        found: its type, scale and zero point, in words.
        nearest: the point of its module with the nearest scale, and what that has; empty where its
            module has none.
    """

    name: str
    module: str
    found: str
    nearest: str


@dataclass(frozen=True)
class WrongStructure:
    """Tensors of a file that are quantised otherwise than the model on the other side.

    Attributes:
        side: whose file it is.
        compared: how many tensors were looked up.
        tensors: those that are wrong.
    """

    side: str
    compared: int
    tensors: tuple[WrongTensor, ...]


@dataclass(frozen=True)
class _Point:
    module: str
    name: str
    dtype: str
    scale: torch.Tensor
    zero_point: torch.Tensor

    def __str__(self) -> str:
        return f"{self.name} of {self.module or 'the root'}: {self.words}"

    @property
    def words(self) -> str:
        return in_words(self.dtype, self.scale, self.zero_point)


def wrong_structure(session: Session) -> WrongStructure | None:
    """What a file on one side quantises otherwise than the other side's points; None for nothing.

    Only where the other side has such points.
    """
    pairs = {"candidate": (session.candidate, session.reference)}
    pairs["reference"] = (session.reference, session.candidate)
    for side, (graph, model) in pairs.items():
        if not isinstance(graph, GraphModel):
            continue
        points, tensors = list(_points(model)), graph.quantised()
        if not points or not tensors:
            continue
        wrong = [each for tensor in tensors if (each := _wrong(tensor, points)) is not None]
        if wrong:
            return WrongStructure(side, len(tensors), tuple(wrong))
    return None


def in_words(dtype: str, scale: torch.Tensor, zero_point: torch.Tensor) -> str:
    """How something is quantised, in words."""
    if scale.numel() == 1:
        return f"{dtype}, scale {float(scale):.4g}, zero point {int(zero_point)}"
    return f"{dtype}, {scale.numel()} scales up to {float(scale.max()):.4g}"


def _points(model: nn.Module) -> Iterator[_Point]:
    """The points of modules that have some, with what they are quantised by."""
    for name, module in model.named_modules():
        for key, point in points_of(module).items():
            if point.get("scale") is not None:
                scale, zero_point = (
                    torch.tensor(point[each]).flatten() for each in ("scale", "zero_point")
                )
                yield _Point(name, key, str(point["dtype"]), scale, zero_point)


def _wrong(tensor: QuantisedTensor, points: Sequence[_Point]) -> WrongTensor | None:
    around = tensor.module.rpartition(".")[0]
    near = [
        each
        for each in points
        if f"{tensor.module}.".startswith(f"{each.module}.".lstrip("."))
        or f"{each.module}.".startswith(f"{around}.".lstrip("."))
    ]
    if any(_is_same(tensor, each) for each in near):
        return None
    own = [each for each in near if each.module == tensor.module] or near
    alike = [each for each in own if each.scale.shape == tensor.scale.shape]
    nearest = min(
        alike, key=lambda each: float((each.scale - tensor.scale).abs().max()), default=None
    )
    return WrongTensor(
        tensor.name,
        tensor.module,
        in_words(tensor.dtype, tensor.scale, tensor.zero_point),
        "" if nearest is None else str(nearest),
    )


def _is_same(tensor: QuantisedTensor, point: _Point) -> bool:
    return (
        tensor.dtype == point.dtype
        and tensor.scale.shape == point.scale.shape
        and torch.equal(tensor.zero_point, point.zero_point.to(tensor.zero_point.dtype))
        and torch.allclose(tensor.scale, point.scale, rtol=_SAME_SCALE, atol=0.0)
    )
