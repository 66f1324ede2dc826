"""Which models a comparison is of, in which form, and on which inputs.

>>> comparison.identity.reference.model, comparison.identity.reference.dtype
('LlamaForCausalLM', 'float32')

Figures of one comparison say something of another only where both are of the same. Weights and
inputs are known by fingerprints, not by hashes: weights that a seed makes differ in their last bits
from processor to processor, and so do the pixels of a photo.
"""

import base64
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tracer.execution.session import Session
from tracer.execution.stepping import Driver, stages_of
from tracer.execution.walks import all_parameters, modules_of
from tracer.tensors.dequantised import dequantised
from tracer.tensors.fingerprints import Fingerprint
from tracer.tensors.kinds import plain
from tracer.tensors.leaves import dtype_name, tensor_leaves
from tracer.traces.dataflow import points_of
from tracer.traces.recorded import Recorded

# Elements that are looked at, at equal distances: of each parameter, and of each float input.
_OF_A_PARAMETER, _OF_AN_INPUT = 128, 32_768
# How many were looked at is not kept; of so many no bound on a distance is made.
_UNKNOWN_COUNT = 2**62


@dataclass(frozen=True)
class Content:
    """What is known of the values of a tensor, or of all parameters together.

    Attributes:
        dtype, shape: of the tensor; of parameters how many elements they have together.
        fingerprint: of elements at equal distances, its numbers as base64.
    """

    dtype: str
    shape: tuple[int, ...]
    fingerprint: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Content":
        """What is known of an input; one of integers is looked at whole."""
        is_inexact = tensor.is_floating_point() or tensor.is_complex()
        sample = _sample(tensor, _OF_AN_INPUT) if is_inexact else plain(tensor)
        return cls(dtype_name(tensor.dtype), tuple(tensor.shape), _packed(Fingerprint.of(sample)))

    @classmethod
    def of_parameters(cls, model: nn.Module) -> "Content | None":
        """What is known of a model's weights; None without any, or where they are on disk."""
        parameters = [dequantised(p) for p in all_parameters(model)]
        if not parameters or any(parameter.is_meta for parameter in parameters):
            return None
        samples = torch.cat([_sample(p, _OF_A_PARAMETER).float() for p in parameters])
        dtypes = sorted(map(dtype_name, {p.dtype for p in parameters}))
        count = sum(p.numel() for p in parameters)
        return cls(", ".join(dtypes), (count,), _packed(Fingerprint.of(samples)))

    @classmethod
    def read(cls, plain_values: Mapping[str, Any]) -> "Content":
        """What a report holds of one.

        Raises:
            ValueError: its fingerprint is none.
        """
        fingerprint = str(plain_values["fingerprint"])
        _unpacked(fingerprint)
        return cls(str(plain_values["dtype"]), tuple(plain_values["shape"]), fingerprint)

    @property
    def form(self) -> str:
        """Dtype and shape in words."""
        return f"{self.dtype} {list(self.shape)}"

    @property
    def is_inexact(self) -> bool:
        """Whether it holds numbers that are rounded."""
        return self.dtype.startswith(("float", "bfloat", "complex"))

    def distance(self, other: "Content") -> float:
        """The relative L2 distance of another one of the same form, estimated; 0 if it is equal."""
        here, there = _unpacked(self.fingerprint), _unpacked(other.fingerprint)
        return 0.0 if here.equals(there) else here.estimate(there).relative_l2


@dataclass(frozen=True)
class SideIdentity:
    """What is known of a model.

    Attributes:
        model: its class.
        dtype: of most of its weights; None where that is not known.
        training: it is in training mode; None where that is not known.
        steps: decode steps that it is run for; None for one forward pass.
        points: the dtypes of its quantization points that are on.
        weights: None where they are not known.
        recording: the checksum of the weights that a recording is of.
    """

    model: str
    dtype: str | None = None
    training: bool | None = None
    steps: int | None = None
    points: tuple[str, ...] = ()
    weights: Content | None = None
    recording: str | None = None

    @classmethod
    def of(cls, model: nn.Module, dtype: torch.dtype | None, *, weighed: bool) -> "SideIdentity":
        """What is known of a model; of its weights, where they are to be looked at.

        Args:
            dtype: what it works in.
        """
        stages = list(dict.fromkeys(map(_class, stages_of(model).values())))
        found = {
            str(point["dtype"])
            for module in modules_of(model)
            for point in points_of(module).values()
            if point.get("scale") is not None and point.get("dtype") is not None
        }
        return cls(
            " and ".join(stages),
            dtype_name(dtype) or None,
            model.training,
            getattr(model, "steps", None) if isinstance(model, Driver) else None,
            tuple(sorted(found)),
            Content.of_parameters(model) if weighed else None,
            model.header.get("checksum") if isinstance(model, Recorded) else None,
        )

    @classmethod
    def read(cls, plain_values: Mapping[str, Any]) -> "SideIdentity":
        """What a report holds of one."""
        weights = plain_values["weights"]
        return cls(
            plain_values["model"],
            plain_values["dtype"],
            plain_values["training"],
            plain_values["steps"],
            tuple(plain_values["points"]),
            None if weights is None else Content.read(weights),
            plain_values["recording"],
        )


@dataclass(frozen=True)
class Identity:
    """What a comparison is of.

    Attributes:
        reference, candidate: the models.
        inputs: by path; None where they are not known.
        settings: how both were made, as the command line was told; empty from Python.
    """

    reference: SideIdentity
    candidate: SideIdentity
    inputs: Mapping[str, Content] | None
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, session: Session) -> "Identity":
        """What a session compares."""
        reference, candidate = (weights.dtype for weights in session.weights)
        return cls(
            SideIdentity.of(session.reference, reference, weighed=True),
            SideIdentity.of(session.candidate, candidate, weighed=False),
            {path: Content.of(tensor) for path, tensor in _tensors(session)},
        )

    @classmethod
    def read(cls, plain_values: Mapping[str, Any]) -> "Identity":
        """What a report holds."""
        return cls(
            SideIdentity.read(plain_values["reference"]),
            SideIdentity.read(plain_values["candidate"]),
            {path: Content.read(content) for path, content in plain_values["inputs"].items()},
            dict(plain_values["settings"]),
        )


def _class(model: nn.Module) -> str:
    return str(model.header["model"]) if isinstance(model, Recorded) else type(model).__name__


def _tensors(session: Session) -> Iterator[tuple[str, torch.Tensor]]:
    for values in session.inputs:
        for path, tensor in tensor_leaves(values, ""):
            if not tensor.is_meta:
                yield path.lstrip("."), tensor


def _sample(tensor: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many elements at equal distances, 1-D."""
    flat = plain(tensor).flatten()
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten()
    step = -(-flat.numel() // most)
    return flat[::step] if step > 1 else flat


def _packed(fingerprint: Fingerprint) -> str:
    numbers = fingerprint.numbers
    return base64.b64encode(struct.pack(f"<{len(numbers)}d", *numbers)).decode()


def _unpacked(text: str) -> Fingerprint:
    data = base64.b64decode(text)
    if not data or len(data) % 8:
        raise ValueError(f"a fingerprint of {len(data)} bytes is none: it is made of numbers")
    numbers = list(struct.unpack(f"<{len(data) // 8}d", data))
    return Fingerprint.from_numbers(numbers, (_UNKNOWN_COUNT,), torch.float64)
