"""Right rewrites, made by rule: other parameters, other modules, other forms, the same function.

Each turns a model into one that computes the same outputs (to rounding) in another way, as
exporters, engines and quantisers do; a verdict that says "diverges" of one is a false alarm.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional

from benchmarks.blind.families import FAMILIES, Family

Tensor = torch.Tensor
Rewrite = Callable[[Any], Any]

LLAMA_LIKE = ("llama", "qwen2", "mixtral")
_BY_NAME = {family.name: family for family in FAMILIES}


@dataclass(frozen=True)
class Right:
    """A reference, a right candidate, and what both are run on."""

    family: str
    rule: str
    make: Callable[[], tuple[nn.Module, nn.Module, Mapping[str, Any]]]

    def __str__(self) -> str:
        return f"{self.family}: {self.rule}"


def rewrites() -> Iterator[Right]:
    """All right pairs."""
    for name in LLAMA_LIKE:
        for rule, rewrite in _DECODER_RULES.items():
            if name != "mixtral" or rule not in _DENSE_ONLY:
                yield Right(name, rule, _made(_BY_NAME[name], rewrite))
    for name, rule, rewrite in _OTHERS:
        yield Right(name, rule, _made(_BY_NAME[name], rewrite))
    for name in ("llama", "gpt2", "bert", "qwen2_moe", "mixtral", "bart"):
        for rule, prepare in _RUNS.items():
            yield Right(name, rule, _run(_BY_NAME[name], prepare))


def _made(
    family: Family, rewrite: Rewrite
) -> Callable[[], tuple[nn.Module, nn.Module, Mapping[str, Any]]]:
    def make() -> tuple[nn.Module, nn.Module, Mapping[str, Any]]:
        reference = family.build()
        with torch.no_grad():
            candidate = rewrite(copy.deepcopy(reference))
        return reference, candidate.eval(), family.inputs()

    return make


def _layers(model: Any) -> Any:
    return model.model.layers


def _projections(layer: Any) -> list[tuple[Any, list[Any]]]:
    """Each norm of a layer, with the projections that take what it returns."""
    attention = layer.self_attn
    taking = [attention.q_proj, attention.k_proj, attention.v_proj]
    found = [(layer.input_layernorm, taking)]
    if hasattr(layer.mlp, "gate_proj"):
        found.append((layer.post_attention_layernorm, [layer.mlp.gate_proj, layer.mlp.up_proj]))
    else:
        found.append((layer.post_attention_layernorm, [layer.mlp.gate, layer.mlp.experts]))
    return found


def _columns(module: Any, factor: Tensor) -> None:
    """Multiplies what a module takes, channel by channel."""
    weight = module.gate_up_proj if hasattr(module, "gate_up_proj") else module.weight
    weight.mul_(factor)


def fold_norms(model: Any) -> Any:
    """The norms' weights go into the projections behind them."""
    for layer in _layers(model):
        for norm, taking in _projections(layer):
            for projection in taking:
                _columns(projection, norm.weight)
            norm.weight.fill_(1.0)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight * model.model.norm.weight)
    model.model.norm.weight.fill_(1.0)
    return model


def smooth(model: Any) -> Any:
    """Channels are divided in a norm and multiplied in the projections behind it."""
    generator = torch.Generator().manual_seed(7)
    for layer in _layers(model):
        for norm, taking in _projections(layer):
            factor = 0.5 + torch.rand(norm.weight.shape, generator=generator) * 2
            norm.weight.div_(factor)
            for projection in taking:
                _columns(projection, factor)
    return model


def smooth_products(model: Any) -> Any:
    """Channels of the up projection are divided, and multiplied in the down projection."""
    generator = torch.Generator().manual_seed(8)
    for layer in _layers(model):
        up, down = layer.mlp.up_proj, layer.mlp.down_proj
        factor = 0.5 + torch.rand(up.out_features, generator=generator) * 2
        up.weight.div_(factor[:, None])
        down.weight.mul_(factor)
    return model


def permute_rows(model: Any) -> Any:
    """The channels inside an MLP come in another order."""
    generator = torch.Generator().manual_seed(9)
    for layer in _layers(model):
        order = torch.randperm(layer.mlp.up_proj.out_features, generator=generator)
        for module in (layer.mlp.up_proj, layer.mlp.gate_proj):
            module.weight.copy_(module.weight[order])
        layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order])
    return model


