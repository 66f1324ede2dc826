"""What correct pairs of models reach: the rounding that the default tolerances must allow for.

    python -m benchmarks.noise [MODEL ...] [--sequence-length N] [--batch N]

Each model (those of random weights by default; a folder or hub id) is compared with what computes
the same in another order or precision, and with its wrapped forms where there are wrappers. Printed
for each pair: the verdict, the largest PEIR, where it is, that of the model's own output, and how
many rows lie beyond 1e-05, the limit for float32.
"""

import argparse
import copy
import platform
from collections.abc import Iterator, Sequence

import torch
from torch import nn

import tracer
from tracer import models

DTYPES = (torch.float64, torch.bfloat16, torch.float16)
VARIANTS = ("prefill", "prefill_reference")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["random-llama", "tiny-qwen3-vl"])
    parser.add_argument("--sequence-length", type=int)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--without-compile", action="store_true")
    arguments = parser.parse_args(argv)
    print(f"{platform.machine()}, torch {torch.__version__}")
    for name in arguments.models:
        loaded = models.load(name, sequence_length=arguments.sequence_length, batch=arguments.batch)
        print(name)
        for kind, candidate in candidates(loaded, compiled=not arguments.without_compile):
            comparison = tracer.compare(loaded.model, candidate, loaded.inputs, confirm=False)
            measured = [row for row in comparison.rows if row.difference is not None]
            worst = max(measured, key=lambda row: row.error)
            last = [row for row in measured if row.is_output][-1]
            beyond = sum(row.peir > 1e-5 for row in measured)
            agrees = "agrees" if comparison.verdict.agrees else "DIVERGES"
            print(
                f"  {kind:18}{agrees:9} largest PEIR {worst.peir:.2g} "
                f"({worst.module or 'root'} {worst.value}), output {last.peir:.2g}; "
                f"{beyond} of {len(measured)} rows beyond 1e-05"
            )


def candidates(loaded: models.Loaded, *, compiled: bool) -> Iterator[tuple[str, nn.Module]]:
    for kind in ("sdpa", "compile")[: 2 if compiled else 1]:
        yield kind, models.candidate(loaded, kind)
    for dtype in DTYPES:
        yield str(dtype).removeprefix("torch."), copy.deepcopy(loaded.model).to(dtype)
    for variant in VARIANTS:
        try:
            yield variant, models.candidate(loaded, "wrapped", variant=variant)
        except tracer.UsageError as error:
            print(f"  {variant:18}none: {error}")


if __name__ == "__main__":
    main()
