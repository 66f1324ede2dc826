"""Where the scales and the basis of a decoder's activations can be changed without changing what it
computes: its norms, its projections, and which reads what which writes.

A decoder layer is recognised by the names that transformers gives its parts; its norms must be root
mean square norms with a wrapper, whose weight is a plain factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wrappers.algorithms.stage import replace_parameter
from wrappers.core.registry import COMMON, has_wrapper, lookup
from wrappers.errors import MissingWrapperError, WrapError
from wrappers.layers.norms import QuantRMSNorm, TransformersRMSNorm

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Pair:
    """A module whose outputs can be divided by factors that the linear layers after it take up.

    Attributes:
        name: of the module that writes.
        writer: a norm or a linear layer.
        readers: linear layers by name.
        expand: how many inputs of a reader in turn stand for each block of `block` outputs: the
            query heads that share a value head.
        block: outputs that are repeated together; 1 where each stands for itself.
    """

    name: str
    writer: nn.Module
    readers: dict[str, nn.Linear]
    expand: int = 1
    block: int = 1

    def expanded(self, factors: Tensor) -> Tensor:
        """Factors of the outputs [outputs] as those of the readers' inputs [inputs]."""
        if self.expand == 1:
            return factors
        heads = factors.view(-1, self.block)
        return heads.repeat_interleave(self.expand, dim=0).reshape(-1)

    def gathered(self, inputs: Tensor) -> Tensor:
        """The largest of the values of inputs [inputs] that each output stands for, [outputs]."""
        if self.expand == 1:
            return inputs
        return inputs.view(-1, self.expand, self.block).amax(1).reshape(-1)

    def divide(self, factors: Tensor) -> None:
        """Divide the writer's outputs by factors, [outputs], and multiply the readers' inputs."""
        factors = factors.to(torch.float64)
        for name, parameter in list(self.writer.named_parameters(recurse=False)):
            wide = parameter.detach().to(torch.float64)
            shape = (-1, *[1] * (wide.dim() - 1))
            replace_parameter(self.writer, name, wide / factors.view(shape))
        for reader in self.readers.values():
            wide = reader.weight.detach().to(torch.float64)
            replace_parameter(reader, "weight", wide * self.expanded(factors))


@dataclass(frozen=True)
class Layer:
    """A decoder layer.

    Attributes:
        name: of the module.
        module: has the parts by their usual names.
    """

    name: str
    module: nn.Module

    def part(self, path: str) -> Any:
        return self.module.get_submodule(path)

    @property
    def head_dim(self) -> int:
        return int(self.part("self_attn").head_dim)

    def pairs(self) -> list[Pair]:
        """Norms before the projections, values before o_proj, up_proj before down_proj."""

        def readers(*paths: str) -> dict[str, nn.Linear]:
            return {f"{self.name}.{path}": self.part(path) for path in paths}

        v, o = self.part("self_attn.v_proj"), self.part("self_attn.o_proj")
        return [
            Pair(
                f"{self.name}.input_layernorm",
                self.part("input_layernorm"),
                readers(*(f"self_attn.{name}" for name in ATTENTION[:3])),
            ),
            Pair(
                f"{self.name}.self_attn.v_proj",
                v,
                readers("self_attn.o_proj"),
                expand=o.in_features // v.out_features,
                block=self.head_dim,
            ),
            Pair(
                f"{self.name}.post_attention_layernorm",
                self.part("post_attention_layernorm"),
                readers("mlp.gate_proj", "mlp.up_proj"),
            ),
            Pair(f"{self.name}.mlp.up_proj", self.part("mlp.up_proj"), readers("mlp.down_proj")),
        ]


@dataclass(frozen=True)
class Decoder:
    """A text decoder, alone or in a larger model.

    Attributes:
        model: the whole model.
        text: has the embedding, the layers and the last norm.
        layers: in order.
        head: the linear layer that gives logits; None where the model has none.
    """

    model: nn.Module
    text: Any
    layers: tuple[Layer, ...]
    head: nn.Linear | None

    def untie(self) -> None:
        """The head and the embedding, which may be one parameter, become two."""
        head = self.head
        if head is not None and head.weight is self.text.embed_tokens.weight:
            replace_parameter(head, "weight", head.weight.detach().clone())
        untie_configs(self.model)

    def visual_writers(self) -> list[nn.Linear]:
        """The linear layers whose outputs take the place of embeddings, or are added to them."""
        visual = next((m for n, m in self.model.named_modules() if n.endswith("visual")), None)
        if visual is None:
            return []
        mergers = [visual.merger, *getattr(visual, "deepstack_merger_list", [])]
        return [merger.linear_fc2 for merger in mergers]


def untie_configs(model: nn.Module) -> None:
    """Nothing that ties weights by a model's configs does so any more."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def decoder_of(model: nn.Module) -> Decoder:
    """The decoder of a float model.

    Raises:
        WrapError: the model has none of the form described above.
    """
    texts = [
        (name, module)
        for name, module in model.named_modules()
        if all(hasattr(module, part) for part in ("embed_tokens", "layers", "norm"))
    ]
    if len(texts) != 1:
        raise WrapError(
            f"{type(model).__name__} has {len(texts)} text models with embed_tokens, layers and "
            "norm; this algorithm needs exactly one"
        )
    name = texts[0][0]
    text: Any = texts[0][1]
    layers = tuple(
        _checked(Layer(f"{name}.layers.{index}".lstrip("."), module))
        for index, module in enumerate(text.layers)
    )
    _check_norm(f"{name}.norm".lstrip("."), text.norm)
    head = getattr(model, "lm_head", None)
    return Decoder(model, text, layers, head if isinstance(head, nn.Linear) else None)


def _checked(layer: Layer) -> Layer:
    paths = [f"self_attn.{name}" for name in ATTENTION] + [f"mlp.{name}" for name in MLP]
    for path in paths:
        try:
            found = layer.part(path)
        except AttributeError as error:
            raise WrapError(
                f"{layer.name} has no {path}: this algorithm knows decoder layers with "
                f"{', '.join(paths)}"
            ) from error
        if type(found) is not nn.Linear:
            raise WrapError(
                f"{layer.name}.{path} is a {type(found).__name__}; this algorithm rewrites "
                "nn.Linear (merge adapters, dequantise)"
            )
    for path in NORMS:
        _check_norm(f"{layer.name}.{path}", getattr(layer.module, path, None))
    return layer


def _check_norm(name: str, norm: Any) -> None:
    kind = type(norm)
    try:
        known = has_wrapper(kind) and lookup(kind, COMMON)
    except MissingWrapperError:
        known = False
    if not known or not issubclass(known, TransformersRMSNorm | QuantRMSNorm):
        raise WrapError(
            f"{name} is a {kind.__name__}: this algorithm needs a root mean square norm with a "
            "wrapper, whose weight is a plain factor"
        )
