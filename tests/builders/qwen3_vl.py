"""Small text models of Qwen3-VL, with visual features or without."""

import torch
from transformers import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

import wrappers
from tests.builders.agreement import padding, redrawn
from tests.builders.llama import tokens as tokens
from wrappers.families.qwen3_vl import text

DEEPSTACK = 2  # layers that take visual features, of three
FACTOR = 8**-0.5  # on the logits, from head_dim


def rope(kind, **options):
    sections = {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return {"rope_type": kind, "rope_theta": 1e4, **sections, **options}


SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 128, "rope_parameters": rope("default"),
}  # fmt: skip


def tiny(implementation="eager", *, dtype=torch.float32, **changes):
    config = Qwen3VLTextConfig(**{**SIZES, **changes})
    config._attn_implementation = implementation
    return redrawn(Qwen3VLTextModel(config)).to(dtype).eval()


def wrap(model, variant, deepstack=DEEPSTACK, **config):
    known = {text.DEEPSTACK_LAYERS: deepstack}
    return wrappers.prepare(model, wrappers.PTQConfig(variant=variant, model_args=known, **config))


def calibrated(model, variant, inputs, **config):
    wrapped = wrap(model, variant, **config)
    wrappers.calibrate(wrapped, inputs)
    return wrapped


def quantized(model, variant, inputs, **config):
    return wrappers.convert(calibrated(model, variant, inputs, **config))


def randn(*shape, seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_features(batch, length, side=None, seed=3):
    """Tokens, some of which are visual, and the features of these for each layer that takes any."""
    positions = torch.zeros(batch, length, dtype=torch.bool)
    for row in range(batch):  # in the middle, another number in each row
        positions[row, length // 2 : length // 2 + 1 + row] = True
    count = int(positions.sum())
    inputs = {
        "input_ids": tokens(batch, length),
        "visual_pos_masks": positions,
        "deepstack_visual_embeds": list(randn(DEEPSTACK, count, 32, seed=seed)),
    }
    if side is not None:
        inputs["attention_mask"] = padding(batch, length, side)
    return inputs


def at_all_positions(inputs, elsewhere):
    """The features in full size, [B, length, hidden], with a number wherever they have no place."""
    positions = inputs["visual_pos_masks"]
    full = []
    for features in inputs["deepstack_visual_embeds"]:
        spread = torch.full((*positions.shape, 32), elsewhere)
        spread[positions] = features
        full.append(spread)
    return inputs | {"deepstack_visual_embeds": full}


def grids(batch, length):
    """Positions of tokens with an image among them: times, rows and columns, [3, batch, length]."""
    positions = torch.arange(length).expand(3, batch, length).clone()
    positions[0, :, 2:6] = 2
    positions[1, :, 2:6] = torch.tensor([2, 2, 3, 3])
    positions[2, :, 2:6] = torch.tensor([2, 3, 2, 3])
    positions[:, :, 6:] -= 2
    return positions


def attention_inputs(model, hidden_states):
    positions = torch.arange(hidden_states.shape[1]).expand(3, 1, -1)
    return {
        "hidden_states": hidden_states,
        "position_embeddings": model.rotary_emb(hidden_states, positions),
        "attention_mask": causal(hidden_states.shape[1], -120.0),
    }


def causal(length, fill):
    return torch.full((length, length), fill).triu(1)[None, None]


def last(model, **inputs):
    with torch.no_grad():
        return model(**inputs).last_hidden_state
