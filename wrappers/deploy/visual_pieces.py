"""The pieces of a Qwen3-VL's images, for grids that are fixed.

| piece | takes | gives |
|---|---|---|
| patches | pixel_values | vision.0 |
| block i | vision.i | vision.i+1 |
| merger | vision.n | features |
| deepstack merger j | the output of its block | deepstack.j |
| fusion | embeddings, features, rows, visual | hidden.0 |
| deepstack sum j | layer.j, deepstack.j, rows, visual | hidden.j+1 |

`visual` [B, query] says which positions are images, and `rows` [B, query] which row of the features
stands there, 0 elsewhere (`places` makes both of token ids).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wrappers.deploy.pieces import Piece, text_model
from wrappers.errors import ExportError
from wrappers.families.qwen3_vl.grids import GRID_THW, interpolated, rotation_tables


def has_images(model: nn.Module) -> bool:
    """Whether a model has a vision model as well."""
    return hasattr(getattr(model, "model", None), "visual")


def vision_pieces(model: nn.Module) -> list[Piece]:
    """The vision model of a wrapped Qwen3-VL, in order.

    Raises:
        ExportError: its grids are not fixed.
    """
    visual: Any = model.model.visual  # type: ignore[union-attr]
    layout = visual.fixed_layout
    if layout is None:
        raise ExportError(
            "the graphs of a vision model are for fixed grids, and this one takes any: prepare it "
            f"with PTQConfig(model_args={{{GRID_THW!r}: [[1, 18, 28]]}}), in a recipe grid-thw in "
            "[quantization]"
        )
    config, weight = visual.config, visual.patch_embed.proj.weight
    count = len(layout.position_ids)
    pixels = weight.new_zeros(count, weight[0].numel())
    hidden = weight.new_zeros(count, config.hidden_size)

    def piece(short: str, module: str, graph: nn.Module, takes: str, gives: str) -> Piece:
        example = pixels if takes == "pixel_values" else hidden
        place = f"model.visual.{module}"
        return Piece(f"vision.{short}", "vision", place, graph, (example,), (takes,), (gives,))

    found = [piece("patches", "patch_embed", _Patches(visual), "pixel_values", "vision.0")]
    for i, block in enumerate(visual.blocks):
        after = f"vision.{i + 1}"
        graph = _Block(visual, block)
        found.append(piece(f"block.{i}", f"blocks.{i}", graph, f"vision.{i}", after))
        if i in visual.deepstack_visual_indexes:
            j = visual.deepstack_visual_indexes.index(i)
            merger = visual.deepstack_merger_list[j]
            module = f"deepstack_merger_list.{j}"
            found.append(piece(f"deepstack.{j}", module, merger, after, f"deepstack.{j}"))
    last = f"vision.{len(visual.blocks)}"
    return [*found, piece("merger", "merger", visual.merger, last, "features")]


def fusion_pieces(model: nn.Module, tokens: int) -> tuple[Piece, dict[int, Piece]]:
    """What puts features of images among embeddings, and what adds others after layers.

    Args:
        model: a wrapped Qwen3-VL with fixed grids.
        tokens: of the prefill.

    Returns:
        The fusion, and by layer what comes after it.
    """
    whole: Any = model.model
    text = text_model(model).module
    visual = whole.visual
    count = len(visual.fixed_layout.position_ids) // visual.spatial_merge_size**2
    hidden = next(text.parameters()).new_zeros(1, tokens, text.config.hidden_size)
    features = hidden.new_zeros(count, text.config.hidden_size)
    rows = torch.zeros(1, tokens, dtype=torch.int64, device=hidden.device)
    where = (rows, torch.zeros_like(rows, dtype=torch.bool))
    fusion = Piece(
        *("prefill.fusion", "prefill", "model", _Fusion(whole, text), (hidden, features, *where)),
        *(("embeddings", "features", "rows", "visual"), ("hidden.0",)),
    )
    added = {
        index: Piece(
            *(f"prefill.deepstack.{index}", "prefill", "model.language_model"),
            *(_Deepstack(text, index), (hidden, features, *where)),
            *((f"layer.{index}", f"deepstack.{index}", "rows", "visual"), (f"hidden.{index + 1}",)),
        )
        for index in range(text.deepstack_layers)
    }
    return fusion, added


def places(input_ids: Tensor, image_token_id: int) -> tuple[Tensor, Tensor]:
    """`rows` and `visual` of token ids [B, query]."""
    visual = input_ids == image_token_id
    rows = visual.flatten().cumsum(0).view(visual.shape) - 1
    return rows.where(visual, 0), visual


class _Patches(nn.Module):
    """Pixels to embedded patches with their places."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.patch_embed, self.pos_embed = visual.patch_embed, visual.pos_embed
        self._visual = (visual,)  # no child: see `wrappers.deploy.pieces`

    def forward(self, pixel_values: Tensor) -> Tensor:
        visual = self._visual[0]
        hidden = self.patch_embed(pixel_values)
        embedded = interpolated(self.pos_embed, visual.fixed_layout.to(hidden.device))
        embedded = visual.quantize(embedded.to(hidden.dtype), "pos_embed")
        total: Tensor = visual.quantize(hidden + embedded, "pos_add")
        return total


class _Block(nn.Module):
    """A block of the vision model with its rope tables as constants."""

    def __init__(self, visual: Any, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self._visual = (visual,)
        hidden = next(block.parameters()).new_zeros(1)
        tables = rotation_tables(visual.rotary_pos_emb, hidden, visual.fixed_layout)
        for name, table in zip(("cos", "sin"), tables, strict=True):
            self.register_buffer(name, table.detach(), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        visual = self._visual[0]
        tables = visual.quantize(self.cos, "rope_cos"), visual.quantize(self.sin, "rope_sin")
        output: Tensor = self.block(hidden, position_embeddings=tables)
        return output


class _Fusion(nn.Module):
    """Features of images at their positions among the embeddings."""

    def __init__(self, whole: Any, text: Any) -> None:
        super().__init__()
        self._models = whole, text

    def forward(self, embeddings: Tensor, features: Tensor, rows: Tensor, visual: Tensor) -> Tensor:
        whole, text = self._models
        placed = features.to(embeddings.dtype)[rows]
        fused = torch.where(visual.unsqueeze(-1), placed, embeddings)
        quantized: Tensor = text.quantize(whole.quantize(fused, "mm_fusion"), "inputs_embeds")
        return quantized


class _Deepstack(nn.Module):
    """Features of an inner block, added to hidden states at the positions of images."""

    def __init__(self, text: Any, index: int) -> None:
        super().__init__()
        self._text, self._index = (text,), index

    def forward(self, hidden: Tensor, features: Tensor, rows: Tensor, visual: Tensor) -> Tensor:
        total: Tensor = self._text[0]._add_features(hidden, visual, features[rows], self._index)
        return total