def permute_heads(model: Any) -> Any:
    """The groups of heads come in another order."""
    for layer in _layers(model):
        own = layer.self_attn
        size, heads = own.head_dim, own.k_proj.out_features // own.head_dim
        order = torch.arange(heads).flip(0)
        groups = own.num_key_value_groups
        of_keys = (order[:, None] * size + torch.arange(size)).flatten()
        of_queries = (order[:, None] * size * groups + torch.arange(size * groups)).flatten()
        for module, channels in (
            (own.q_proj, of_queries),
            (own.k_proj, of_keys),
            (own.v_proj, of_keys),
        ):
            module.weight.copy_(module.weight[channels])
            if module.bias is not None:
                module.bias.copy_(module.bias[channels])
        own.o_proj.weight.copy_(own.o_proj.weight[:, of_queries])
    return model


def fold_factor(model: Any) -> Any:
    """The attention's factor goes into the projection of the queries."""
    for layer in _layers(model):
        own = layer.self_attn
        for tensor in (own.q_proj.weight, own.q_proj.bias):
            if tensor is not None:
                tensor.mul_(own.scaling)
        own.scaling = 1.0
    return model


def rotate(model: Any) -> Any:
    """The residual stream is turned by an orthogonal matrix, once norms are folded."""
    if model.lm_head.weight is model.model.embed_tokens.weight:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    fold_norms(model)
    size = model.model.embed_tokens.weight.shape[1]
    generator = torch.Generator().manual_seed(11)
    turn = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    model.model.embed_tokens.weight = nn.Parameter(model.model.embed_tokens.weight @ turn)
    model.lm_head.weight.copy_(model.lm_head.weight @ turn)
    for layer in _layers(model):
        for _, taking in _projections(layer):
            for module in taking:
                weight = module.gate_up_proj if hasattr(module, "gate_up_proj") else module.weight
                weight.copy_(weight @ turn)
        layer.self_attn.o_proj.weight.copy_(turn.T @ layer.self_attn.o_proj.weight)
        if hasattr(layer.mlp, "down_proj"):
            layer.mlp.down_proj.weight.copy_(turn.T @ layer.mlp.down_proj.weight)
        else:
            experts = layer.mlp.experts
            experts.down_proj.copy_(turn.T @ experts.down_proj)
    return model


class FusedMLP(nn.Module):
    """Gate and up in one projection, as engines have them."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        weight = torch.cat([own.gate_proj.weight, own.up_proj.weight])
        self.gate_up_proj = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.gate_up_proj.weight.copy_(weight)
        self.down_proj = own.down_proj

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(functional.silu(gate) * up)


def fuse_gate_and_up(model: Any) -> Any:
    """Gate and up become one projection."""
    for layer in _layers(model):
        layer.mlp = FusedMLP(layer.mlp)
    return model


class FusedQKV(nn.Module):
    """Queries, keys and values in one projection; attention in plain steps."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        parts = [own.q_proj, own.k_proj, own.v_proj]
        weight = torch.cat([part.weight for part in parts])
        self.qkv_proj = nn.Linear(weight.shape[1], weight.shape[0], bias=parts[0].bias is not None)
        self.qkv_proj.weight.copy_(weight)
        if self.qkv_proj.bias is not None:
            self.qkv_proj.bias.copy_(torch.cat([part.bias for part in parts]))
        self.o_proj = own.o_proj
        self.head_dim, self.groups = own.head_dim, own.num_key_value_groups
        self.sizes = [part.out_features for part in parts]
        self.scaling = own.scaling

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        batch, length, _size = hidden_states.shape
        q, k, v = (
            part.view(batch, length, -1, self.head_dim).transpose(1, 2)
            for part in self.qkv_proj(hidden_states).split(self.sizes, -1)
        )
        cos, sin = (table[:, None] for table in position_embeddings)
        q, k = (x * cos + _turned(x) * sin for x in (q, k))
        k, v = (x.repeat_interleave(self.groups, 1) for x in (k, v))
        logits = q @ k.mT * self.scaling
        if attention_mask is not None:
            logits = logits + attention_mask
        mixed = logits.softmax(-1) @ v
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), None


def _turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def fuse_qkv(model: Any) -> Any:
    """The three projections of an attention become one."""
    for layer in _layers(model):
        layer.self_attn = FusedQKV(layer.self_attn)
    return model


