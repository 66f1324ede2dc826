"""What a comparison holds in memory beyond the two models, by the number of their layers.

    python -m benchmarks.memory
    python -m benchmarks.memory --offload

A Llama of hidden size 256 on 256 tokens, compared with its wrapped form, with a copy of its own,
and with a copy in which one weight in the middle is wrong, which takes the confirming runs and the
search for other origins; then with isolation, and with samples kept for drawings. Each is a process
of its own, and two peaks are taken of each. That of the process is its resident memory (VmHWM of
Linux, set back before the run) over what was resident before: it has all in it, and some of the
allocator's slack. That of tensors counts the memory behind every tensor that an operation makes, as
long as it lives (a dispatch mode): it is exact, the same in every run, and the one that may not
grow with depth. What does grow are rows, some numbers for each value, and copies of what modules
keep from call to call, such as the scalars of observers.

With --offload, a checkpoint of random weights in a temporary folder is compared with candidates
made from it, from memory and from disk.
"""

import argparse
import copy
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

import tracer
import wrappers

MIB = 2**20
SEQUENCE = 256
LAYERS = (8, 16, 32, 64)
# glibc gives freed memory back at once, so that peaks are not those of its reserves.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS, metavar="N")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS, help="which (all)")
    parser.add_argument("--offload", action="store_true", help="from memory against from disk")
    parser.add_argument("--run", choices=(*RUNS, "memory", "disk"), help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.checkpoint:
        offload = arguments.run == "disk"
        print(json.dumps(compare_checkpoint(arguments.checkpoint, arguments.kind, offload)))
    elif arguments.run:
        print(json.dumps(measure(arguments.run, arguments.layers[0])))
    elif arguments.offload:
        show_offload()
    else:
        show_depth(arguments.layers, arguments.runs)


def show_depth(depths: Sequence[int], runs: Sequence[str]) -> None:
    print("MiB; peaks are those beyond the models, of the process and of tensors alone")
    print(
        f"{'run':9} {'layers':>6} {'parameters':>10} {'one layer':>9} {'process':>8} "
        f"{'tensors':>8} {'held':>6} {'rows':>6}"
    )
    for run in runs:
        for layers in depths:
            found = in_process("--run", run, "--layers", str(layers))
            print(
                f"{run:9} {layers:6} {found['parameters']:10.1f} {found['layer']:9.2f} "
                f"{found['process']:8.1f} {found['tensors']:8.2f} {found['held']:6.2f} "
                f"{found['rows']:6}",
                flush=True,
            )


def in_process(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **EXACT},
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(run: str, layers: int, sequence: int = SEQUENCE) -> dict[str, float]:
    """Peaks beyond the models in MiB, and what they are to be seen against."""
    model, inputs = llama(layers, sequence)
    candidate = candidate_of(run, model)
    compare = RUNS[run]
    # A first run on a short sequence loads what is loaded once: kernels, thread pools, imports.
    compare(model, candidate, {**inputs, "input_ids": inputs["input_ids"][:, :8]})
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    comparison = compare(model, candidate, inputs)
    process = resident("VmHWM") - before
    rows, held = len(comparison.rows), comparison.coverage.held_bytes_peak
    del comparison
    with LiveTensors() as live:
        compare(model, candidate, inputs)
    return {
        "parameters": sum(p.numel() * p.element_size() for p in model.parameters()) / MIB,
        "layer": activations(model, inputs) / MIB,
        "process": process,
        "tensors": live.peak / MIB,
        "held": held / MIB,
        "rows": rows,
    }


def llama(layers: int, sequence: int) -> tuple[LlamaForCausalLM, dict[str, Any]]:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        max_position_embeddings=sequence,
        attn_implementation="eager",
    )
    ids = torch.randint(0, config.vocab_size, (1, sequence))
    return LlamaForCausalLM(config).eval(), {"input_ids": ids, "use_cache": False}


