"""Exported files of models that are right, compared with what they were made from.

    python -m benchmarks.exported_graphs                  # the table of docs/results/exported.md
    python -m benchmarks.exported_graphs --only "Llama MLP" --formats pt2

Every row is one file: how many modules are paired, what the verdict is, the largest PEIR of any
value, and the limit that it was judged by: that of the dtype, and of what is quantised 16 steps of
its activations where another runtime than PyTorch computes it.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tracer
import wrappers
from tests.builders.text_models import FAMILIES
from tracer.choices import EXPORTED_TO
from tracer.models import builtin
from wrappers import PTQConfig, affine

Made = tuple[nn.Module, tuple[Any, ...]]
_STEPS = 16 / 2**8


@dataclass(frozen=True)
class Case:
    """A model to export.

    Attributes:
        name: as the table has it.
        make: makes it and its inputs, quantised or not.
    """

    name: str
    make: Callable[[bool], Made]


def config(**options: Any) -> PTQConfig:
    return PTQConfig(activation=affine("uint8"), weight=affine("uint8"), **options)


def llama(variant: str, part: str, past: int | None, quantised: bool) -> Made:
    """A part of a Llama as a static step."""
    model = builtin.build("random-llama", 0).eval()
    wrapped = wrappers.prepare(model, config(variant=variant))
    prompts = [torch.randint(1, 500, (1, 16), generator=torch.Generator().manual_seed(1))]
    if quantised and variant == "decode":
        wrappers.calibrate_decode(model, wrapped, prompts, steps=8, source="float")
    elif quantised:
        wrappers.calibrate(wrapped, [{"input_ids": prompt} for prompt in prompts])
    if quantised:
        wrappers.convert(wrapped)
    step = wrappers.Step(wrapped.get_submodule(part)).eval()
    sizes = {"tokens": 8} if past is None else {"past": past}
    return step, step.example_inputs(**sizes)


def mlp(quantised: bool) -> Made:
    """The smallest case."""
    model = builtin.build("random-llama", 0).eval()
    module = wrappers.prepare(model, config()).model.layers[0].mlp
    x = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(1))
    if quantised:
        wrappers.calibrate(module, [x])
        wrappers.convert(module)
    return module.eval(), (x,)


def text(quantised: bool) -> Made:
    """The text model of a Qwen3-VL."""
    model = FAMILIES["qwen3_vl"]()
    wrapped = wrappers.prepare(model, config(model_args={"deepstack_layers": 0}))
    ids = torch.randint(500, (1, 7), generator=torch.Generator().manual_seed(1))
    if quantised:
        wrappers.calibrate(wrapped, [{"input_ids": ids}])
        wrappers.convert(wrapped)
    step = wrappers.Step(wrapped).eval()
    with torch.no_grad():
        embeddings = wrapped.embed_tokens(ids)
        tables = step.tables(*model.rotary_emb(embeddings, torch.arange(7).expand(3, 1, 7)))
    return step, (embeddings, *tables, torch.full((1, 7, 7), -1e4).triu(1))


def vision(quantised: bool) -> Made:
    """The vision model of a Qwen3-VL."""
    model = builtin.build("tiny-qwen3-vl", 0).model.visual.eval()
    wrapped = wrappers.prepare(model, config(model_args={"grid_thw": [[1, 4, 4]]}))
    pixels = torch.randn(16, 1536, generator=torch.Generator().manual_seed(1))
    if quantised:
        wrappers.calibrate(wrapped, [pixels])
        wrappers.convert(wrapped)
    return wrapped.eval(), (pixels,)


CASES = (
    Case("Llama MLP", mlp),
    Case("Llama prefill", partial(llama, "prefill", "", None)),
    Case("Llama prefill_reference", partial(llama, "prefill_reference", "", None)),
    Case("Llama decode step", partial(llama, "decode", "", 7)),
    Case("Qwen3-VL text", text),
    Case("Qwen3-VL vision", vision),
)


def export(module: nn.Module, inputs: tuple[Any, ...], file: Path) -> None:
    """Writes a file in the format of its suffix."""
    if file.suffix != ".onnx":
        wrappers.export(module, inputs, file)
        return
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, inputs, strict=False)
        made = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    made.save(file)


def row(case: Case, quantised: bool, form: str, folder: Path) -> str:
    """A row of the table."""
    kind = "uint8" if quantised else "float"
    module, inputs = case.make(quantised)
    start = time.perf_counter()
    file = folder / f"model.{form}"
    try:
        export(module, inputs, file)
    except Exception as error:
        why = str(error).splitlines()[0][:90] if str(error) else type(error).__name__
        return f"| {case.name} | {kind} | {form} | | not exported: {why} | | | |"
    written = time.perf_counter()
    limit = _STEPS if quantised and form != "pt2" else None
    found = tracer.compare(module, tracer.open_graph(file), inputs, tolerance=limit)
    coverage = found.coverage
    modules = len(coverage.paired_modules), len(coverage.reference_only)
    worst = max((each.peir for each in found.rows), default=0.0)
    return (
        f"| {case.name} | {kind} | {form} | {modules[0]} of {sum(modules)} | "
        f"{found.verdict.outcome} | {worst:.2g} | {'1e-05' if limit is None else f'{limit:.2g}'} | "
        f"{written - start:.1f} + {time.perf_counter() - written:.1f} |"
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="names of cases")
    parser.add_argument("--formats", nargs="+", default=EXPORTED_TO, choices=EXPORTED_TO)
    parser.add_argument("--float", action="store_true", help="leave out what is quantised")
    options = parser.parse_args(arguments)
    print("| model | kind | file | modules paired | verdict | largest PEIR | limit | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        if options.only and case.name not in options.only:
            continue
        for quantised in (False,) if options.float else (False, True):
            for form in options.formats:
                with tempfile.TemporaryDirectory() as folder:
                    print(row(case, quantised, form, Path(folder)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
