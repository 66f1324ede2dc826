"""Right ports as engines write them: other names, fused and split projections, flat tokens.

    for name, make in ports():
        reference, candidate, inputs = make()

Each port takes the reference's weights and computes the same.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, linear, relu, rms_norm, silu
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

Made = tuple[nn.Module, nn.Module, dict[str, torch.Tensor]]


def ports() -> list[tuple[str, Callable[[], Made]]]:
    """The ports by name, each with what makes the reference, the candidate and the inputs."""
    return [
        ("llama_engine", llama_engine),
        ("neox_split", neox_split),
        ("deepseek_v3_experts", deepseek_v3_experts),
        ("t5_renamed", t5_renamed),
    ]


def _jittered(model: nn.Module) -> nn.Module:
    """Small offsets where parameters are constant, so that none is like another."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            else:
                parameter.mul_(3.0)
    return model.eval()


def _give(module: nn.Module, *sources: nn.Module) -> None:
    """Puts the parameters of one or several modules, one after the other, into another."""
    with torch.no_grad():
        for name, parameter in module.named_parameters(recurse=False):
            parameter.copy_(torch.cat([getattr(source, name) for source in sources]))


def _angles(count: int, size: int, theta: float = 10000.0) -> torch.Tensor:
    inverse = 1.0 / theta ** (torch.arange(0, size, 2).float() / size)
    return torch.outer(torch.arange(count).float(), inverse).repeat(1, 2)


def _turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    scale: float,
    bias: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Attention over [batch, heads, tokens, size]; the result is [batch, tokens, heads * size]."""
    scores = q @ k.mT * scale + bias
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class _RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if residual is None:
            return rms_norm(x, x.shape[-1:], self.scale, self.eps)
        x = x + residual
        return rms_norm(x, x.shape[-1:], self.scale, self.eps), x


class _EngineAttention(nn.Module):
    def __init__(self, width: int, heads: int, groups: int, sequences: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.sequences = sequences
        self.wqkv = nn.Linear(width, (heads + 2 * groups) * self.size, bias=False)
        self.wo = nn.Linear(width, width, bias=False)

    def forward(self, positions: torch.Tensor, hidden: torch.Tensor) -> Any:
        fused = self.wqkv(hidden).view(self.sequences, -1, self.heads + 2 * self.groups, self.size)
        q, k, v = fused.transpose(1, 2).split([self.heads, self.groups, self.groups], 1)
        angles = _angles(int(positions.max()) + 1, self.size)
        repeats = self.heads // self.groups
        k, v = (t.repeat_interleave(repeats, 1) for t in (_turned(k, angles), v))
        mixed = _attend(_turned(q, angles), k, v, causal=True, scale=self.size**-0.5)
        return self.wo(mixed.flatten(0, 1))


class _EngineMLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w13 = nn.Linear(width, 2 * inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: torch.Tensor) -> Any:
        gate, up = self.w13(hidden).chunk(2, -1)
        return self.w2(silu(gate) * up)


class _EngineBlock(nn.Module):
    def __init__(self, config: LlamaConfig, sequences: int) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        self.ln_1 = _RMSNorm(width, config.rms_norm_eps)
        self.ln_2 = _RMSNorm(width, config.rms_norm_eps)
        self.attn = _EngineAttention(width, heads, config.num_key_value_heads, sequences)
        self.ffn = _EngineMLP(width, config.intermediate_size)

    def forward(
        self, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> Any:
        if residual is None:
            hidden, residual = self.ln_1(hidden), hidden
        else:
            hidden, residual = self.ln_1(hidden, residual)
        hidden, residual = self.ln_2(self.attn(positions, hidden), residual)
        return self.ffn(hidden), residual


class _LlamaEngine(nn.Module):
    """Tokens of all sequences in one dimension, and the residual carried through the norms."""

    def __init__(self, config: LlamaConfig, sequences: int) -> None:
        super().__init__()
        self.sequences = sequences
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(
            _EngineBlock(config, sequences) for _ in range(config.num_hidden_layers)
        )
        self.ln_f = _RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, input_ids: torch.Tensor) -> Any:
        length = input_ids.shape[1]
        positions = torch.arange(length).repeat(self.sequences)
        hidden, residual = self.wte(input_ids.flatten()), None
        for block in self.h:
            hidden, residual = block(positions, hidden, residual)
        hidden, _ = self.ln_f(hidden, residual)
        return {"logits": self.head(hidden).view(self.sequences, length, -1)}


def llama_engine() -> Made:
    """Fused qkv and gate_up, residuals carried in the norms, flat tokens, other names."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    reference = _jittered(LlamaForCausalLM(config))
    ids = torch.randint(0, 96, (2, 9))
    port = _LlamaEngine(config, len(ids))
    inner = reference.model
    _give(port.wte, inner.embed_tokens)
    port.ln_f.scale.data.copy_(inner.norm.weight.data)
    _give(port.head, reference.lm_head)
    for mine, theirs in zip(port.h, inner.layers, strict=True):
        attention, mlp = theirs.self_attn, theirs.mlp
        mine.ln_1.scale.data.copy_(theirs.input_layernorm.weight.data)
        mine.ln_2.scale.data.copy_(theirs.post_attention_layernorm.weight.data)
        _give(mine.attn.wqkv, attention.q_proj, attention.k_proj, attention.v_proj)
        _give(mine.attn.wo, attention.o_proj)
        _give(mine.ffn.w13, mlp.gate_proj, mlp.up_proj)
        _give(mine.ffn.w2, mlp.down_proj)
    return reference, port.eval(), {"input_ids": ids}


