"""What the static graphs of a Llama take, and what the float model makes of it."""

import torch
from transformers import DynamicCache

from wrappers.deploy.steps import Step
from wrappers.layers.decoder_blocks import key_factors

PARTS = {
    "attention": "model.layers.1.self_attn", "layer": "model.layers.1", "model": "model",
    "causal LM": "",
}  # fmt: skip


class FloatStep:
    """A forward of the float model over a cache, seen at one of its parts.

    Args:
        model: a float causal LM.
        part: a key of PARTS.
        input_ids: [B, past + query].
        past_length: how many of them are cached before.

    Attributes:
        inputs: of the part, [B, query, hidden] or token ids [B, query].
        output: of the part, [B, query, ...].
        past: keys and values of each layer in turn, [B, kv_heads, past, head_dim]; empty if
            nothing is past.
        new: likewise, [B, kv_heads, query, head_dim].
    """

    def __init__(self, model, part, input_ids, past_length):
        cache = DynamicCache()
        new_ids = input_ids[:, past_length:]
        calls = []
        hook = model.get_submodule(PARTS[part]).register_forward_hook(
            lambda module, args, kwargs, output: calls.append((args, kwargs, output)),
            with_kwargs=True,
        )
        with torch.no_grad():
            if past_length:
                model(input_ids[:, :past_length], past_key_values=cache)
            calls.clear()
            self.past = self._states(cache, slice(None))
            model(new_ids, past_key_values=cache)
            hook.remove()
            ((args, kwargs, output),) = calls
            self.new = self._states(cache, slice(past_length, None))
            self.inputs, self.output = {
                "attention": lambda: (kwargs["hidden_states"], output[0]),
                "layer": lambda: (args[0], output),
                "model": lambda: (model.model.embed_tokens(new_ids), output.last_hidden_state),
                "causal LM": lambda: (new_ids, output.logits),
            }[part]()

    @staticmethod
    def _states(cache, positions):
        return [
            (layer.keys[:, :, positions], layer.values[:, :, positions]) for layer in cache.layers
        ]


def scaled(pairs, wrapped):
    """Keys and values of each layer as the wrapped model works with them."""
    factors = key_factors(wrapped)
    return [(key * factors.get(i, 1.0), value) for i, (key, value) in enumerate(pairs)]


def flat(pairs, layers):
    return [states for layer in layers for states in pairs[layer]] if pairs else []


def tables(model, position_ids):
    """The float model's cos and sin, each [B or 1, query, head_dim]."""
    with torch.no_grad():
        return model.model.rotary_emb(model.model.embed_tokens.weight, position_ids)


def causal(query_length, past_length):
    """[1, query, past + query], with the least number for what is hidden."""
    least = torch.finfo(torch.float32).min
    return torch.full((1, query_length, past_length + query_length), least).triu(past_length + 1)


def arguments(model, wrapped, part, reference, past_length):
    """What the step of a part takes."""
    step = Step(wrapped.get_submodule(PARTS[part]))
    query_length = reference.inputs.shape[1]
    positions = torch.arange(past_length, past_length + query_length)[None]
    cos, sin = step.tables(*tables(model, positions))
    past = flat(scaled(reference.past, wrapped), step.layers)
    mask = causal(query_length, past_length).expand(reference.inputs.shape[0], -1, -1)
    return step, (reference.inputs, cos, sin, mask, *past)
