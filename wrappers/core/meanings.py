"""What is at a quantization point, in a few words, by its name: the same in all wrappers."""

_MEANINGS = {
    "weight": "the module's weight",
    "bias": "the module's bias",
    "act_in": "what the module is given",
    "act_out": "what the module returns",
    # attention
    "hidden": "the hidden states that the attention is given",
    "cos": "the cosine table of the rotary embedding",
    "sin": "the sine table of the rotary embedding",
    "new_k": "the keys of the new tokens, after rotation",
    "new_v": "the values of the new tokens",
    "kv_key": "the keys of earlier tokens, as the cache keeps them",
    "kv_value": "the values of earlier tokens, as the cache keeps them",
    "past_key": "the keys read from the cache",
    "past_value": "the values read from the cache",
    "present_key": "all keys that the attention looks at",
    "present_value": "all values that the attention looks at",
    "scale": "the factor on the attention scores",
    "logits_raw": "the attention scores before their factor",
    "logits": "the attention scores, before the mask",
    "mask_add": "the attention scores with the mask added, before the softmax",
    "softmax": "the attention weights, after the softmax",
    "attn_weights": "the attention weights of all heads, as they are returned",
    "attn_out": "the output of each head",
    "attn_out_h": "the outputs of all heads side by side, before the output projection",
    # masks and tables made once for all layers
    "attn_mask": "the additive attention mask",
    "causal_mask": "the additive attention mask, made once for all layers",
    "attention_mask": "the additive attention mask, made once for all layers",
    "rope_cos": "the cosine table of the vision model's rotary embedding",
    "rope_sin": "the sine table of the vision model's rotary embedding",
    # residual stream
    "attn_residual_out": "the residual stream after the attention",
    "mlp_residual_out": "the residual stream after the MLP",
    "post_attn": "the residual stream after the attention",
    # MLP and activation functions
    "sigmoid": "sigmoid(x) inside SiLU",
    "mul": "the gated product that down_proj takes",
    "gated_out": "the gated product that down_proj takes",
    # layer norm, step by step
    "mean": "the mean",
    "centred": "the input minus its mean",
    "square": "the squares of the centred input",
    "variance": "the variance",
    "eps": "the epsilon of the norm",
    "rsqrt": "1 / sqrt(variance + epsilon)",
    "normalised": "the normalised input, before its weight",
    "scaled": "the normalised input times its weight, before the bias",
    # vision
    "inputs_embeds": "the embeddings that enter the text model",
    "mm_fusion": "the embeddings of text and images together",
    "pos_embed": "the position embeddings of the patches",
    "pos_add": "the patches with their position embeddings",
}
# The steps of a rotation, in points named after what is rotated: "q_rot".
_ROTATED = {"q": "the queries", "k": "the keys"}
_ROTATION = {
    "x1": "the first half of {} before rotation",
    "x2": "the second half of {} before rotation",
    "neg": "the second half of {} negated, for the rotation",
    "cat": "{} with their halves swapped, for the rotation",
    "cos": "{} times cosine, in the rotation",
    "sin": "{} with their halves swapped, times sine",
    "rot": "{} after rotation",
}
_NUMBERED = {
    "deepstack_visual_embeds": "the visual features for layer {}",
    "deepstack_sum": "the hidden states of layer {} with the visual features added",
}


def meaning(point: str) -> str:
    """What is at a point, in a few words; empty where its name is not known."""
    if point in _MEANINGS:
        return _MEANINGS[point]
    states, _, step = point.partition("_")
    if states in _ROTATED and step in _ROTATION:
        return _ROTATION[step].format(_ROTATED[states])
    kind, _, number = point.rpartition("_")
    return _NUMBERED[kind].format(number) if kind in _NUMBERED else ""
