"""Small whole models of Qwen3-VL, and images, videos and text for them."""

import torch
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

import wrappers
from tests.builders.agreement import redrawn
from tests.builders.qwen3_vl import SIZES

IMAGE, VIDEO, START, END = 92, 93, 94, 95  # tokens; others are text, 0 pads


PIXELS = 3 * 2 * 4 * 4  # of a patch


def tiny(implementation="eager", *, dtype=torch.float32, text=None, **changes):
    vision_sizes = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 40, "num_heads": 4,
        "out_hidden_size": 32, "patch_size": 4, "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 2],
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config={**SIZES, "pad_token_id": 0, **(text or {})},
        vision_config=vision_sizes,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        **changes,
    )
    model = redrawn(Qwen3VLForConditionalGeneration(config))
    model.set_attn_implementation(implementation)
    return model.to(dtype).eval()


def published(seed=42):
    """The reduced Qwen3-VL of which errors are published, and an input like the one it was given:
    a black image in 280 patches and a question, 84 tokens."""
    vocabulary = 1000
    image, video, start = vocabulary - 2, vocabulary - 1, vocabulary - 3
    config = Qwen3VLConfig(
        text_config={
            "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
            "max_position_embeddings": 1024, "vocab_size": vocabulary,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 500000.0, "mrope_section": [1, 1, 2],
            },
        },
        vision_config={
            "depth": 2, "hidden_size": 64, "num_heads": 4, "out_hidden_size": 64,
            "patch_size": 16, "temporal_patch_size": 2, "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=image, video_token_id=video, vision_start_token_id=start,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    model.set_attn_implementation("eager")
    # The tokens of the chat template and of "Describe the image.", modulo the vocabulary.
    ids = [644, 872, 198, start, *[image] * 70, 653, 785, 279, 168, 13, 645, 198, 644, 91, 198]
    input_ids = torch.tensor([ids])
    return model.eval(), {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": torch.full((280, 1536), -1.0),
        "image_grid_thw": torch.tensor([[1, 20, 14]]),
        "mm_token_type_ids": (input_ids == image).int(),
    }


def batch_of(*rows, side="left", seed=1):
    """Inputs for sequences made of numbers of text tokens and ("image" or "video", its grid)."""
    generator = torch.Generator().manual_seed(seed)
    grids = {"image": [], "video": []}
    sequences = []
    for row in rows:
        ids = []
        for part in row:
            if isinstance(part, int):
                ids += torch.randint(1, IMAGE, (part,), generator=generator).tolist()
                continue
            kind, (frames, height, width) = part
            grids[kind].append([frames, height, width])
            token = IMAGE if kind == "image" else VIDEO
            # A video is as many pictures, one after the other.
            ids += [START, *[token] * (height * width // 4), END] * frames
        sequences.append(ids)
    longest = max(map(len, sequences))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        start = longest - len(sequence) if side == "left" else 0
        ids[i, start : start + len(sequence)] = torch.tensor(sequence)
        mask[i, start : start + len(sequence)] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    for kind, names in {
        "image": ("pixel_values", "image_grid_thw"),
        "video": ("pixel_values_videos", "video_grid_thw"),
    }.items():
        if grids[kind]:
            grid = torch.tensor(grids[kind])
            patches = int(grid.prod(dim=-1).sum())
            pixels = torch.rand(patches, PIXELS, generator=generator) * 2 - 1
            inputs |= dict(zip(names, (pixels, grid), strict=True))
    if grids["image"] or grids["video"]:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return inputs


PIXEL_NAMES = {
    1: ("pixel_values", "image_grid_thw"), 2: ("pixel_values_videos", "video_grid_thw"),
}  # fmt: skip


def joined(*turns):
    """One batch of what several turns of the same sequences hold, padded on the left.

    Args:
        turns: each as `batch_of` gives it, or token ids [B, sequence] without padding.
    """
    rows, kinds, found = [], [], {1: [], 2: []}
    turns = [turn if isinstance(turn, dict) else {"input_ids": turn} for turn in turns]
    grids = [{k: iter(t.get(PIXEL_NAMES[k][1], ())) for k in found} for t in turns]
    pixels = [{k: t.get(PIXEL_NAMES[k][0]) for k in found} for t in turns]
    for row in range(len(turns[0]["input_ids"])):
        parts = []
        for place, turn in enumerate(turns):
            ids = turn["input_ids"][row]
            visible = turn.get("attention_mask", torch.ones_like(turn["input_ids"]))[row].bool()
            kind = turn.get("mm_token_type_ids", torch.zeros_like(turn["input_ids"]))[row]
            parts.append((ids[visible], kind[visible]))
            for k, made in found.items():
                left = 4 * int((parts[-1][1] == k).sum())
                while left:  # patches
                    grid = next(grids[place][k])
                    cut = pixels[place][k].split(
                        [int(grid.prod()), len(pixels[place][k]) - int(grid.prod())]
                    )
                    pixels[place][k] = cut[1]
                    made.append((cut[0], grid))
                    left -= int(grid.prod())
        rows.append(torch.cat([ids for ids, _ in parts]))
        kinds.append(torch.cat([kind for _, kind in parts]))
    longest = max(map(len, rows))
    padded = [
        torch.stack([nn.functional.pad(each, (longest - len(each), 0)) for each in values])
        for values in (rows, kinds, [torch.ones_like(row) for row in rows])
    ]
    inputs = dict(zip(("input_ids", "mm_token_type_ids", "attention_mask"), padded, strict=True))
    for k, made in found.items():
        if made:
            together = torch.cat([p for p, _ in made]), torch.stack([grid for _, grid in made])
            inputs |= dict(zip(PIXEL_NAMES[k], together, strict=True))
    return inputs


EXAMPLES = {
    "one image": lambda **how: batch_of([4, ("image", (1, 4, 6)), 3], **how),
    "images of two sizes": lambda **how: batch_of([
        ("image", (1, 4, 6)), 2, ("image", (1, 2, 2)), 2,
    ], **how),
    "batch": lambda **how: batch_of(
        [3, ("image", (1, 4, 6)), 4], [2, ("image", (1, 2, 2)), ("image", (1, 6, 2)), 2], [9],
        **how,
    ),
    "video": lambda **how: batch_of([3, ("video", (2, 4, 4)), 4], **how),
    "both": lambda **how: batch_of([
        3, ("image", (1, 4, 4)), 2, ("video", (2, 2, 4)), 3,
    ], [2, ("video", (1, 4, 2)), 5, ("image", (1, 2, 2))], **how),
    "text": lambda **how: batch_of([9], [6], **how),
}  # fmt: skip


def wrap(model, variant, **config):
    return wrappers.prepare(model, wrappers.PTQConfig(variant=variant, **config))
