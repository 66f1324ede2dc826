"""Makes one kind of attention mask out of all the kinds that callers pass.

    masks = MaskBuilder(fill_value)
    masks.additive(padding, batch_size=3, query_length=8, past_length=4, dtype=torch.float32)

gives a float tensor [B or 1, 1, query, key] with values in [fill value, 0], to be added to the
attention logits: 0 where a query may look at a key, the fill value where it may not.

What a mask means is decided by its rank and dtype alone:

| given | meaning |
|---|---|
| None | causal |
| 2-D bool, integer or float, [B, key] | padding, nonzero is visible; causal as well |
| the same, [B, query] after a past | the cached keys are visible, then as above |
| the same, [B, past + query] before a longer static cache | the slots not yet written are hidden |
| 4-D bool or integer, [B or 1, 1, query, key] | nonzero is visible; nothing else is added |
| 4-D float, [B or 1, 1, query, key] | additive, clamped into [fill value, 0] |

The visible set of the first four is that of transformers (`create_causal_mask`), which likewise
takes a 4-D mask as final. Two readings are stricter or safer than its own: a 4-D integer mask is
never added to logits as numbers, and a shape that could only be broadcast is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from wrappers.attention.cache import KeyValueCache, cache_extent
from wrappers.core.point import Mode
from wrappers.errors import ModelInputError


class MaskBuilder:
    """Builds additive masks, and keeps the causal part of the largest one as a template.

    The template belongs to this object (one per model), starts empty, grows to the lengths that
    are asked for, and is left out of copies and pickles.

    Args:
        fill_value: the finite negative number that stands for minus infinity; where the type of
            the logits or of the softmax cannot hold it, their least finite number does.
    """

    def __init__(self, fill_value: float) -> None:
        self.fill_value = fill_value
        self._template: Tensor | None = None

    def additive(
        self,
        mask: Tensor | None,
        *,
        batch_size: int,
        query_length: int,
        past_length: int | Tensor = 0,
        key_length: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        causal: bool = True,
    ) -> Tensor:
        """Returns the additive mask [B or 1, 1, query_length, key_length] within [fill value, 0].

        Args:
            mask: any of the kinds in this module's table.
            batch_size: B; a mask for a batch of one serves every batch.
            query_length: the number of new positions.
            past_length: the number of positions cached before them; a 0-d integer tensor where a
                static cache counts on the device.
            key_length: the number of keys attended over; past_length + query_length unless a
                static cache has more slots than are in use.
            dtype: the floating type of the logits.
            device: where the logits live.
            causal: whether a query is kept from later keys; a 4-D mask decides that by itself.

        Raises:
            ModelInputError: a rank, shape or dtype that is none of the table's.
        """
        if key_length is None:
            key_length = int(past_length) + query_length
        elif isinstance(past_length, int) and past_length + query_length > key_length:
            raise ModelInputError(
                f"{query_length} new positions after {past_length} cached ones do not fit into "
                f"{key_length} keys; give the cache more slots."
            )
        if mask is None:
            return self._causal(query_length, key_length, past_length, dtype, device, causal)
        if not isinstance(mask, Tensor):
            raise ModelInputError(
                f"An attention mask is a {type(mask).__name__}; expected None or a tensor."
            )
        if mask.is_complex():
            raise ModelInputError(
                f"An attention mask of dtype {mask.dtype} has no meaning; "
                "give a bool, an integer or a float mask."
            )
        mask = mask.to(device)
        if mask.ndim == 2:
            visible = _padding_of_all_keys(
                mask.bool(), batch_size, query_length, int(past_length), key_length
            )
            base = self._causal(query_length, key_length, past_length, dtype, device, causal)
            return torch.where(visible[:, None, None, :], base, self._fill(dtype))
        _check_four_dimensions(mask, batch_size, query_length, key_length)
        if mask.is_floating_point():
            # Converted first: a type of less range than `dtype` may not hold the fill value.
            return mask.to(dtype).clamp(self._fill(dtype), 0.0)
        zero = torch.zeros((), dtype=dtype, device=mask.device)
        return torch.where(mask.bool(), zero, self._fill(dtype))

    def hidden_rows(self, mask: Tensor) -> Tensor:
        """Returns which queries may look at no key at all, as bool [B or 1, 1, query, 1].

        Such rows belong to padding on the left. Adding the fill value to a whole row changes
        nothing in a softmax, so what the float model does there has to be done by the attention.

        Args:
            mask: an additive mask made by `additive`, quantised or not.
        """
        # The fill value is the end of a quantised mask's range, so it moves by little. Whatever
        # lies further above it may be meant: only differences within a row count in a softmax.
        return (mask <= self._fill(mask.dtype) * 15 / 16).all(dim=-1, keepdim=True)

    def exact(self, mask: Tensor) -> Tensor:
        """Returns an additive mask that hides for good: the least finite value for the fill value.

        Logits that lie further apart than the fill value would show hidden keys (real models have
        such). A quantised model lives with that, since its range must stay small; without
        quantisation nothing is gained by it.

        Args:
            mask: an additive mask made by `additive`, not quantised.
        """
        fill = torch.full((), self._fill(mask.dtype), dtype=mask.dtype, device=mask.device)
        return mask.masked_fill(mask <= fill, _least(mask.dtype))

    def to_observe(self, mask: Tensor) -> list[Tensor]:
        """Returns the masks that an observer is to see for one: itself, and where it hides nothing
        one of its shape that hides everything.

        A range without the fill value would turn every later mask into one that hides nothing.

        Args:
            mask: an additive mask made by `additive`, not quantised.
        """
        fill = self._fill(mask.dtype)
        hides = bool((mask <= fill).any())
        return [mask] if hides else [mask, torch.full_like(mask, fill)]

    def __getstate__(self) -> dict[str, object]:
        return {"fill_value": self.fill_value, "_template": None}

    def _fill(self, dtype: torch.dtype) -> float:
        # A type that cannot hold it would make it minus infinity, or refuse it.
        return max(self.fill_value, _least(dtype))

    def _causal(
        self,
        query_length: int,
        key_length: int,
        past_length: int | Tensor,
        dtype: torch.dtype,
        device: torch.device | str,
        causal: bool,
    ) -> Tensor:
        if not causal:
            return torch.zeros(1, 1, query_length, key_length, dtype=dtype, device=device)
        # A mask after a past has few rows; and a graph being captured must own its tensors.
        if not _is_zero(past_length) or torch.compiler.is_compiling():
            return _causal_mask(
                query_length, key_length, past_length, self._fill(dtype), dtype, device
            )
        return self._prefill_template(query_length, key_length, dtype, torch.device(device))[
            :, :, :query_length, :key_length
        ]

    def _prefill_template(
        self, query_length: int, key_length: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        template = self._template
        if template is None or template.dtype != dtype or template.device != device:
            rows, columns = 0, 0
        else:
            rows, columns = template.shape[2:]
            if query_length <= rows and key_length <= columns:
                return template
        # Powers of two, so that sequences of growing length do not each build their own; an
        # ordinary tensor even under inference_mode, since a later forward may record gradients.
        with torch.inference_mode(mode=False):
            template = _causal_mask(
                max(rows, _next_power_of_two(query_length)),
                max(columns, _next_power_of_two(key_length)),
                0,
                self._fill(dtype),
                dtype,
                device,
            )
        self._template = template
        return template


def packed_sequences(position_ids: Tensor) -> Tensor:
    """Returns the mask of several sequences packed into one row, as bool [B, 1, query, query].

    A new sequence begins wherever the positions do not go up by one, as transformers takes it
    (`find_packed_sequence_indices`); queries see earlier positions of their own sequence only.

    Args:
        position_ids: [B, query].
    """
    starts = torch.zeros_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids.diff(dim=-1) != 1
    sequence = starts.cumsum(dim=-1)
    same = sequence[:, None, :, None] == sequence[:, None, None, :]
    positions = torch.arange(position_ids.shape[1], device=position_ids.device)
    return same & (positions[None, :] <= positions[:, None])


def _padding_of_all_keys(
    visible: Tensor, batch_size: int, query_length: int, past_length: int, key_length: int
) -> Tensor:
    # visible: [B or 1, length] -> [B or 1, key_length]
    rows, length = visible.shape
    in_use = past_length + query_length
    if rows not in (1, batch_size) or length not in (query_length, in_use, key_length):
        lengths = " or ".join(str(n) for n in sorted({query_length, in_use, key_length}))
        raise ModelInputError(
            f"A padding mask of shape {list(visible.shape)} does not fit a batch of {batch_size} "
            f"with {query_length} new positions after {past_length} cached ones and {key_length} "
            f"keys: expected [{batch_size}, {lengths}]. Give one value per key, cached keys first."
        )
    if length == key_length:
        return visible
    if length == query_length:
        visible = torch.nn.functional.pad(visible, (past_length, 0), value=True)
    return torch.nn.functional.pad(visible, (0, key_length - in_use), value=False)


def _check_four_dimensions(
    mask: Tensor, batch_size: int, query_length: int, key_length: int
) -> None:
    shape = tuple(mask.shape)
    if (
        mask.ndim == 4
        and shape[0] in (1, batch_size)
        and shape[1:] == (1, query_length, key_length)
    ):
        return
    raise ModelInputError(
        f"An attention mask of shape {list(shape)} fits neither form: expected 2-D padding "
        f"[{batch_size}, {key_length}], or 4-D [{batch_size} or 1, 1, {query_length}, "
        f"{key_length}] with one row per new position and one column per key, the same for all "
        "heads. Expand or slice the mask to one of these."
    )


def _causal_mask(
    query_length: int,
    key_length: int,
    past_length: int | Tensor,
    fill_value: float,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    queries = torch.arange(query_length, device=device)[:, None] + past_length
    keys = torch.arange(key_length, device=device)[None, :]
    zero = torch.zeros((), dtype=dtype, device=device)
    return torch.where(keys <= queries, zero, fill_value)[None, None]


def _least(dtype: torch.dtype) -> float:
    # The softmax is in float32, where the least float64 would be minus infinity, and a row of these
    # has no softmax.
    return max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)


def _is_zero(past_length: int | Tensor) -> bool:
    return isinstance(past_length, int) and past_length == 0


def _next_power_of_two(length: int) -> int:
    return 1 << max(length - 1, 0).bit_length()


def additive_mask(
    masks: MaskBuilder,
    attention_mask: Tensor | None,
    hidden_states: Tensor,
    cache: KeyValueCache | None,
    layer_idx: int = 0,
    *,
    causal: bool = True,
) -> Tensor:
    """Returns the additive mask [B or 1, 1, query, key] for attention from `hidden_states`.

    Args:
        masks: builds it.
        attention_mask: any kind that `MaskBuilder` takes.
        hidden_states: [B, query, hidden].
        cache: holds the keys of earlier positions.
        layer_idx: the cache's layer that is asked.
        causal: whether a query is kept from later keys.

    Raises:
        ModelInputError: a mask or cache of no known kind.
    """
    batch_size, query_length = hidden_states.shape[:2]
    extent = cache_extent(cache, query_length, layer_idx)
    return masks.additive(
        attention_mask,
        batch_size=batch_size,
        query_length=query_length,
        past_length=extent.past_length,
        key_length=extent.key_length,
        dtype=hidden_states.dtype,
        device=hidden_states.device,
        causal=causal,
    )


def model_mask(
    masks: MaskBuilder,
    config: PreTrainedConfig,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    hidden_states: Tensor,
    cache: KeyValueCache | None,
) -> Tensor:
    """Returns the additive mask [B or 1, 1, query, key] that a model passes to all its layers.

    Args:
        masks: builds it.
        config: the model's; attention is causal unless its `is_causal` says otherwise.
        attention_mask: any kind that `MaskBuilder` takes.
        position_ids: positions in the text that a caller gave, [B or 1, query]. Without a mask
            and a cache, positions that start again begin another sequence.
        hidden_states: [B, query, hidden].
        cache: holds the keys of earlier positions.

    Raises:
        ModelInputError: a mask or cache of no known kind.
    """
    causal = getattr(config, "is_causal", True)
    if causal and attention_mask is None and cache is None and position_ids is not None:
        attention_mask = packed_sequences(position_ids)
    return additive_mask(masks, attention_mask, hidden_states, cache, causal=causal)


def quantized_mask(module: Any, point: str, mask: Tensor) -> Tensor:
    """Passes an additive mask through a point of a module, and returns it.

    Args:
        module: the wrapper, which has `masks`.
        point: whose range reaches the fill value, whatever was hidden while it was calibrated.
        mask: [B or 1, 1, query, key].
    """
    if module.mode is Mode.CALIBRATE:
        module.quantize(torch.cat(module.masks.to_observe(mask)), point)
        return mask
    quantized: Tensor = module.quantize(mask, point)
    return quantized
