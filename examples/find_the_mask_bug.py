"""The bug that this project began with: a wrapped Qwen3-VL that sees the future.

Its text model built a causal mask only where it was given none or a bool one. A processor gives
int64, a one for each token: that went down as it was, and the attention added it to the logits.

python examples/find_the_mask_bug.py
python examples/find_the_mask_bug.py --processor FOLDER --image PHOTO
python examples/find_the_mask_bug.py --break '*.o_proj'
"""

import argparse
import types

import torch

import tracer
import wrappers
from wrappers.attention.causal import AttentionInputs
from wrappers.attention.masks import MaskBuilder
from wrappers.attention.rope import negate_first_half

ATTENTION = "model.language_model.layers.0.self_attn"
SHOWN = [*(f"{ATTENTION}.{name}_proj" for name in "qkvo"), "lm_head"]


class MasksOfThatTime(MaskBuilder):
    """What the text model passes to its layers."""

    def additive(self, mask, **sizes):
        if mask is None or mask.dtype == torch.bool:
            return super().additive(None, **sizes)
        return mask


def attention_of_that_time(
    self, hidden_states, position_embeddings, attention_mask, past_key_values=None, **kwargs
):
    """The attention, which adds what it is given."""
    cos, sin = position_embeddings
    inputs = AttentionInputs(cos, negate_first_half(sin), attention_mask, past_key_values)
    return self.attend(hidden_states, inputs)


def plant(model):
    text_model = model.model.language_model
    text_model.masks = MasksOfThatTime(text_model.masks.fill_value)
    for layer in text_model.layers:
        layer.self_attn.forward = types.MethodType(attention_of_that_time, layer.self_attn)


def compare(title, loaded, candidate, **debugging):
    print(f"\n# {title}\n")
    comparison = tracer.compare(loaded.model, candidate, loaded.inputs, **debugging)
    comparison.show()
    rows = comparison.to_frame()
    rows = rows[rows.module.isin(SHOWN) & (rows.value == "output")]
    columns = ["module", "mean", "min", "max", "stddev", "peir"]
    print("\n" + rows[columns].to_string(index=False, float_format="{:.2e}".format))


parser = argparse.ArgumentParser(description="Finds the mask bug in a small Qwen3-VL.")
parser.add_argument("--processor", metavar="FOLDER", help="the processor of a Qwen3-VL")
parser.add_argument("--image", metavar="PHOTO", help="a photo for it, instead of random pixels")
parser.add_argument("--break", dest="glob", metavar="GLOB", help="opens ipdb where values differ")
parser.add_argument("--debugger", choices=["ipdb", "pdb"], help="opens this one instead")
options = parser.parse_args()
photo = {"processor": options.processor, "images": [options.image]} if options.image else {}

loaded = tracer.models.load("tiny-qwen3-vl", **photo)
wrapped = wrappers.prepare(loaded.model, wrappers.PTQConfig(variant="prefill"))
compare("The wrapped model as it is", loaded, wrapped)

plant(wrapped)
stops = [tracer.Breakpoint(options.glob, when="diverged")] if options.glob else []
compare(
    "The wrapped model as it was", loaded, wrapped, breakpoints=stops, debugger=options.debugger
)
