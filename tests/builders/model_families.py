"""Tiny models of many families other than Llama, with inputs and a module to plant a mistake in."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

IDS = torch.randint(5, 90, (2, 10), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(2, 10, dtype=torch.long)
MASK[1, 7:] = 0
TEXT = {"input_ids": IDS, "attention_mask": MASK}
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
SOUND = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(2))
ROWS = torch.randn(2, 10, 32, generator=torch.Generator().manual_seed(3))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, 16, 2, batch_first=True)
        self.gru = nn.GRU(16, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        states, last = self.lstm(x)
        return {"output": self.head(self.gru(states)[0]), "last": list(last)}


class Residual(nn.Module):
    """Batch norms, and a ReLU that is called twice and works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm_first, self.norm_second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu(self.norm_first(self.first(x)))
        x = self.relu(self.norm_second(self.second(x)) + x)
        return self.head(x.mean((2, 3)))


class Spectral(nn.Module):
    """Complex values on the way and in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.phase = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        spectrum = torch.fft.fft(self.gain(x)) * torch.exp(1j * self.phase(x))
        return torch.fft.ifft(spectrum).real, spectrum


SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FEED_FORWARD = {**SIZES, "intermediate_size": 48}
GROUPED = {**FEED_FORWARD, "num_key_value_heads": 2}
VISION = {"image_size": 16, "patch_size": 4}
SEQUENCE_TO_SEQUENCE = {
    "vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2,
}  # fmt: skip


def hub(model: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**sizes))


# The model, its inputs, and the module that is given a wrong weight.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], dict[str, torch.Tensor], str]] = {
    "bert": (hub("BertModel", "BertConfig", **FEED_FORWARD), TEXT, "encoder.layer.1.output.dense"),
    "gpt2": (
        hub(
            "GPT2LMHeadModel",
            "GPT2Config",
            vocab_size=99,
            n_embd=32,
            n_layer=2,
            n_head=4,
            bos_token_id=1,
            eos_token_id=2,
        ),
        TEXT,
        "transformer.h.1.attn.c_attn",
    ),
    "t5": (
        hub(
            "T5ForConditionalGeneration",
            "T5Config",
            vocab_size=99,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
        ),
        {**TEXT, "decoder_input_ids": IDS},
        "decoder.block.1.layer.1.EncDecAttention.k",
    ),
    "bart": (
        hub("BartForConditionalGeneration", "BartConfig", **SEQUENCE_TO_SEQUENCE),
        {**TEXT, "decoder_input_ids": IDS},
        "model.decoder.layers.1.encoder_attn.v_proj",
    ),
    "whisper": (
        hub(
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            **SEQUENCE_TO_SEQUENCE,
            num_mel_bins=8,
            max_source_positions=20,
        ),
        {"input_features": SOUND, "decoder_input_ids": IDS},
        "model.encoder.conv2",
    ),
    "vit": (
        hub("ViTForImageClassification", "ViTConfig", **{**FEED_FORWARD, **VISION}),
        {"pixel_values": IMAGES},
        "classifier",
    ),
    "mixtral": (
        hub("MixtralForCausalLM", "MixtralConfig", **GROUPED, num_local_experts=4),
        TEXT,
        "model.layers.1.mlp.experts",
    ),
    "gemma3": (
        hub("Gemma3ForCausalLM", "Gemma3TextConfig", **GROUPED, head_dim=8, sliding_window=4),
        TEXT,
        "model.layers.1.self_attn.q_norm",
    ),
    "mamba": (
        hub(
            "MambaForCausalLM",
            "MambaConfig",
            vocab_size=99,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=4,
        ),
        {"input_ids": IDS},
        "backbone.layers.1.mixer.out_proj",
    ),
    "recurrent": (Recurrent, {"x": ROWS}, "gru"),
    "activation called twice": (Residual, {"x": IMAGES}, "norm_second"),
    "complex output": (Spectral, {"x": ROWS}, "phase"),
}
