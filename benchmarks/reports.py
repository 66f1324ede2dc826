"""What reports cost: pairs of elements for the drawings, and a page of many modules.

    python -m benchmarks.reports

The comparison of `benchmarks.overhead` with and without samples, as a ratio of process CPU times
(medians of interleaved runs); then the size of the reports of two models of 2,005 modules, and the
time that it takes to write them. Only the ratio means anything on another machine.
"""

import argparse
import copy
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

import tracer
from benchmarks.overhead import SEQUENCE, models
from tracer.reports import WRITERS
from tracer.tensors.samples import SAMPLES

BLOCKS = 501  # of four modules each, itself included; with the root 2,005


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="interleaved runs of each (5)")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help=f"of four modules ({BLOCKS})")
    parser.add_argument("--sequence", type=int, default=SEQUENCE, help=f"tokens ({SEQUENCE})")
    arguments = parser.parse_args(argv)
    runs = arguments.runs
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    reference, candidate, inputs = models(arguments.sequence)
    without, drawn = medians(
        [
            lambda: tracer.compare(reference, candidate, inputs),
            lambda: tracer.compare(reference, candidate, inputs, samples=SAMPLES),
        ],
        runs,
    )
    ratio = drawn / without
    print(f"compare {without:.2f} s, with {SAMPLES} samples {drawn:.2f} s, ratio {ratio:.2f}")
    comparison = many_modules(arguments.blocks)
    print(f"{comparison.coverage}; {len(comparison.rows)} rows")
    with tempfile.TemporaryDirectory() as folder:
        for suffix in WRITERS:
            path = Path(folder, f"report{suffix}")
            start = time.process_time()
            comparison.save(path)
            spent = time.process_time() - start
            print(f"{suffix:9}{path.stat().st_size / 1000:7.0f} KB, written in {spent:.2f} s")


def medians(calls: list[Callable[[], object]], runs: int) -> list[float]:
    """Seconds of process CPU time, after a run to warm up."""
    times: list[list[float]] = [[] for _ in calls]
    for run in range(runs + 1):
        for call, spent in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            if run:
                spent.append(time.process_time() - start)
    return [statistics.median(spent) for spent in times]


def many_modules(blocks: int = BLOCKS) -> tracer.Comparison:
    """A chain of blocks, of which one in the middle is wrong."""
    torch.manual_seed(0)
    reference = nn.Sequential(
        *(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.LayerNorm(16)) for _ in range(blocks))
    )
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate[blocks // 2][0].weight[3] *= 1.5
    return tracer.compare(reference, candidate, torch.randn(8, 16), samples=SAMPLES)


if __name__ == "__main__":
    main()