class Bare(nn.Module):
    """Returns logits and nothing else."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.wrapped = own

    def forward(self, **inputs: Any) -> Tensor:
        logits: Tensor = self.wrapped(**inputs).logits
        return logits


class Tupled(nn.Module):
    """A layer that returns a tuple of one."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.wrapped = own
        for name, value in vars(own).items():
            if not name.startswith("_") and isinstance(value, str):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        return (self.wrapped(*args, **kwargs),)


class Untupled(nn.Module):
    """Takes the tensor out of the tuple of the layer before it."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.wrapped = own

    def forward(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped(hidden[0] if isinstance(hidden, tuple) else hidden, *args, **kwargs)


def tuples(model: Any) -> Any:
    """Layers return tuples of one."""
    layers = model.model.layers
    for index, layer in enumerate(layers):
        layers[index] = Tupled(layer if index == 0 else Untupled(layer))
    model.model.norm = Untupled(model.model.norm)
    return model


class Flat(nn.Module):
    """An MLP that works on a list of tokens, without a batch."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.wrapped = own

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.wrapped(x.flatten(0, 1)).view(x.shape)
        return made


def flatten_tokens(model: Any) -> Any:
    """MLPs work on tokens without a batch."""
    for layer in _layers(model):
        layer.mlp = Flat(layer.mlp)
    return model


class Pointwise(nn.Module):
    """A linear layer as a convolution over one position."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(own.weight[..., None].clone())
        self.bias = own.bias
        self.out_features = own.out_features

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv1d(x.mT, self.weight, self.bias).mT


def linear_as_convolution(model: Any) -> Any:
    """Down projections become convolutions over one position."""
    for layer in _layers(model):
        layer.mlp.down_proj = Pointwise(layer.mlp.down_proj)
    return model


def rename(model: Any) -> Any:
    """Modules have other names, in a class of its own."""
    for layer in _layers(model):
        layer.register_module("norm_1", layer.input_layernorm)
        attention, mlp = layer.self_attn, layer.mlp
        for old, new in (("q_proj", "wq"), ("k_proj", "wk"), ("v_proj", "wv"), ("o_proj", "wo")):
            attention.register_module(new, getattr(attention, old))
        del layer._modules["norm_1"]
        attention.forward = _renamed_forward(attention)
        for old in ("q_proj", "k_proj", "v_proj", "o_proj"):
            del attention._modules[old]
        layer.mlp = mlp
    return model


def _renamed_forward(own: Any) -> Callable[..., Any]:
    def forward(
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        batch, length, _size = hidden_states.shape
        q, k, v = (
            part(hidden_states).view(batch, length, -1, own.head_dim).transpose(1, 2)
            for part in (own.wq, own.wk, own.wv)
        )
        cos, sin = (table[:, None] for table in position_embeddings)
        q, k = (x * cos + _turned(x) * sin for x in (q, k))
        k, v = (x.repeat_interleave(own.num_key_value_groups, 1) for x in (k, v))
        logits = q @ k.mT * own.scaling
        if attention_mask is not None:
            logits = logits + attention_mask
        mixed = logits.softmax(-1) @ v
        return own.wo(mixed.transpose(1, 2).flatten(2)), None

    return forward


def conv1d_as_linear(model: Any) -> Any:
    """GPT-2's transposed linear layers become ordinary ones."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, transformers.pytorch_utils.Conv1D):
                linear = nn.Linear(child.weight.shape[0], child.nf)
                linear.weight.copy_(child.weight.T)
                linear.bias.copy_(child.bias)
                setattr(module, name, linear)
    return model