class _SplitAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> Any:
        shape = (*x.shape[:2], self.heads, self.size)
        q, k, v = (m(x).view(shape).transpose(1, 2) for m in (self.query, self.key, self.value))
        turned = self.size // 2
        angles = _angles(x.shape[1], turned)
        q, k = (torch.cat([_turned(t[..., :turned], angles), t[..., turned:]], -1) for t in (q, k))
        return self.out(_attend(q, k, v, causal=True, scale=self.size**-0.5))


class _NeoXBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm_a, self.norm_b = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _SplitAttention(width, heads)
        self.fc_in, self.fc_out = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> Any:
        return x + self.attn(self.norm_a(x)) + self.fc_out(gelu(self.fc_in(self.norm_b(x))))


class _NeoX(nn.Module):
    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.embed = nn.Embedding(config.vocab_size, width)
        self.blocks = nn.ModuleList(
            _NeoXBlock(width, config.num_attention_heads, config.intermediate_size)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.unembed = nn.Linear(width, config.vocab_size, bias=False)

    def forward(self, input_ids: torch.Tensor) -> Any:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return {"logits": self.unembed(self.norm(x))}


def neox_split() -> Made:
    """GPT-NeoX's query_key_value, in which heads lie one after the other, as three projections."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
    )
    reference = _jittered(GPTNeoXForCausalLM(config))
    port = _NeoX(config)
    _give(port.embed, reference.gpt_neox.embed_in)
    _give(port.norm, reference.gpt_neox.final_layer_norm)
    _give(port.unembed, reference.get_output_embeddings())
    for mine, theirs in zip(port.blocks, reference.gpt_neox.layers, strict=True):
        _give(mine.norm_a, theirs.input_layernorm)
        _give(mine.norm_b, theirs.post_attention_layernorm)
        _give(mine.fc_in, theirs.mlp.dense_h_to_4h)
        _give(mine.fc_out, theirs.mlp.dense_4h_to_h)
        _give(mine.attn.out, theirs.attention.dense)
        fused, heads = theirs.attention.query_key_value, config.num_attention_heads
        for name in ("weight", "bias"):
            rows = getattr(fused, name).data.unflatten(0, (heads, 3, -1))
            for n, part in enumerate((mine.attn.query, mine.attn.key, mine.attn.value)):
                getattr(part, name).data.copy_(rows[:, n].flatten(0, 1))
    return reference, port.eval(), {"input_ids": torch.randint(0, 96, (2, 11))}


class _Gated(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.w2(silu(self.w1(x)) * self.w3(x))

    def take(self, mlp: nn.Module) -> None:
        _give(self.w1, mlp.gate_proj)
        _give(self.w3, mlp.up_proj)
        _give(self.w2, mlp.down_proj)


class _Sparse(nn.Module):
    """A module for each expert, and a shared one."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.moe_intermediate_size
        self.router = nn.Linear(width, config.n_routed_experts, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.n_routed_experts))
        self.many = nn.ModuleList(_Gated(width, inner) for _ in range(config.n_routed_experts))
        self.always = _Gated(width, inner * config.n_shared_experts)
        self.config = config

    def forward(self, x: torch.Tensor) -> Any:
        config, flat = self.config, x.flatten(0, 1)
        scores = linear(flat.float(), self.router.weight.float()).sigmoid()
        grouped = (scores + self.bias).view(len(flat), config.n_group, -1)
        best = grouped.topk(2, -1).values.sum(-1).topk(config.topk_group, -1).indices
        allowed = torch.zeros(grouped.shape[:2]).scatter(1, best, 1.0).bool()
        masked = grouped.masked_fill(~allowed[..., None], 0.0).flatten(1)
        chosen = masked.topk(config.num_experts_per_tok, -1).indices
        weights = scores.gather(1, chosen)
        if config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        weights = weights * config.routed_scaling_factor
        mixed = torch.zeros_like(flat)
        for n, expert in enumerate(self.many):
            token, place = (chosen == n).nonzero(as_tuple=True)
            if len(token):
                mixed.index_add_(0, token, expert(flat[token]) * weights[token, place, None])
        return mixed.view_as(x) + self.always(x)


