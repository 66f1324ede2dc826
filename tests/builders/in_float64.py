"""Quantised modules written out once more, in float64, and how close theirs must come."""

import torch
from torch import nn


def fake_quantize_64(x, point):
    """Quantise and dequantise in float64, by the definition."""
    qparams = point.qparams
    scale, zero = qparams.scale.double(), qparams.zero_point.double()
    if qparams.axis is not None:
        shape = [1] * x.dim()
        shape[qparams.axis] = -1
        scale, zero = scale.view(shape), zero.view(shape)
    codes = (torch.round(x / scale) + zero).clamp(qparams.dtype.qmin, qparams.dtype.qmax)
    return (codes - zero) * scale


def linear_64(module: nn.Linear, x):
    """A linear layer, or a convolution whose kernel covers a patch once."""
    weight = fake_quantize_64(module.weight.double(), module.points["weight"])
    output = fake_quantize_64(x, module.points["act_in"]) @ weight.flatten(1).T
    output = output if module.bias is None else output + module.bias.double()
    return fake_quantize_64(output, module.points["act_out"])


def norm_64(norm, x):
    """A root mean square norm of transformers."""
    x = fake_quantize_64(x, norm.points["act_in"])
    normalised = x / (x.square().mean(dim=-1, keepdim=True) + norm.variance_epsilon).sqrt()
    weight = fake_quantize_64(norm.weight.double(), norm.points["weight"])
    return fake_quantize_64(weight * normalised, norm.points["act_out"])


def mlp_64(mlp, x):
    """A gated MLP with SiLU."""

    def q(module, x, name):
        return fake_quantize_64(x, module.points[name])

    x = q(mlp, x, "act_in")
    gate = q(mlp.act_fn, linear_64(mlp.gate_proj, x), "act_in")
    act = q(mlp.act_fn, gate * q(mlp.act_fn, gate.sigmoid(), "sigmoid"), "mul")
    product = q(mlp.act_fn, act, "act_out") * linear_64(mlp.up_proj, x)
    output = linear_64(mlp.down_proj, q(mlp, product, mlp.product_point))
    return q(mlp, output, "act_out") if "act_out" in mlp.points else output


def rotated_64(attention, x, cos, sin, name):
    """The rotation of heads [..., length, head_dim], whichever form of rotate-half they take."""

    def q(x, point):
        return fake_quantize_64(x, attention.points[f"{name}_{point}"])

    x1, x2 = (q(half, point) for half, point in zip(x.chunk(2, -1), ("x1", "x2"), strict=True))
    if f"{name}_neg" in attention.points:
        x2 = q(-x2, "neg")
    elif not is_folded(attention):
        x2 = -x2
    turned = q(q(torch.cat((x2, x1), dim=-1), "cat") * sin, "sin")
    return q(q(x * cos, "cos") + turned, "rot")


def is_folded(attention):
    """Whether the factor on the logits is in what makes the keys."""
    return "logits_raw" not in attention.points


def attention_64(attention, hidden, cos, sin, mask, past=None):
    """The causal attention of one sequence.

    Args:
        hidden: [query, hidden].
        cos: [query, head_dim].
        sin: likewise, in the form of the variant.
        mask: [query, past + query], in the range of the fill value.
        past: keys, with the factor, and values, each [kv_heads, past, head_dim].

    Returns:
        The output [query, hidden], and the new keys and values, each [kv_heads, query, head_dim].
    """

    def q(x, name):
        return fake_quantize_64(x.double(), attention.points[name])

    def heads(name):
        states = linear_64(getattr(attention, f"{name}_proj"), hidden)
        states = states.view(len(hidden), -1, attention.head_dim)
        norm = getattr(attention, f"{name}_norm", None)
        return (states if norm is None else norm_64(norm, states)).transpose(0, 1)

    hidden, cos, sin, mask = (
        q(x, name)
        for x, name in zip(
            (hidden, cos, sin, mask), ("hidden", "cos", "sin", "attn_mask"), strict=True
        )
    )
    queries = rotated_64(attention, heads("q"), cos, sin, "q")
    new_key = q(rotated_64(attention, heads("k"), cos, sin, "k"), "new_k")
    new_value = q(heads("v"), "new_v")
    keys, values = new_key, new_value
    if past is not None:
        keys = torch.cat((q(past[0], "past_key"), keys), dim=1)
        values = torch.cat((q(past[1], "past_value"), values), dim=1)
    keys, values = q(keys, "present_key"), q(values, "present_value")
    groups = len(queries) // len(keys)
    outputs = []
    for head, query in enumerate(queries):
        logits = query @ keys[head // groups].T
        if not is_folded(attention):
            scale = q(torch.tensor(attention.head_dim**-0.5, dtype=torch.float64), "scale")
            logits = q(logits, "logits_raw") * scale
        weights = q(q(q(logits, "logits") + mask, "mask_add").softmax(dim=-1), "softmax")
        outputs.append(q(weights @ values[head // groups], "attn_out"))
    output = linear_64(attention.o_proj, q(torch.cat(outputs, dim=-1), "attn_out_h"))
    return output, new_key, new_value


def assert_on_the_same_steps(found, expected, point):
    """float32 and float64 fall on different sides of a rounding now and then: a step at one point
    moves a few outputs by a few steps and no more."""
    step = float(point.qparams.scale)
    difference = (found.double() - expected).abs()
    assert difference.max() <= 4 * step
    assert (difference > step / 2).double().mean() < 0.05
