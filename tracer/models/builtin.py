"""The built-in models with seeded weights: reduced configurations, made in a moment.

Their weights are drawn so that every activation has about unit variance, and so that no norm or
bias is neutral: a mistake anywhere shows in the output.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Tokens:
    """The size of a vocabulary, and those of its ids that have a meaning to a Qwen3-VL."""

    vocabulary: int
    padding: int
    image: int
    video: int
    vision_start: int
    vision_end: int


def build(name: str, seed: int, **options: Any) -> Any:
    """Builds a model of `TINY` with weights of a seed; the global random state is kept.

    Args:
        options: of the model's builder: `tokens` of tiny-qwen3-vl.
    """
    with torch.random.fork_rng(devices=[]):
        model = TINY[name](**options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                # Unit variance in, unit variance out: no activation fades or explodes.
                fan_in = parameter[0].numel()
                parameter.copy_(noise / math.sqrt(fan_in))
            else:
                centre = 1.0 if bool((parameter == 1.0).all()) else 0.0
                parameter.copy_(centre + 0.1 * noise)
    return model


def _random_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


_OWN_TOKENS = Tokens(
    vocabulary=512, padding=0, image=508, video=509, vision_start=510, vision_end=511
)


def _tiny_qwen3_vl(tokens: Tokens = _OWN_TOKENS) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(
        text_config={
            "vocab_size": tokens.vocabulary,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "pad_token_id": tokens.padding,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 500000.0,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 64,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=tokens.image,
        video_token_id=tokens.video,
        vision_start_token_id=tokens.vision_start,
        vision_end_token_id=tokens.vision_end,
    )
    return Qwen3VLForConditionalGeneration(config)


TINY: Mapping[str, Callable[..., Any]] = {
    "random-llama": _random_llama,
    "tiny-qwen3-vl": _tiny_qwen3_vl,
}