def fold_batch_norms(model: Any) -> Any:
    """Batch norms go into the convolutions before them."""
    for module in list(model.modules()):
        convolution = getattr(module, "convolution", None)
        norm = getattr(module, "normalization", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            convolution.weight.mul_(factor[:, None, None, None])
            convolution.bias = nn.Parameter(norm.bias - norm.running_mean * factor)
            module.normalization = nn.Identity()
    return model


def fold_layer_norms(model: Any) -> Any:
    """GPT-2: weight and bias of layer norms go into the layers behind them."""
    for block in model.transformer.h:
        for norm, behind in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
            behind.bias.add_(norm.bias @ behind.weight)
            behind.weight.mul_(norm.weight[:, None])
            norm.weight.fill_(1.0)
            norm.bias.fill_(0.0)
    return model


def fold_scale_of_bert(model: Any) -> Any:
    """BERT: the attention's factor goes into the queries."""
    for layer in model.encoder.layer:
        own = layer.attention.self
        own.query.weight.mul_(own.scaling)
        own.query.bias.mul_(own.scaling)
        own.scaling = 1.0
    return model


def smooth_bert(model: Any) -> Any:
    """BERT: value channels are divided, and multiplied in the output projection."""
    generator = torch.Generator().manual_seed(12)
    for layer in model.encoder.layer:
        value, dense = layer.attention.self.value, layer.attention.output.dense
        factor = 0.5 + torch.rand(value.out_features, generator=generator) * 2
        value.weight.div_(factor[:, None])
        value.bias.div_(factor)
        dense.weight.mul_(factor)
    return model


def permute_bert(model: Any) -> Any:
    """BERT: the channels inside the feed-forward part come in another order."""
    for layer in model.encoder.layer:
        first, second = layer.intermediate.dense, layer.output.dense
        order = torch.arange(first.out_features).flip(0)
        first.weight.copy_(first.weight[order])
        first.bias.copy_(first.bias[order])
        second.weight.copy_(second.weight[:, order])
    return model


class Tuples(nn.Module):
    """Returns a plain tuple."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.wrapped = own

    def forward(self, **inputs: Any) -> tuple[Any, ...]:
        made: tuple[Any, ...] = self.wrapped(**inputs).to_tuple()
        return made


_DECODER_RULES: Mapping[str, Rewrite] = {
    "norms folded into projections": fold_norms,
    "norms and projections smoothed": smooth,
    "products smoothed": smooth_products,
    "MLP rows permuted": permute_rows,
    "head groups permuted": permute_heads,
    "attention's factor folded": fold_factor,
    "residual stream rotated": rotate,
    "gate and up fused": fuse_gate_and_up,
    "qkv fused": fuse_qkv,
    "bare logits": Bare,
    "outputs as tuples": Tuples,
    "layers return tuples": tuples,
    "tokens flattened": flatten_tokens,
    "linear as convolution": linear_as_convolution,
    "projections renamed": rename,
    "folded, then smoothed": lambda model: smooth(fold_norms(model)),
    "rows and heads permuted": lambda model: permute_heads(permute_rows(model)),
    "rotated, permuted and fused": lambda model: fuse_gate_and_up(permute_rows(rotate(model))),
}
_DENSE_ONLY = (
    "tokens flattened",
    "products smoothed",
    "MLP rows permuted",
    "gate and up fused",
    "linear as convolution",
    "rows and heads permuted",
    "rotated, permuted and fused",
)
_OTHERS: tuple[tuple[str, str, Rewrite], ...] = (
    ("gpt2", "Conv1D as Linear", conv1d_as_linear),
    ("gpt2", "layer norms folded", fold_layer_norms),
    ("gpt2", "bare logits", Bare),
    ("gpt2", "outputs as tuples", Tuples),
    ("resnet", "batch norms folded", fold_batch_norms),
    ("resnet", "outputs as tuples", Tuples),
    ("bert", "attention's factor folded", fold_scale_of_bert),
    ("bert", "values smoothed", smooth_bert),
    ("bert", "feed-forward permuted", permute_bert),
    ("bert", "outputs as tuples", Tuples),
    ("t5", "outputs as tuples", Tuples),
    ("vit", "bare logits", Bare),
)


def _run(
    family: Family, prepare: Callable[[Any, dict[str, Any]], Any]
) -> Callable[[], tuple[nn.Module, nn.Module, Mapping[str, Any]]]:
    def make() -> tuple[nn.Module, nn.Module, Mapping[str, Any]]:
        reference, inputs = family.build(), dict(family.inputs())
        candidate = prepare(copy.deepcopy(reference), inputs)
        return reference, candidate, inputs

    return make


def _fused_attention(model: Any, inputs: dict[str, Any]) -> Any:
    model.set_attn_implementation("sdpa")
    return model


def _padded_left(model: Any, inputs: dict[str, Any]) -> Any:
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    return _fused_attention(model, inputs)


class Autocast(nn.Module):
    """Runs under autocast."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.wrapped = own

    def forward(self, **inputs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return self.wrapped(**inputs)


def _autocast(model: Any, inputs: dict[str, Any]) -> Any:
    return Autocast(model)


def _half(model: Any, inputs: dict[str, Any]) -> Any:
    return model.to(torch.bfloat16)


_RUNS: Mapping[str, Callable[[Any, dict[str, Any]], Any]] = {
    "fused attention, padded on the right": _fused_attention,
    "fused attention, padded on the left": _padded_left,
    "under autocast": _autocast,
    "in bfloat16": _half,
}
