"""A Llama whose norms are smoothed: what differs inside is made good, and the outputs agree.

trace_model compare random-llama --candidate examples/smoothed.py:build
"""

import torch
from transformers import LlamaForCausalLM

import tracer


def build() -> LlamaForCausalLM:
    """The built-in model with each channel that a norm makes divided by a factor, and the layers
    that take it multiplied, as SmoothQuant does (arXiv:2211.10438)."""
    model = tracer.models.load("random-llama").model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, takers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                factors = torch.rand(norm.weight.shape, generator=generator) + 0.5
                norm.weight.div_(factors)
                for linear in takers:
                    linear.weight.mul_(factors)
    return model
