"""Tiny models of transformers' families, whose source is mutated.

Weights are drawn anew, each matrix by its fan-in, and vectors are given small offsets, so that no
part of a model is dead: with transformers' own initialisation attention weights are all alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

Inputs = Mapping[str, torch.Tensor]

_SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_FEED_FORWARD = {**_SIZES, "intermediate_size": 48}
_GROUPED = {**_FEED_FORWARD, "num_key_value_heads": 2}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_PAIRED = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2,
    **_SPECIAL,
}


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: of transformers' folder.
        kind: decoder, encoder, encoder-decoder, vision, audio, MoE, state space, convolutional.
        model, config: names of transformers' classes.
        sizes: arguments of the config.
        inputs: makes what the model is run on.
    """

    name: str
    kind: str
    model: str
    config: str
    sizes: Mapping[str, Any]
    inputs: Callable[[], Inputs]

    def build(self, module: Any = transformers) -> nn.Module:
        """The model with its seeded weights.

        Args:
            module: where the model's class is taken from.
        """
        config = getattr(transformers, self.config)(**self.sizes, attn_implementation="eager")
        torch.manual_seed(0)
        model: nn.Module = getattr(module, self.model)(config).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.dim() > 1:
                    parameter.copy_(noise * parameter[0].numel() ** -0.5)
                else:
                    parameter.add_(0.1 * noise)
        if hasattr(model, "tie_weights"):
            model.tie_weights()
        return model


def _ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 90, (2, 10), generator=torch.Generator().manual_seed(seed))


def _text() -> Inputs:
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[1, 7:] = 0
    return {"input_ids": _ids(), "attention_mask": mask}


def _two_texts() -> Inputs:
    return {**_text(), "decoder_input_ids": _ids(1)}


def _images() -> Inputs:
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))}


def _images_of(size: int) -> Callable[[], Inputs]:
    shape = (2, 3, size, size)
    return lambda: {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(1))}


def _spectra() -> Inputs:
    sound = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(2))
    return {"input_features": sound, "decoder_input_ids": _ids()}


def _waves() -> Inputs:
    return {"input_values": torch.randn(2, 400, generator=torch.Generator().manual_seed(3))}


def _decoder(name: str, prefix: str, kind: str = "decoder", **sizes: Any) -> Family:
    model, config = f"{prefix}ForCausalLM", f"{prefix}Config"
    return Family(name, kind, model, config, {**_GROUPED, **_SPECIAL, **sizes}, _text)


FAMILIES = (
    _decoder("llama", "Llama"),
    _decoder("qwen2", "Qwen2"),
    _decoder("qwen3", "Qwen3", head_dim=8),
    _decoder("olmo2", "Olmo2"),
    _decoder("gemma2", "Gemma2", head_dim=8, sliding_window=4, query_pre_attn_scalar=8),
    _decoder("phi3", "Phi3"),
    _decoder("cohere", "Cohere"),
    _decoder("mixtral", "Mixtral", "MoE", num_local_experts=4),
    _decoder("qwen2_moe", "Qwen2Moe", "MoE", num_experts=4, moe_intermediate_size=16),
    Family(
        "gpt2",
        "decoder",
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, **_SPECIAL},
        _text,
    ),
    Family(
        "gpt_neox",
        "decoder",
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {**_FEED_FORWARD, **_SPECIAL},
        _text,
    ),
    Family(
        "opt",
        "decoder",
        "OPTForCausalLM",
        "OPTConfig",
        {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, **_SPECIAL},
        _text,
    ),
    Family("bert", "encoder", "BertModel", "BertConfig", _FEED_FORWARD, _text),
    Family("roberta", "encoder", "RobertaModel", "RobertaConfig", _FEED_FORWARD, _text),
    Family(
        "distilbert",
        "encoder",
        "DistilBertModel",
        "DistilBertConfig",
        {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
        _text,
    ),
    Family(
        "t5",
        "encoder-decoder",
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": 99,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        _two_texts,
    ),
    Family(
        "bart",
        "encoder-decoder",
        "BartForConditionalGeneration",
        "BartConfig",
        _PAIRED,
        _two_texts,
    ),
    Family(
        "whisper",
        "audio",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**_PAIRED, "num_mel_bins": 8, "max_source_positions": 20},
        _spectra,
    ),
    Family(
        "wav2vec2",
        "audio",
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        {
            **_FEED_FORWARD,
            "conv_dim": (8, 8),
            "conv_stride": (4, 2),
            "conv_kernel": (8, 4),
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
        _waves,
    ),
    Family(
        "vit",
        "vision",
        "ViTForImageClassification",
        "ViTConfig",
        {**_FEED_FORWARD, "image_size": 16, "patch_size": 4},
        _images,
    ),
    Family(
        "convnext",
        "convolutional",
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
        _images_of(32),
    ),
    Family(
        "resnet",
        "convolutional",
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        _images_of(32),
    ),
    Family(
        "mamba",
        "state space",
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        lambda: {"input_ids": _ids()},
    ),
)
