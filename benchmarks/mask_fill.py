"""What the fill value of attention masks costs a quantised attention: PEIR by fill value and type.

    python -m benchmarks.mask_fill [--seeds N] [--sequence-length N]

The first attention of the built-in Llama, on random hidden states, is wrapped, calibrated and
quantised with the fill value in its config; its output is compared with the float attention's. All
given masks are clamped to that value. What would become of one that is not is the last row: minus
infinity, which no config takes, handed past the clamp to the arithmetic inside. It has no place in
a range, so quantisation makes it zero, and every query sees the future.
"""

import argparse
import math
import platform
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import wrappers
from tracer.models import builtin as tiny
from tracer.tensors.difference import Difference
from wrappers.attention.causal import AttentionInputs
from wrappers.attention.rope import negate_first_half
from wrappers.errors import CalibrationWarning

VARIANTS = ("prefill", "prefill_reference")
TYPES = ("uint8", "int16")
LEAST = torch.finfo(torch.float32).min
FILLS = (-5.0, -10.0, -20.0, -40.0, -80.0, -120.0, -240.0, -1e4, LEAST)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="how many models medians are over")
    parser.add_argument("--sequence-length", type=int, default=24)
    arguments = parser.parse_args(argv)
    print(f"{platform.machine()}, torch {torch.__version__}")
    cases = [case_of(seed, arguments.sequence_length) for seed in range(arguments.seeds)]
    columns = [(variant, dtype) for variant in VARIANTS for dtype in TYPES]
    print(f"{'fill value':>16}  " + "".join(f"{f'{v} {d}':>26}" for v, d in columns))
    for fill in FILLS:
        print_row(f"{fill:.5g}", [[clamped(case, *c, fill) for case in cases] for c in columns])
    print_row("-inf, unclamped", [[unclamped(case, *c) for case in cases] for c in columns])


def print_row(name: str, peirs: list[list[float]]) -> None:
    print(f"{name:>16}  " + "".join(f"{statistics.median(column):26.4f}" for column in peirs))


@dataclass(frozen=True)
class Case:
    """A float attention, what it is called with, and what it gives."""

    attention: nn.Module
    hidden_states: Tensor
    tables: tuple[Tensor, Tensor]
    mask: Tensor  # causal, with minus infinity
    expected: Tensor


def case_of(seed: int, length: int) -> Case:
    model = tiny.build("random-llama", seed).model.eval()
    model.set_attn_implementation("eager")
    attention = model.layers[0].self_attn
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(1, length, model.config.hidden_size, generator=generator)
    tables = model.rotary_emb(states, torch.arange(length)[None])
    mask = torch.full((1, 1, length, length), -math.inf).triu(1)
    with torch.no_grad():
        expected, _ = attention(states, tables, mask)
    return Case(attention, states, tables, mask, expected)


def clamped(case: Case, variant: str, dtype: str, fill: float) -> float:
    """The PEIR with a fill value from the config."""
    config = wrappers.PTQConfig(
        activation=wrappers.affine(dtype), variant=variant, attention_mask_fill_value=fill
    )
    attention = wrappers.prepare(case.attention, config)
    return quantised_peir(case, attention, (case.hidden_states, case.tables, case.mask))


def unclamped(case: Case, variant: str, dtype: str) -> float:
    """The PEIR with minus infinity in the mask that is quantised and added."""

    class Inside(nn.Module):
        def __init__(self, attention: nn.Module) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, hidden_states: Tensor, *others: Tensor) -> object:
            return self.attention.attend(hidden_states, AttentionInputs(*others))

    config = wrappers.PTQConfig(activation=wrappers.affine(dtype), variant=variant)
    attention = wrappers.prepare(case.attention, config)
    cos, sin = case.tables
    sin = negate_first_half(sin) if variant == "prefill" else sin
    inputs = (case.hidden_states, cos, sin, case.mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        return quantised_peir(case, Inside(attention), inputs)


def quantised_peir(case: Case, wrapped: nn.Module, inputs: tuple[object, ...]) -> float:
    wrappers.calibrate(wrapped, [inputs])
    wrappers.convert(wrapped)
    with torch.no_grad():
        found, _ = wrapped(*inputs)
    return Difference.of(case.expected, found).peir


if __name__ == "__main__":
    main()
