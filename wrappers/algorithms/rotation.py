"""Rotations: turn the basis of the residual stream and of values, so that no channel stands out.

    rotated = Rotation()(model, config, batches)  # a float model, the same function

The weights of the norms are first multiplied into the projections that read them. What a root mean
square norm without weights gives of a rotated stream is the rotated result, so R1 [hidden, hidden]
goes into the embedding and all that writes to the stream, and its inverse into all that reads it;
R2 [head_dim, head_dim] into v_proj, and its inverse into o_proj. Nothing is computed at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from wrappers.algorithms.stage import float_copy, replace_parameter
from wrappers.algorithms.structure import Decoder, Layer, decoder_of
from wrappers.core.config import PTQConfig
from wrappers.errors import ConfigError, WrapError
from wrappers.quantize import ModelInputs


@dataclass(frozen=True)
class Rotation:
    """The stage.

    Args:
        stream: rotate the residual stream (R1).
        values: rotate the values of each head (R2).
        seed: of the random signs.

    Raises:
        ConfigError: neither is asked for.
    """

    rewrites_float: ClassVar[bool] = True

    stream: bool = True
    values: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.stream or self.values):
            raise ConfigError("a rotation of neither stream nor values rotates nothing")

    def __call__(
        self, model: nn.Module, config: PTQConfig, batches: Sequence[ModelInputs]
    ) -> nn.Module:
        """A float model that computes the same function; its head is tied to nothing any more.

        Raises:
            WrapError: the model is prepared already, its layers are not known, or it has no head
                that could take up the rotation of the stream.
        """
        rotated = float_copy(model, "Rotation")
        decoder = decoder_of(rotated)
        generator = torch.Generator().manual_seed(self.seed)
        if self.stream:
            _rotate_stream(decoder, generator)
        if self.values:
            for layer in decoder.layers:
                turn = hadamard(layer.head_dim, generator)
                v, o = layer.part("self_attn.v_proj"), layer.part("self_attn.o_proj")
                _turn_outputs(v, torch.block_diag(*[turn] * (v.out_features // layer.head_dim)))
                _turn_inputs(o, torch.block_diag(*[turn] * (o.in_features // layer.head_dim)))
        return rotated


def hadamard(size: int, generator: torch.Generator) -> Tensor:
    """A rotation whose entries are as even as they can be, with random signs; float64.

    A Hadamard matrix where the size is a power of two; otherwise one of the largest power of two
    that divides it, times a random rotation of the odd rest.
    """
    power = size & -size
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < power:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    matrix = matrix / power**0.5
    rest = size // power
    if rest > 1:
        drawn = torch.randn(rest, rest, generator=generator, dtype=torch.float64)
        matrix = torch.kron(matrix, torch.linalg.qr(drawn).Q.contiguous())
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    return signs[:, None] * matrix


def _rotate_stream(decoder: Decoder, generator: torch.Generator) -> None:
    head = decoder.head
    if head is None:
        raise WrapError(
            f"{type(decoder.model).__name__} gives its stream out, and has no head to take up a "
            "rotation of it; give the whole model, or use Rotation(stream=False)"
        )
    decoder.untie()
    for layer in decoder.layers:
        for pair in layer.pairs():
            if not isinstance(pair.writer, nn.Linear):
                _fuse(pair.writer, list(pair.readers.values()))
    _fuse(decoder.text.norm, [head])
    embedding = decoder.text.embed_tokens
    weight = embedding.weight.detach()
    turn = hadamard(weight.shape[1], generator)
    replace_parameter(embedding, "weight", weight.double() @ turn.to(weight.device))
    for reader in [*(r for layer in decoder.layers for r in _stream_readers(layer)), head]:
        _turn_inputs(reader, turn)
    writers = [writer for layer in decoder.layers for writer in _stream_writers(layer)]
    for writer in [*writers, *decoder.visual_writers()]:
        _turn_outputs(writer, turn)


def _stream_readers(layer: Layer) -> list[nn.Linear]:
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return [layer.part(name) for name in (*names, "mlp.gate_proj", "mlp.up_proj")]


def _stream_writers(layer: Layer) -> list[nn.Linear]:
    return [layer.part("self_attn.o_proj"), layer.part("mlp.down_proj")]


def _fuse(norm: nn.Module, readers: list[nn.Linear]) -> None:
    weight = norm.get_parameter("weight").detach()
    for reader in readers:
        replace_parameter(reader, "weight", reader.weight.detach().double() * weight.double())
    replace_parameter(norm, "weight", torch.ones_like(weight))


def _turn_inputs(layer: nn.Linear, turn: Tensor) -> None:
    weight = layer.weight.detach()
    replace_parameter(layer, "weight", weight.double() @ turn.to(weight.device))


def _turn_outputs(layer: nn.Linear, turn: Tensor) -> None:
    for name, parameter in list(layer.named_parameters(recurse=False)):
        wide = parameter.detach().double()
        replace_parameter(layer, name, turn.T.to(wide.device) @ wide)