class _Latent(nn.Module):
    """Attention over a compressed key and value."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.config, heads = config, config.num_attention_heads
        nope, rope, size = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        width, rank = config.hidden_size, config.kv_lora_rank
        self.wq_a = nn.Linear(width, config.q_lora_rank, bias=False)
        self.q_norm = _RMSNorm(config.q_lora_rank)
        self.wq_b = nn.Linear(config.q_lora_rank, heads * (nope + rope), bias=False)
        self.wkv_a = nn.Linear(width, rank + rope, bias=False)
        self.kv_norm = _RMSNorm(rank)
        self.wkv_b = nn.Linear(rank, heads * (nope + size), bias=False)
        self.wo = nn.Linear(heads * size, width, bias=False)

    def forward(self, x: torch.Tensor) -> Any:
        config, (batch, count, _) = self.config, x.shape
        nope, rope, heads = (
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.num_attention_heads,
        )
        q = self.wq_b(self.q_norm(self.wq_a(x))).view(batch, count, heads, -1).transpose(1, 2)
        q, q_turned = q.split([nope, rope], -1)
        latent, k_turned = self.wkv_a(x).split([config.kv_lora_rank, rope], -1)
        kv = self.wkv_b(self.kv_norm(latent)).view(batch, count, heads, -1).transpose(1, 2)
        k, v = kv.split([nope, config.v_head_dim], -1)
        angles = _angles(count, rope)
        # Neighbours turn together: laid out as halves first.
        q_turned, k_turned = (
            _turned(t.unflatten(-1, (-1, 2)).mT.flatten(-2), angles)
            for t in (q_turned, k_turned[:, None])
        )
        q = torch.cat([q, q_turned], -1)
        k = torch.cat([k, k_turned.expand(-1, heads, -1, -1)], -1)
        return self.wo(_attend(q, k, v, causal=True, scale=(nope + rope) ** -0.5))


class _DeepseekBlock(nn.Module):
    def __init__(self, config: DeepseekV3Config, *, dense: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_1, self.norm_2 = _RMSNorm(width), _RMSNorm(width)
        self.mix = _Latent(config)
        self.feed = _Gated(width, config.intermediate_size) if dense else _Sparse(config)

    def forward(self, x: torch.Tensor) -> Any:
        x = x + self.mix(self.norm_1(x))
        return x + self.feed(self.norm_2(x))


class _Deepseek(nn.Module):
    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.tok = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(
            _DeepseekBlock(config, dense=n < config.first_k_dense_replace)
            for n in range(config.num_hidden_layers)
        )
        self.last = _RMSNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, input_ids: torch.Tensor) -> Any:
        x = self.tok(input_ids)
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(self.last(x))}


def deepseek_v3_experts() -> Made:
    """Latent attention under other names, and a module for each expert."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_shared_experts=1,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        v_head_dim=8,
        qk_nope_head_dim=8,
        rope_interleave=True,
    )
    reference = DeepseekV3ForCausalLM(config)
    for layer in reference.model.layers[config.first_k_dense_replace :]:
        for parameter in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
            nn.init.normal_(parameter, std=0.02)
        nn.init.normal_(layer.mlp.gate.weight, std=0.02)
    reference = _jittered(reference)
    port = _Deepseek(config)
    _give(port.tok, reference.model.embed_tokens)
    port.last.scale.data.copy_(reference.model.norm.weight.data)
    _give(port.head, reference.lm_head)
    for mine, theirs in zip(port.blocks, reference.model.layers, strict=True):
        mine.norm_1.scale.data.copy_(theirs.input_layernorm.weight.data)
        mine.norm_2.scale.data.copy_(theirs.post_attention_layernorm.weight.data)
        attention = theirs.self_attn
        mine.mix.q_norm.scale.data.copy_(attention.q_a_layernorm.weight.data)
        mine.mix.kv_norm.scale.data.copy_(attention.kv_a_layernorm.weight.data)
        for own, name in (
            ("wq_a", "q_a_proj"),
            ("wq_b", "q_b_proj"),
            ("wkv_a", "kv_a_proj_with_mqa"),
            ("wkv_b", "kv_b_proj"),
            ("wo", "o_proj"),
        ):
            _give(getattr(mine.mix, own), getattr(attention, name))
        if isinstance(mine.feed, _Gated):
            mine.feed.take(theirs.mlp)
            continue
        _give(mine.feed.router, theirs.mlp.gate)
        mine.feed.bias.data.copy_(theirs.mlp.gate.e_score_correction_bias.data)
        mine.feed.always.take(theirs.mlp.shared_experts)
        experts = theirs.mlp.experts
        for n, expert in enumerate(mine.feed.many):
            gate, up = experts.gate_up_proj.data[n].chunk(2)
            expert.w1.weight.data.copy_(gate)
            expert.w3.weight.data.copy_(up)
            expert.w2.weight.data.copy_(experts.down_proj.data[n])
    return reference, port.eval(), {"input_ids": torch.randint(0, 96, (2, 9))}


