"""How far quantisation moves the logits: PEIR against the float model, by integer types.

    python -m benchmarks.quantized_logits MODEL [MODEL ...] [--text FILE] [--without POINT]
                                          [--stages NAME]

Each model (a folder, hub id or built-in name) is wrapped, calibrated on its own inputs and 8 more
sequences, quantised and compared with the float model: PEIR and mean difference of the logits, and
the three modules where the PEIR of the output grows most over that of the inputs. With `--without`
the points of that name are left out of the quantised model; with `--stages` the model goes through
algorithms first, by the names that `benchmarks.quantised_perplexity` gives them.
"""

import argparse
import math
import platform
from collections.abc import Sequence
from contextlib import ExitStack

import torch

import tracer
from benchmarks.quantised_perplexity import ALONE, STAGES
from tracer import models
from wrappers import PTQConfig, affine, algorithms, iter_wrappers

TYPES = [("uint8", "uint8"), ("int16", "uint8"), ("int16", "uint4"), ("uint8", "uint4")]
VARIANTS = ("prefill", "prefill_reference")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", help="calibrate on this text in place of random tokens")
    parser.add_argument("--without", metavar="POINT", help="leave out the points of this name")
    parser.add_argument("--stages", choices=STAGES, default=ALONE, help="algorithms to run before")
    arguments = parser.parse_args(argv)
    print(f"{platform.machine()}, torch {torch.__version__}")
    for name in arguments.models:
        print(f"\n{name}")
        print(
            f"{'variant':19}{'activation':12}{'weight':8}{'logits':>8}{'mean':>9}  largest growth"
        )
        loaded = models.load(name)
        calibration = models.calibration(loaded, text=arguments.text)
        for variant in VARIANTS:
            for activation, weight in TYPES:
                config = PTQConfig(
                    activation=affine(activation), weight=affine(weight), variant=variant
                )
                candidate = algorithms.quantize(
                    loaded.model, config, calibration.batches, STAGES[arguments.stages]
                )
                with ExitStack() as off:
                    for _, wrapper in iter_wrappers(candidate):
                        if arguments.without in wrapper.points:
                            off.enter_context(wrapper.disabled(arguments.without))
                    comparison = tracer.compare(
                        loaded.model, candidate, loaded.inputs, confirm=False
                    )
                logits = next(row for row in comparison.rows if row.value == "output.logits")
                print(
                    f"{variant:19}{activation:12}{weight:8}{logits.peir:8.2g}"
                    f"{logits.difference.mean if logits.difference else math.nan:9.2g}  "
                    f"{', '.join(most_growth(comparison))}"
                )


def most_growth(comparison: tracer.Comparison) -> list[str]:
    grown = [
        (row.peir / row.input_peir, row.module)
        for row in comparison.rows
        if row.is_output and row.module and row.input_peir and math.isfinite(row.peir)
    ]
    return [f"{module} {growth:.1f}" for growth, module in sorted(grown, reverse=True)[:3]]


if __name__ == "__main__":
    main()
