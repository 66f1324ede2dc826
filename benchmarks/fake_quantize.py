"""Fake quantisation per tensor, ours against torch's operator, on one machine in one run.

    python -m benchmarks.fake_quantize [--runs 15] [--threads 1]

Per shape and dtype: microseconds of process CPU time (medians of interleaved runs) of
`torch.fake_quantize_per_tensor_affine`, of `wrappers.numerics.affine.fake_quantize`, and of the
same where it may write into its input; and the ratios torch / ours. The outputs are compared bit
for bit.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wrappers.numerics.affine import AffineQParams, fake_quantize
from wrappers.numerics.dtypes import DType

SHAPES = {
    "one token": (1, 1, 64),
    "hidden states": (1, 128, 64),
    "one head's logits": (1, 128, 128),
    "8 heads' logits": (1, 8, 128, 128),
    "32 heads' logits": (1, 32, 256, 256),
    "a large weight": (2048, 4096),
}
DTYPES = (torch.float32, torch.bfloat16)
ELEMENTS_PER_RUN = 2_000_000


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="interleaved runs of each (15)")
    # Idle threads spin for a while, which counts as CPU time: one thread gives the firmest ratios.
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    print(
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"medians of {arguments.runs} interleaved runs, process CPU time in microseconds")
    print(
        f"{'tensor':>18} {'elements':>9} {'dtype':>9} {'torch':>9} {'ours':>9} {'may_overwrite':>9}"
        f" {'torch/ours':>11} {'torch/may_overwrite':>12}"
    )
    for name, shape in SHAPES.items():
        for dtype in DTYPES:
            x = torch.randn(shape).to(dtype) * 8
            by_torch, ours, may_overwrite = microseconds(x, arguments.runs)
            print(
                f"{name:>18} {x.numel():>9} {str(dtype).removeprefix('torch.'):>9}"
                f" {by_torch:>9.1f} {ours:>9.1f} {may_overwrite:>9.1f}"
                f" {by_torch / ours:>11.2f} {by_torch / may_overwrite:>12.2f}"
            )


def microseconds(x: Tensor, runs: int) -> list[float]:
    """Median time per call of torch's operator, ours, and ours in place."""
    qparams = AffineQParams(torch.tensor(0.125), torch.tensor(128), DType.parse("uint8"))
    calls: list[Callable[[], Tensor]] = [
        lambda: torch.fake_quantize_per_tensor_affine(x, 0.125, 128, 0, 255),
        lambda: fake_quantize(x, qparams),
        lambda: fake_quantize(mine, qparams, may_overwrite=True),
    ]
    mine = x.clone()  # stays within the codes, so that every run does the same work
    reference, found = calls[0](), calls[1]()
    assert torch.equal(reference, found), "not what torch gives"
    repeats = max(1, ELEMENTS_PER_RUN // x.numel() // 10)
    times: list[list[float]] = [[] for _ in calls]
    with torch.no_grad():
        for _ in range(runs):
            for call, taken in zip(calls, times, strict=True):
                start = time.process_time()
                for _ in range(repeats):
                    call()
                taken.append((time.process_time() - start) / repeats * 1e6)
    return [statistics.median(taken) for taken in times]


if __name__ == "__main__":
    main()
