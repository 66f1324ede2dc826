"""A small GPT-2 in training mode, with dropout: do two ways of attention train alike?

trace_model compare examples/train_alike.py:build --candidate sdpa --train
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel


def build() -> GPT2LMHeadModel:
    """Two layers with random weights, ready to be trained."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=128,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    return GPT2LMHeadModel(config).train()