class _T5Attention(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads, self.size = config.num_heads, config.d_kv
        self.wq = nn.Linear(config.d_model, inner, bias=False)
        self.wkv = nn.Linear(config.d_model, 2 * inner, bias=False)
        self.wo = nn.Linear(inner, config.d_model, bias=False)

    def forward(
        self, x: torch.Tensor, source: torch.Tensor, bias: torch.Tensor | float, causal: bool
    ) -> Any:
        q = self.wq(x).unflatten(-1, (self.heads, self.size)).transpose(1, 2)
        kv = self.wkv(source).unflatten(-1, (2, self.heads, self.size))
        k, v = kv.permute(2, 0, 3, 1, 4)
        return self.wo(_attend(q, k, v, causal=causal, scale=1.0, bias=bias))

    def take(self, attention: nn.Module) -> None:
        _give(self.wq, attention.q)
        _give(self.wkv, attention.k, attention.v)
        _give(self.wo, attention.o)


class _T5Block(nn.Module):
    def __init__(self, config: T5Config, *, is_decoder: bool) -> None:
        super().__init__()
        width = config.d_model
        self.is_decoder = is_decoder
        self.norm_self, self.attend = _RMSNorm(width), _T5Attention(config)
        if is_decoder:
            self.norm_cross, self.cross = _RMSNorm(width), _T5Attention(config)
        self.norm_ff = _RMSNorm(width)
        self.up = nn.Linear(width, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, width, bias=False)

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor | float, memory: torch.Tensor | None = None
    ) -> Any:
        normed = self.norm_self(x)
        x = x + self.attend(normed, normed, bias, self.is_decoder)
        if self.is_decoder:
            x = x + self.cross(self.norm_cross(x), memory, 0.0, False)
        return x + self.down(relu(self.up(self.norm_ff(x))))


