"""What a traced comparison costs beyond the two forwards it consists of.

    python -m benchmarks.overhead

Llama of hidden size 512, 8 layers, 8 heads and 4 key-value heads, sequence 512, eager attention,
float32: two plain forwards (reference, then candidate) against `tracer.compare` of the same two
models with full statistics of arguments and outputs. Process CPU time and wall time, medians of
interleaved runs; then the peak memory of each in processes of its own, beyond what was resident
before. Only the ratios mean anything on a machine other than the one that is printed.
"""

import argparse
import copy
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tracer
from tracer.tensors.difference import Difference

SEQUENCE = 512


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9, help="interleaved runs of each (9)")
    parser.add_argument("--memory", choices=("plain", "traced"), help=argparse.SUPPRESS)
    parser.add_argument("--sequence", type=int, default=SEQUENCE, help=f"tokens ({SEQUENCE})")
    arguments = parser.parse_args(argv)
    if arguments.memory:
        print(peak_growth(arguments.sequence, traced=arguments.memory == "traced"))
        return
    reference, candidate, inputs = models(arguments.sequence)
    calls = {
        "two plain forwards": lambda: plain(reference, candidate, inputs),
        "hooks and hand-overs only": lambda: without_statistics(reference, candidate, inputs),
        "traced comparison": lambda: tracer.compare(reference, candidate, inputs),
    }
    for call in calls.values():
        call()
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(arguments.runs):
        for name, call in calls.items():
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            call()
            cpu[name].append(time.process_time() - cpu_start)
            wall[name].append(time.perf_counter() - wall_start)
    comparison = tracer.compare(reference, candidate, inputs)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{comparison.coverage}; {len(comparison.rows)} rows; medians of {arguments.runs} runs")
    base = next(iter(calls))
    for name in calls:
        ratios = [
            statistics.median(times[name]) / statistics.median(times[base]) for times in (cpu, wall)
        ]
        print(
            f"{name:28} CPU {statistics.median(cpu[name]):7.3f} s, ratio {ratios[0]:.2f}   "
            f"wall {statistics.median(wall[name]):7.3f} s, ratio {ratios[1]:.2f}"
        )
    growth: dict[str, list[float]] = {"plain": [], "traced": []}
    for _ in range(arguments.runs):
        for kind, figures in growth.items():
            command = [
                sys.executable,
                __file__,
                "--memory",
                kind,
                "--sequence",
                str(arguments.sequence),
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures.append(float(done.stdout))
    plain_mib, traced_mib = (statistics.median(figures) for figures in growth.values())
    print(
        f"peak memory beyond the two models: plain {plain_mib:.0f} MiB, traced {traced_mib:.0f} "
        f"MiB, {traced_mib - plain_mib:+.0f} MiB"
    )


def models(
    sequence: int = SEQUENCE,
) -> tuple[LlamaForCausalLM, LlamaForCausalLM, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=1024,
        max_position_embeddings=sequence,
        attn_implementation="eager",
    )
    reference = LlamaForCausalLM(config).eval()
    return (
        reference,
        copy.deepcopy(reference),
        {"input_ids": torch.randint(0, config.vocab_size, (1, sequence)), "use_cache": False},
    )


def plain(
    reference: torch.nn.Module, candidate: torch.nn.Module, inputs: dict[str, torch.Tensor]
) -> None:
    with torch.no_grad():
        reference(**inputs)
        candidate(**inputs)


def without_statistics(
    reference: torch.nn.Module, candidate: torch.nn.Module, inputs: dict[str, torch.Tensor]
) -> None:
    measured = Difference.of
    Difference.of = classmethod(lambda cls, r, c: cls(r.numel(), r.numel()))  # type: ignore[method-assign,assignment]
    try:
        tracer.compare(reference, candidate, inputs)
    finally:
        Difference.of = measured  # type: ignore[method-assign]


def peak_growth(sequence: int, *, traced: bool) -> float:
    """MiB by which a run raises this process's resident memory at its peak (Linux)."""
    reference, candidate, inputs = models(sequence)
    short = {**inputs, "input_ids": inputs["input_ids"][:, :8]}
    # A first run on a short sequence loads what is loaded once: kernels, thread pools, imports.
    plain(reference, candidate, short)
    tracer.compare(reference, candidate, short).to_frame()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    if traced:
        tracer.compare(reference, candidate, inputs)
    else:
        plain(reference, candidate, inputs)
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """A field of this process's status in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
