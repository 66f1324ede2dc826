"""Padded batches of mixtures of experts and of sliding windows, eager against SDPA."""

import math
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import tracer
from tracer.models import share_parameters

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
    "num_key_value_heads": 4,
}
WINDOW = {"sliding_window": 4}
SOME = {"use_sliding_window": True, "max_window_layers": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {**LOCAL, **WINDOW},
    "Gemma3": {"head_dim": 8, **WINDOW},
    "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "Qwen3Moe": {**EXPERTS, "head_dim": 8},
    "Olmoe": EXPERTS,
    "Phimoe": LOCAL,
    "GraniteMoe": LOCAL,
    "GraniteMoeShared": {**LOCAL, "shared_intermediate_size": 16},
    "MiniMax": {**LOCAL, "block_size": 4, "head_dim": 8},
    "Ernie4_5_Moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 16,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": 1,
    },
    "HunYuanMoEV1": {"num_experts": 4, "moe_topk": 2, "head_dim": 8},
    "FlexOlmo": EXPERTS,
    "Lfm2Moe": {**EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "Llama4": {
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 32,
        "head_dim": 8,
        "attention_chunk_size": 4,
    },
    "Afmoe": {**EXPERTS, "head_dim": 8, **WINDOW},
    "Glm4Moe": {**ROUTED, "head_dim": 8},
    "DeepseekV2": {**ROUTED, **LATENT},
    "DeepseekV3": {**ROUTED, **LATENT},
    "Jamba": {
        **EXPERTS,
        "use_mamba_kernels": False,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
    },
    "Mistral": WINDOW,
    "Ministral": {"head_dim": 8, **WINDOW},
    "Qwen2": {**WINDOW, **SOME},
    "Qwen3": {**WINDOW, **SOME, "head_dim": 8},
    "Phi3": WINDOW,
    "Starcoder2": WINDOW,
    "Cohere2": {"head_dim": 8, **WINDOW},
    "Exaone4": {"head_dim": 8, **WINDOW},
    "Olmo3": WINDOW,
}
PAIRED = [
    pytest.param(family, marks=() if number < 2 else pytest.mark.slow)
    for number, family in enumerate(FAMILIES)
]


def pair(family: str) -> tuple[nn.Module, nn.Module]:
    """A model in eager attention, and in SDPA's with the same parameters."""
    config = getattr(transformers, f"{family}TextConfig", None)
    config = config or getattr(transformers, f"{family}Config")
    model = getattr(transformers, f"{family}ForCausalLM")(config(**SIZES | FAMILIES[family]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            drawn = torch.randn(weights.shape, generator=generator)
            is_matrix = weights.dim() > 1
            width = math.sqrt(weights[0].numel()) if is_matrix else 1.0
            weights.copy_(drawn / width if is_matrix else 1 + 0.1 * drawn)
    model.eval().set_attn_implementation("eager")
    other = share_parameters(model)
    other.set_attn_implementation("sdpa")
    return model, other


def padded(side: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 95, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row in (1, 2):
        mask[row, slice(0, 3 * row) if side == "left" else slice(11 - 3 * row, 11)] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("family", PAIRED)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_makes_no_divergence(family: str, side: str) -> None:
    found = tracer.compare(*pair(family), padded(side), confirm=False)
    assert found.verdict.agrees, found.verdict.explanation
    assert found.coverage.not_comparable == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", PAIRED[:20])
@pytest.mark.parametrize("side", ["left", "right"])
def test_nor_does_it_in_bfloat16(family: str, side: str) -> None:
    """Where near ties of the routing are turned over, too."""
    model, other = (each.bfloat16() for each in pair(family))
    verdict = tracer.compare(model, other, padded(side)).verdict
    assert verdict.agrees, verdict.explanation


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_expert_that_is_wrong_is_found(side: str) -> None:
    model, other = pair("Mixtral")
    other.model.layers[0].mlp.experts.act_fn = nn.ReLU()
    found = tracer.compare(model, other, padded(side), confirm=False)
    assert not found.verdict.agrees
    assert found.verdict.origin.module.startswith("model.layers.0.mlp.experts")
