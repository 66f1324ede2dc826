"""How far errors move between machines: what the margins of the gate must allow for.

    python -m benchmarks.gate_margins [MODEL ...] [--sequence-length N] [--candidates N]

Each model (the built-in ones by default; a folder or hub id) is compared with each candidate on one
thread, and again as other processors would do it: on two threads, and with PyTorch's kernels for
older instruction sets. Printed for each candidate: the largest factor by which the relative L2
error and the PEIR of an output beyond its tolerance have moved, up or down, over all of these; and
where.
"""

import argparse
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from tracer import Baseline
from tracer.regression.gating import PEIR_MARGIN, RELATIVE_L2_MARGIN

CANDIDATES = (
    "--candidate quantized --activation uint8 --weight uint8",
    "--candidate quantized --activation int16 --weight uint4",
    "--candidate quantized --activation uint8 --weight uint8 --dtype bfloat16",
)
PROCESSORS = {
    "two threads": {"OMP_NUM_THREADS": "2"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "SSE": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["random-llama", "tiny-qwen3-vl"])
    parser.add_argument("--sequence-length", type=int)
    parser.add_argument("--candidates", type=int, default=len(CANDIDATES), help="the first N")
    parser.add_argument("--processors", type=int, default=len(PROCESSORS), help="the first N")
    arguments = parser.parse_args(argv)
    own = torch.backends.cpu.get_cpu_capability()
    print(f"{platform.machine()} ({own}), torch {torch.__version__}")
    print(f"margins: relative L2 {RELATIVE_L2_MARGIN}, PEIR {PEIR_MARGIN}")
    length = []
    if arguments.sequence_length is not None:
        length = ["--sequence-length", str(arguments.sequence_length)]
    for model in arguments.models:
        print(model)
        for candidate in CANDIDATES[: arguments.candidates]:
            options = [model, *shlex.split(candidate), *length]
            here = measured(options, {})
            found = [
                (factor, name, key[0], processor)
                for processor, environment in [*PROCESSORS.items()][: arguments.processors]
                for factor, name, key in moves(here, measured(options, environment))
            ]
            print(f"  {candidate}")
            for name in ("relative_l2", "peir"):
                factor, _, module, processor = max(item for item in found if item[1] == name)
                print(f"    {name:12}{factor:8.3f}  {processor}, {module or 'root'}")


def measured(options: list[str], environment: dict[str, str]) -> Baseline:
    """The figures of a run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        program = "import sys; from tracer.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "compare", *options, "--isolate", "none"]
        subprocess.run(
            [*command, "--report", str(report)],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.DEVNULL,
            check=False,  # 1 where the models diverge
        )
        return Baseline.read(report)


def moves(here: Baseline, there: Baseline) -> list[tuple[float, str, tuple[str, ...]]]:
    """By what factor each figure has moved; the name of the figure and the output."""
    found = []
    for key, figures in here.figures.items():
        other = there.figures[key]
        if not (figures.agrees and other.agrees):
            for name in ("relative_l2", "peir"):
                low, high = sorted((getattr(figures, name), getattr(other, name)))
                found.append((high / low if low else math.inf, name, key))
    return found


if __name__ == "__main__":
    main()
