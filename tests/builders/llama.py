"""Small Llamas, and real ones, for tests of what is wrapped."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import wrappers

ATTENTION_POINTS = {
    *("hidden", "cos", "sin", "attn_mask"),
    *(f"{states}_{point}" for states in "qk" for point in ("x1", "x2", "cat", "cos", "sin", "rot")),
    *("new_k", "new_v", "present_key", "present_value"),
    *("logits", "mask_add", "softmax", "attn_out", "attn_weights", "attn_out_h"),
}


def tiny(implementation="eager", *, seed=0, dtype=torch.float32, **changes):
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        # Large enough for the attention not to be flat.
        "initializer_range": 0.15,
    }  # fmt: skip
    config = LlamaConfig(**{**sizes, **changes})
    config._attn_implementation = implementation
    return LlamaForCausalLM(config).to(dtype).eval()


def wrap(model, variant, **config):
    return wrappers.prepare(model, wrappers.PTQConfig(variant=variant, **config))


def specs(activation, weight):
    return {"activation": wrappers.affine(activation), "weight": wrappers.affine(weight)}


def tokens(batch, length, seed=1):
    return torch.randint(3, 96, (batch, length), generator=torch.Generator().manual_seed(seed))


def calibrated(model, variant, inputs, **config):
    wrapped = wrap(model, variant, **config)
    wrappers.calibrate(wrapped, inputs)
    return wrapped


def attention_inputs(model, hidden_states):
    length = hidden_states.shape[1]
    tables = model.model.rotary_emb(hidden_states, torch.arange(length)[None])
    return {"hidden_states": hidden_states, "position_embeddings": tables}


MODELS = pytest.mark.parametrize("name", ["stories260K", "wikitext2-llama"])


def real_model(shared_data, name, implementation):
    return AutoModelForCausalLM.from_pretrained(
        shared_data / name / "hf", dtype=torch.float32, attn_implementation=implementation
    ).eval()


def real_text(shared_data, name, length):
    file = {
        "stories260K": "tinystories/tinystories_train_head.split.txt",
        "wikitext2-llama": "wikitext2/wiki.test.tokens.head.txt",
    }[name]
    tokenizer = AutoTokenizer.from_pretrained(shared_data / name / "hf")
    text = (shared_data / file).read_text()[: 12 * length]
    return tokenizer(text, return_tensors="pt").input_ids[:, :length]
