"""Attention arithmetic between rotated heads and the output projection, in two forms.

`attend_batched` computes all heads at once and scales the logits; `attend_by_head` goes head by
head, as an accelerator does, with the scale already folded into the keys wherever it can be. Both
apply the same quantization points in the same order:

    logits_raw, scale     (unless the scale is folded)
    logits, mask_add      (the latter unless there is no mask)
    softmax, attn_out, attn_weights, attn_out_h

The logits are by far the largest tensors: [B, heads, query, key]. Every step on them goes row by
row, so outside of calibration the whole chain is run over blocks of rows that stay in the cache of
the processor; the results are the same bit for bit. A calibrating observer sees whole tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from wrappers.attention import tiling
from wrappers.core.point import Quantize


@dataclass(frozen=True)
class AttentionResult:
    """What attention gives.

    Attributes:
        output: [B, query, heads * head_dim], for the output projection.
        weights: [B, heads, query, key] after the softmax, or None where not asked for.
    """

    output: Tensor
    weights: Tensor | None


@dataclass(frozen=True)
class AttentionOptions:
    """How attention computes, besides queries, keys and values.

    Attributes:
        quantize: called with a tensor and a point's name.
        mask: additive, [B or 1, 1, query, key]; None where every key is visible.
        scaling: the factor on the logits; None if the keys have it already.
        dropout: probability of dropping a weight.
        observed_masks: while calibrating, the masks that a quantised model will add: the point
            mask_add sees the logits with these, and every point sees whole tensors.
        keep_weights: whether the weights are wanted (and their point attn_weights is reached).
        whole_tensors: every point sees whole tensors, without `observed_masks` too.
        fold: no point changes anything, so `attend_batched` may put the factor onto the queries, of
            which there are far fewer; the point logits_raw then sees the logits with it taken out
            again.
        monotone: no point of the logits maps a smaller one to a larger; `attend_batched` may then
            pass over keys that the mask hides where that is sure to change nothing.
    """

    quantize: Quantize
    mask: Tensor | None = None
    scaling: float | None = None
    dropout: float = 0.0
    observed_masks: Sequence[Tensor] = ()
    keep_weights: bool = False
    whole_tensors: bool = False
    fold: bool = False
    monotone: bool = True

    @property
    def by_blocks(self) -> bool:
        """Whether points may see the logits block by block."""
        return not self.observed_masks and not self.whole_tensors


def attend_batched(
    query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
) -> AttentionResult:
    """Attends with all heads at once.

    Args:
        query: rotated, [B, heads, query, head_dim].
        key: rotated, [B, kv_heads, key, head_dim]; each serves heads / kv_heads query heads in
            turn, as `repeat_interleave` would expand it.
        value: [B, kv_heads, key, head_dim].
        options: with a factor on the logits.
    """
    mask, quantize, dropout = options.mask, options.quantize, options.dropout
    observed_masks, by_blocks = options.observed_masks, options.by_blocks
    assert options.scaling is not None
    batch, heads, query_length, head_dim = query.shape
    kv_heads, key_length = key.shape[1:3]
    scale = _scale(options.scaling, query, quantize)
    # In half precision the product would be rounded.
    fold = options.fold and query.dtype == scale.dtype
    query = query * scale if fold else query

    def factor(logits: Tensor, in_place: bool) -> Tensor:
        if not fold:
            return _scaled(logits, scale, quantize, in_place)
        if not by_blocks:
            quantize(logits / scale, "logits_raw", may_overwrite=True)
        return quantize(logits, "logits", may_overwrite=True)

    def softmax(logits: Tensor, mask: Tensor | None, in_place: bool) -> Tensor:
        return _masked_softmax(factor(logits, in_place), mask, observed_masks, quantize, in_place)

    def attend(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # Query heads that share a key head become further rows of one product: no copies of keys.
        rows = query.shape[1] // key.shape[1] * query.shape[2]
        grouped = query.reshape(batch, key.shape[1], rows, head_dim)
        logits = torch.matmul(grouped, key.transpose(-1, -2))
        logits = logits.view(*query.shape[:3], key.shape[2])
        weights = _apply(softmax, logits, mask, by_blocks=by_blocks)
        weights = functional.dropout(weights, dropout) if dropout else weights
        output = torch.matmul(weights.view(*grouped.shape[:3], key.shape[2]), value)
        output = quantize(output.view(query.shape), "attn_out", may_overwrite=True)
        return output.transpose(1, 2), weights

    in_parts = by_blocks and not (
        options.keep_weights or dropout or _wants_graph(query, key, value)
    )
    in_parts &= query.device.type == "cpu"
    spans: list[slice] | None = None
    if (
        in_parts
        and options.monotone
        and mask is not None
        and mask.shape[2] >= tiling.MASKED_QUERIES
    ):
        bound = tiling.largest_product(query, key)
        logits = factor(torch.stack([-bound, bound]), False)
        spans = tiling.visible_spans(mask, logits, quantize)
    elements = batch * heads * query_length * key_length
    if not in_parts or (spans is None and elements <= tiling.QUERY_ELEMENTS):
        output, weights = attend(query, key, value, mask)
        output = output.reshape(batch, query_length, heads * head_dim)
        output = quantize(output, "attn_out_h", may_overwrite=True)
        if not options.keep_weights:
            return AttentionResult(output, weights=None)
        return AttentionResult(output, quantize(weights, "attn_weights", may_overwrite=True))
    groups = heads // kv_heads
    part = max(tiling.QUERY_ELEMENTS // (batch * groups * key_length), tiling.LEAST_QUERIES)
    part = part if spans is None else tiling.PART_QUERIES
    output = query.new_empty(batch, query_length, heads, head_dim)
    for number, start in enumerate(range(0, query_length, part)):
        rows = slice(start, start + part)
        keys = slice(None) if spans is None else spans[number]
        row_mask = mask
        if mask is not None:
            row_mask = mask[..., keys] if mask.shape[2] == 1 else mask[:, :, rows, keys]
        for kv_head in range(kv_heads):
            served = slice(kv_head * groups, (kv_head + 1) * groups)
            one_key, one_value = (states[:, kv_head, None, keys] for states in (key, value))
            output[:, rows, served], _ = attend(
                query[:, served, rows], one_key, one_value, row_mask
            )
    output = quantize(output.flatten(2), "attn_out_h", may_overwrite=True)
    return AttentionResult(output, weights=None)


def attend_by_head(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    options: AttentionOptions,
) -> AttentionResult:
    """Attends head by head.

    Args:
        queries: for each head, rotated, [B, query, head_dim].
        keys: for each key/value head, rotated, [B, key, head_dim]; each is used by
            len(queries) / len(keys) heads in turn.
        values: for each key/value head, [B, key, head_dim].
        options: with no factor on the logits if the keys have it already.
    """
    quantize, dropout = options.quantize, options.dropout
    groups = len(queries) // len(keys)
    # [B or 1, query, key]
    mask = None if options.mask is None else options.mask.squeeze(1)
    observed_masks = [observed.squeeze(1) for observed in options.observed_masks]
    scale = None if options.scaling is None else _scale(options.scaling, queries[0], quantize)

    def softmax(logits: Tensor, mask: Tensor | None, in_place: bool) -> Tensor:
        logits = _scaled(logits, scale, quantize, in_place)
        return _masked_softmax(logits, mask, observed_masks, quantize, in_place)

    outputs, kept = [], []
    for head, query in enumerate(queries):
        # Not matmul, whose reshapes in an exported graph mislead an exporter's simplifications.
        logits = torch.bmm(query, keys[head // groups].transpose(-1, -2))
        weights = _apply(softmax, logits, mask, by_blocks=options.by_blocks)
        weights = functional.dropout(weights, dropout) if dropout else weights
        output = torch.bmm(weights, values[head // groups])
        outputs.append(quantize(output, "attn_out", may_overwrite=True))
        if options.keep_weights:
            kept.append(weights)
    output = quantize(torch.cat(outputs, dim=-1), "attn_out_h", may_overwrite=True)
    if not options.keep_weights:
        return AttentionResult(output, weights=None)
    weights = quantize(torch.stack(kept, dim=1), "attn_weights", may_overwrite=True)
    return AttentionResult(output, weights)


def _scale(scaling: float, query: Tensor, quantize: Quantize) -> Tensor:
    # At least float32, so that a factor in a half-precision model is not rounded itself.
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return quantize(torch.full((), scaling, dtype=dtype, device=query.device), "scale")


def _scaled(logits: Tensor, scale: Tensor | None, quantize: Quantize, in_place: bool) -> Tensor:
    if scale is not None:
        logits = quantize(logits, "logits_raw", may_overwrite=True)
        logits = logits.mul_(scale) if in_place else logits * scale
    return quantize(logits, "logits", may_overwrite=True)


def _masked_softmax(
    logits: Tensor,
    mask: Tensor | None,
    observed_masks: Sequence[Tensor],
    quantize: Quantize,
    in_place: bool,
) -> Tensor:
    masked = logits
    if mask is not None:
        masked = logits.add_(mask) if in_place else logits + mask
    if observed_masks:
        quantize(torch.cat([logits + observed for observed in observed_masks]), "mask_add")
    elif mask is not None:
        masked = quantize(masked, "mask_add", may_overwrite=True)
    # In float32 for any dtype, as transformers' eager attention.
    weights = functional.softmax(masked, dim=-1, dtype=torch.float32).to(logits.dtype)
    return quantize(weights, "softmax", may_overwrite=True)


def _apply(
    chain: Callable[[Tensor, Tensor | None, bool], Tensor],
    logits: Tensor,
    mask: Tensor | None,
    *,
    by_blocks: bool,
) -> Tensor:
    # logits: [B, heads, query, key] or [B, query, key]; mask: the same rank, broadcastable.
    if not by_blocks or _wants_graph(logits):
        return chain(logits, mask, False)
    for block, block_mask in tiling.blocks(logits, mask, dim=0):
        # Nobody else holds this product, so the weights may take the place of the logits.
        block.copy_(chain(block, block_mask, True))
    return logits


def _wants_graph(*tensors: Tensor) -> bool:
    # A graph, autograd's or a captured one, wants everything as one piece.
    return torch.compiler.is_compiling() or any(tensor.requires_grad for tensor in tensors)