class _T5Stack(nn.Module):
    def __init__(self, config: T5Config, *, is_decoder: bool) -> None:
        super().__init__()
        self.config, self.is_decoder = config, is_decoder
        self.table = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
        self.blocks = nn.ModuleList(
            _T5Block(config, is_decoder=is_decoder) for _ in range(config.num_layers)
        )
        self.last = _RMSNorm(config.d_model)

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> Any:
        bias = self.table(self._buckets(x.shape[1])).permute(2, 0, 1)[None]
        for block in self.blocks:
            x = block(x, bias, memory)
        return self.last(x)

    def _buckets(self, count: int) -> torch.Tensor:
        places = torch.arange(count)
        offset, most = places[None] - places[:, None], self.config.relative_attention_num_buckets
        start = torch.zeros_like(offset)
        if self.is_decoder:
            offset = (-offset).clamp(min=0)
        else:
            most //= 2
            start, offset = (offset > 0) * most, offset.abs()
        exact = most // 2
        reach = math.log(self.config.relative_attention_max_distance / exact)
        far = exact + ((offset / exact).clamp(min=1).log() / reach * (most - exact)).long()
        return start + torch.where(offset < exact, offset, far.clamp(max=most - 1))

    def take(self, stack: nn.Module) -> None:
        _give(self.table, stack.block[0].layer[0].SelfAttention.relative_attention_bias)
        self.last.scale.data.copy_(stack.final_layer_norm.weight.data)
        for mine, theirs in zip(self.blocks, stack.block, strict=True):
            mine.attend.take(theirs.layer[0].SelfAttention)
            norms = [mine.norm_self, mine.norm_ff]
            if self.is_decoder:
                mine.cross.take(theirs.layer[1].EncDecAttention)
                norms.insert(1, mine.norm_cross)
            for norm, layer in zip(norms, theirs.layer, strict=True):
                norm.scale.data.copy_(layer.layer_norm.weight.data)
            _give(mine.up, theirs.layer[-1].DenseReluDense.wi)
            _give(mine.down, theirs.layer[-1].DenseReluDense.wo)


class _T5(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.enc = _T5Stack(config, is_decoder=False)
        self.dec = _T5Stack(config, is_decoder=True)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def forward(self, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor) -> Any:
        memory = self.enc(self.tokens(input_ids))
        return {"logits": self.head(self.dec(self.tokens(decoder_input_ids), memory))}


def t5_renamed() -> Made:
    """An encoder-decoder model under other names, with keys and values fused."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=96,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        tie_word_embeddings=False,
        is_gated_act=False,
        feed_forward_proj="relu",
    )
    reference = _jittered(T5ForConditionalGeneration(config))
    port = _T5(config)
    _give(port.tokens, reference.shared)
    port.enc.take(reference.encoder)
    port.dec.take(reference.decoder)
    _give(port.head, reference.lm_head)
    ids = torch.randint(1, 96, (2, 9))
    return reference, port.eval(), {"input_ids": ids, "decoder_input_ids": ids.flip(1)[:, :7]}
