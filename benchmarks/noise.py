"""What correct pairs of models reach: the rounding that the default tolerances must allow for.

    python benchmarks/noise.py [MODEL ...]

Each model (the built-in ones by default; a folder or hub id) is compared with what computes the
same in another order or precision. Printed for each pair: the verdict, the largest PEIR, where it
is, and that of the model's own output.
"""

import argparse
import copy
import platform

import torch

import tracer
from tracer import models

DTYPES = (torch.float64, torch.bfloat16, torch.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["tiny-llama", "tiny-qwen3-vl"])
    arguments = parser.parse_args()
    print(f"{platform.machine()}, torch {torch.__version__}")
    for name in arguments.models:
        loaded = models.load(name)
        pairs = {kind: models.candidate(loaded, kind) for kind in ("sdpa", "compile")}
        for dtype in DTYPES:
            pairs[str(dtype).removeprefix("torch.")] = copy.deepcopy(loaded.model).to(dtype)
        for kind, candidate in pairs.items():
            comparison = tracer.compare(loaded.model, candidate, loaded.inputs, confirm=False)
            measured = [row for row in comparison.rows if row.difference is not None]
            worst = max(measured, key=lambda row: row.error)
            last = [row for row in measured if row.is_output][-1]
            agrees = "agrees" if comparison.verdict.agrees else "DIVERGES"
            print(
                f"{name:16} {kind:9} {agrees:9} largest PEIR {worst.peir:.2g} "
                f"({worst.module or 'root'} {worst.value}), output {last.peir:.2g}"
            )


if __name__ == "__main__":
    main()
