"""What the variants of the wrappers cost: `prefill` beside `prefill_reference`, and decode.

    python -m benchmarks.variants [--device cuda] [--runs N] [--heads H/K ...] [--lengths N ...]

Prefill: the attention of a Llama (head_dim 64, batch 1, float32, seeded weights), where alone the
variants differ: the float model of transformers (sdpa), then each variant with quantisation off and
quantised (uint8). The fastest of interleaved runs, wall time; the ratio is `prefill` over
`prefill_reference`, so above 1 where the latter is faster.

Decode: tokens a second of `wrappers.Runtime` over a static cache, batch 1, for a Llama of 4 layers:
float, wrapped and quantised. Only ratios mean anything on another machine.
"""

import argparse
import platform
import time
from collections.abc import Callable, Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import wrappers

HEADS = ["4/2", "8/4", "16/8", "32/8"]
LENGTHS = [64, 128, 256, 512, 1024]
VARIANTS = ("prefill", "prefill_reference")
NEW_TOKENS = 32


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=15, help="interleaved runs of each (15)")
    parser.add_argument("--heads", nargs="+", default=HEADS, metavar="HEADS/KV_HEADS")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, metavar="N")
    options = parser.parse_args(argv)
    torch.set_grad_enabled(False)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"attention, wall time in ms, the fastest of {options.runs} interleaved runs")
    print(f"{'':>11}{'':>8}{'quantisation off':>27}{'quantised':>27}")
    columns = f"{'prefill':>9}{'reference':>11}{'ratio':>7}"
    print(f"{'heads':>6}{'seq':>5}{'float':>8}{columns}{columns}")
    ratios = {
        f"{heads} at {length}": prefill(*map(int, heads.split("/")), length, device, options.runs)
        for heads in options.heads
        for length in options.lengths
    }
    for state, index in (("quantisation off", 0), ("quantised", 1)):
        slower = {at: pair[index] for at, pair in ratios.items() if pair[index] < 1.0}
        best = max(ratios, key=lambda at: ratios[at][index])
        where = ", ".join(f"{at} ({ratio:.2f})" for at, ratio in slower.items()) or "nowhere"
        print(
            f"{state}: prefill_reference is up to {ratios[best][index]:.2f} times as fast as "
            f"prefill ({best}), and slower: {where}"
        )
    decode(device)


def prefill(
    heads: int, kv_heads: int, length: int, device: torch.device, runs: int
) -> tuple[float, float]:
    """Prints a row and returns its ratios, with quantisation off and quantised."""
    model = float_model(heads, kv_heads, layers=1, device=device)
    hidden = torch.randn(1, length, model.config.hidden_size, device=device)
    tables = model.model.rotary_emb(hidden, torch.arange(length, device=device)[None])
    tokens = torch.randint(0, 512, (1, length), device=device)
    models = [model]
    for quantised in (False, True):
        for variant in VARIANTS:
            wrapped = wrappers.prepare(model, wrappers.PTQConfig(variant=variant))
            if quantised:
                wrappers.calibrate(wrapped, [tokens])
                wrappers.convert(wrapped)
            models.append(wrapped)
    attentions = [each.model.layers[0].self_attn for each in models]
    times = fastest(
        [lambda each=each: each(hidden, tables, attention_mask=None) for each in attentions],
        runs,
        device,
    )
    ratios = times[1] / times[2], times[3] / times[4]
    cells = [f"{1000 * times[0]:8.2f}"]
    for spent, ratio in zip((times[1:3], times[3:5]), ratios, strict=True):
        cells.append(f"{1000 * spent[0]:9.2f}{1000 * spent[1]:11.2f}{ratio:7.2f}")
    print(f"{heads:>3}/{kv_heads:<2}{length:>5}" + "".join(cells), flush=True)
    return ratios


def decode(device: torch.device) -> None:
    """Prints tokens a second."""
    print(f"decode of {NEW_TOKENS} tokens after a prompt of 64, tokens a second")
    model = float_model(8, 4, layers=4, device=device)
    prompt = torch.randint(0, 512, (1, 64), device=device)
    pairs = {"float": (model, model)}
    for kind in ("wrapped", "quantised"):
        first, second = (
            wrappers.prepare(model, wrappers.PTQConfig(variant=variant))
            for variant in ("prefill", "decode")
        )
        if kind == "quantised":
            wrappers.calibrate_both(first, second, [prompt], steps=16, source="float")
            wrappers.convert(first)
            wrappers.convert(second)
        pairs[kind] = first, second
    for capacity in (128, 1024):
        calls = [
            lambda pair=pair: wrappers.Runtime(*pair, capacity=capacity).generate(  # noqa: B023
                prompt, max_new_tokens=NEW_TOKENS
            )
            for pair in pairs.values()
        ]
        spent = fastest(calls, 3, device)
        rates = ", ".join(
            f"{kind} {NEW_TOKENS / seconds:.0f}" for kind, seconds in zip(pairs, spent, strict=True)
        )
        print(f"capacity {capacity}: {rates}")


def float_model(
    heads: int, kv_heads: int, *, layers: int, device: torch.device
) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64 * heads,
        intermediate_size=128 * heads,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
    )
    return LlamaForCausalLM(config).eval().to(device)


def fastest(calls: Sequence[Callable[[], object]], runs: int, device: torch.device) -> list[float]:
    """Seconds of wall time of each call."""
    times: list[list[float]] = [[] for _ in calls]
    for run in range(runs + 1):
        for call, spent in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if run:  # the first warms up
                spent.append(time.perf_counter() - start)
    return [min(spent) for spent in times]


if __name__ == "__main__":
    main()