def candidate_of(run: str, model: LlamaForCausalLM) -> torch.nn.Module:
    if run == "wrapped":
        return wrappers.prepare(model, wrappers.PTQConfig(variant="prefill")).eval()
    other = copy.deepcopy(model)
    if run in ("mistake", "isolated"):
        with torch.no_grad():
            other.model.layers[len(other.model.layers) // 2].mlp.up_proj.weight[3] *= 1.5
    return other


def agreeing(reference: Any, candidate: Any, inputs: Any, **options: Any) -> tracer.Comparison:
    comparison = tracer.compare(reference, candidate, inputs, **options)
    assert comparison.verdict.agrees
    return comparison


def confirmed(reference: Any, candidate: Any, inputs: Any, **options: Any) -> tracer.Comparison:
    comparison = tracer.compare(reference, candidate, inputs, **options)
    assert comparison.verdict.confirmed
    return comparison


def isolated(reference: Any, candidate: Any, inputs: Any) -> tracer.Comparison:
    return confirmed(reference, candidate, inputs, isolate="leaves", what_if=1)


def sampled(reference: Any, candidate: Any, inputs: Any) -> tracer.Comparison:
    return agreeing(reference, candidate, inputs, samples=256)


RUNS: dict[str, Callable[[Any, Any, Any], tracer.Comparison]] = {
    "wrapped": agreeing,
    "copy": agreeing,
    "mistake": confirmed,
    "isolated": isolated,
    "samples": sampled,
}


def activations(model: LlamaForCausalLM, inputs: dict[str, Any]) -> int:
    """Bytes of what the modules of one layer return."""
    sizes = []

    def note(module: torch.nn.Module, args: Any, output: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        sizes.append(sum(tensor.numel() * tensor.element_size() for tensor in tensors))

    hooks = [module.register_forward_hook(note) for module in model.model.layers[0].modules()]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return sum(sizes)


class LiveTensors(TorchDispatchMode):
    """Counts the memory behind the tensors that operations make, as long as it lives.

    Attributes:
        peak: the most that was alive after an operation, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {storage._cdata for storage in storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        self._known = {key: own for key, own in self._known.items() if not own[0].expired()}
        for storage in storages(result):
            if storage._cdata not in self._known and storage._cdata not in given:
                self._known[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._known.values()))
        return result


def storages(values: Any) -> list[torch.UntypedStorage]:
    leaves = tree_leaves(values)
    return [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def show_offload() -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=8,
            num_attention_heads=16,
            num_key_value_heads=8,
            vocab_size=4096,
            max_position_embeddings=SEQUENCE,
            tie_word_embeddings=False,
        )
        model = LlamaForCausalLM(config)
        size = sum(p.numel() * p.element_size() for p in model.parameters()) / MIB
        model.save_pretrained(folder)
        del model
        print(f"a checkpoint of {size:.0f} MiB in float32 against candidates made from it")
        print("peak of the process beyond what it takes before anything is loaded, MiB")
        print(f"{'candidate':10} {'in memory':>9} {'on disk':>9}")
        for kind in ("bfloat16", "wrapped", "quantized"):
            found = [
                in_process("--run", place, "--checkpoint", folder, "--kind", kind)
                for place in ("memory", "disk")
            ]
            assert found[0]["peirs"] == found[1]["peirs"]
            peaks = [one["peak"] - one["before"] for one in found]
            print(f"{kind:10} {peaks[0]:9.0f} {peaks[1]:9.0f}", flush=True)


def compare_checkpoint(folder: str, kind: str, offload: bool) -> dict[str, Any]:
    """Loads a checkpoint, makes a candidate from it, and compares them."""
    tiny = tracer.models.load("random-llama", offload=offload)
    tracer.compare(tiny.model, tracer.models.candidate(tiny, kind), tiny.inputs)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    loaded = tracer.models.load(folder, offload=offload, sequence_length=32)
    candidate = tracer.models.candidate(loaded, kind)
    comparison = tracer.compare(loaded.model, candidate, loaded.inputs, confirm=kind != "quantized")
    peirs = [row.peir for row in comparison.rows]
    return {"before": before, "peak": resident("VmHWM"), "peirs": peirs}


def resident(field: str) -> float:
    """A field of this process's status in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
