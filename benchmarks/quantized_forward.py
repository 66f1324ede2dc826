"""What fake quantisation costs: the quantised forward over the same forward without it.

    python -m benchmarks.quantized_forward

A Llama of 2 layers with head_dim 64, hidden size 64 * heads, feed-forward twice that, vocabulary
512, batch 1, float32, seeded weights; uint8 activations and weights. Compared are the whole model
and the attention of its first layer alone, for both variants of prefill: the float model of
transformers (sdpa), the wrapped model with quantisation off, and quantised. Process CPU time,
medians of interleaved runs. Only the ratios mean anything on another machine.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import wrappers

SIZES = [(8, 4, 128), (32, 8, 256)]  # heads, key/value heads, sequence
VARIANTS = ("prefill", "prefill_reference")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="interleaved runs of each (15)")
    runs = parser.parse_args(argv).runs
    torch.set_grad_enabled(False)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"medians of {runs} interleaved runs, process CPU time in ms; ratio: quantised over off")
    columns = f"{'float':>8}{'off':>8}{'quant':>8}  ratio"
    print(f"{'heads':>6}{'seq':>5}  {'variant':18}{'part':10}{columns}")
    for heads, kv_heads, sequence in SIZES:
        model = float_model(heads, kv_heads)
        for variant in VARIANTS:
            for part, calls in forwards(model, variant, sequence).items():
                off, quantised, plain = medians(calls, runs)
                print(
                    f"{heads:>3}/{kv_heads:<2}{sequence:>5}  {variant:18}{part:10}"
                    f"{plain:8.1f}{off:8.1f}{quantised:8.1f}{quantised / off:7.2f}"
                )


def float_model(heads: int, kv_heads: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64 * heads,
        intermediate_size=128 * heads,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval()


def forwards(
    model: LlamaForCausalLM, variant: str, sequence: int
) -> dict[str, tuple[Callable[[], object], ...]]:
    """For each part of the model: quantisation off, quantised, and transformers' own."""
    tokens = torch.randint(0, 512, (1, sequence))
    config = wrappers.PTQConfig(variant=variant)
    off = wrappers.prepare(model, config)
    quantised = wrappers.prepare(model, config)
    wrappers.calibrate(quantised, [tokens])
    wrappers.convert(quantised)
    models = (off, quantised, model)
    hidden = torch.randn(1, sequence, model.config.hidden_size)
    inputs = {
        "hidden_states": hidden,
        "position_embeddings": model.model.rotary_emb(hidden, torch.arange(sequence)[None]),
    }
    attentions = [each.model.layers[0].self_attn for each in models]
    return {
        "model": tuple(lambda each=each: each(tokens) for each in models),
        "attention": tuple(
            lambda each=each: each(**inputs, attention_mask=None) for each in attentions
        ),
    }


def medians(calls: tuple[Callable[[], object], ...], runs: int) -> list[float]:
    """Milliseconds of process CPU time of each call."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(runs):
        for call, spent in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            spent.append(1000 * (time.process_time() - start))
    return [statistics.median(spent) for spent in times]


if __name__ == "__main__":
    main()
