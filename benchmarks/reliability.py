"""What the tool does with bad input, and what it leaves of the models that it runs.

    python -m benchmarks.reliability
    python -m benchmarks.reliability --cases 10 --modules 3

Bad input is made by a seed (`tests/builders/fuzz.py`): whole files with bits flipped, values
replaced by those of other types and sizes, nested without end, cut off; and options at random.
Whatever it is, the exit code is 0, 1 or 2, one sentence says why, and there is no traceback. The
modules of the zoo (`tests/builders/module_zoo.py`) are photographed, all that they hold, before
and after each way of running them.
"""

import argparse
import copy
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

import tracer
from tests.builders.fuzz import KINDS, Fuzzer
from tests.builders.module_zoo import MODULES, X, made, photograph, settings

LOOKS: dict[str, Callable[[nn.Module, nn.Module], object]] = {
    "compare": lambda m, other: tracer.compare(m, other, X["x"]),
    "with itself": lambda m, other: tracer.compare(m, m, X["x"]),
    "noise floor": lambda m, other: tracer.compare(m, other, X["x"], noise_floor=True),
    "isolate": lambda m, other: tracer.compare(m, other, X["x"], isolate="leaves"),
    "what-if": lambda m, other: tracer.compare(m, other, X["x"], what_if=1),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=500, metavar="N", help="of each kind")
    parser.add_argument("--modules", type=int, default=len(MODULES), metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        attack(Fuzzer.at(Path(folder)), arguments.cases, arguments.seed)
    photographs(arguments.modules)


def attack(fuzzer: Fuzzer, cases: int, seed: int) -> None:
    """Prints how many cases of each kind ended with which exit code."""
    print("bad input             cases      0      1      2  other  slowest")
    total = Counter[str]()
    for kind in KINDS:
        codes, slowest = Counter[str](), 0.0
        for case in range(cases):
            start = time.perf_counter()
            code, said = fuzzer.run(kind, seed * 10**6 + case)
            slowest = max(slowest, time.perf_counter() - start)
            is_answered = code in (0, 1, 2) and "Traceback" not in said
            codes[str(int(code)) if is_answered else "other"] += 1
        total += codes
        counts = "".join(f"{codes[name]:7}" for name in ("0", "1", "2", "other"))
        print(f"{kind:20} {cases:6}{counts}  {slowest:5.2f} s", flush=True)
    counts = "".join(f"{total[name]:7}" for name in ("0", "1", "2", "other"))
    print(f"{'all':20} {cases * len(KINDS):6}{counts}\n")


def photographs(count: int) -> None:
    """Prints how many modules were changed by what ran them."""
    print("run of a module       modules  changed")
    for name, look in LOOKS.items():
        changed = 0
        for make in list(MODULES.values())[:count]:
            model = made(make)  # type: ignore[arg-type]
            other = copy.deepcopy(model)
            before = photograph(model), photograph(other), settings()
            look(model, other)
            changed += (photograph(model), photograph(other), settings()) != before
        print(f"{name:20} {count:8} {changed:8}", flush=True)


if __name__ == "__main__":
    main()
