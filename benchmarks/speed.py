"""What comparing costs, as ratios of process CPU times measured in one run.

    python -m benchmarks.speed [--json FILE] [--page docs/results/performance.md]
    python -m benchmarks.speed --from FILE --page docs/results/performance.md

Two plain forwards, the reference's and the candidate's, count as 1. Beside each traced comparison
stands what one would write by hand: hooks that keep all outputs and subtract them afterwards, and
torch's DebugMode around each forward, which logs a hash of every operation's result. Then what a
pair of calls costs by itself, what isolation costs, what the statistics of a large pair cost, and
the commands, in seconds. Medians of interleaved runs on one thread; a goal is what the design asks.
"""

import argparse
import copy
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._debug_mode import DebugMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import tracer
import wrappers
from tracer.tensors.difference import CHUNK
from tracer.tensors.kernels import by_numpy, compiled

Call = Callable[[], object]
ELEMENTS = 4_100_000


@dataclass(frozen=True)
class Pair:
    """A reference, a candidate and what both are given."""

    reference: nn.Module
    candidate: nn.Module
    inputs: Callable[[], Mapping[str, Any]]

    def plain(self) -> None:
        with torch.no_grad():
            self.reference(**self.inputs())
            self.candidate(**self.inputs())

    def traced(self, **options: Any) -> tracer.Comparison:
        return tracer.compare(self.reference, self.candidate, self.inputs(), **options)

    def by_hooks(self) -> list[float]:
        kept = [outputs_of(model, self.inputs()) for model in (self.reference, self.candidate)]
        return [
            float((mine - theirs).abs().max())
            for mine, theirs in zip(*kept, strict=True)
            if mine.shape == theirs.shape and mine.is_floating_point()
        ]

    def by_debug_mode(self) -> None:
        for model in (self.reference, self.candidate):
            mode = DebugMode(record_nn_module=True)
            with torch.no_grad(), mode, DebugMode.log_tensor_hashes():
                model(**self.inputs())


def outputs_of(model: nn.Module, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, torch.Tensor):
            kept.append(first)

    handles = [module.register_forward_hook(keep) for module in model.modules()]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def built_in(name: str) -> Pair:
    loaded = tracer.models.load(name)
    candidate = wrappers.prepare(loaded.model, wrappers.PTQConfig())
    assert isinstance(loaded.inputs, Mapping)
    return Pair(loaded.model, candidate, lambda: dict(loaded.inputs))


def llama(
    hidden: int, layers: int, tokens: int, *, dtype: torch.dtype = torch.float32, past: int = 0
) -> Pair:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 64, 1),
        num_key_value_heads=max(hidden // 128, 1),
        vocab_size=1024,
        attn_implementation="eager",
    )
    reference = LlamaForCausalLM(config).eval().to(dtype)
    tokens_given = torch.randint(0, config.vocab_size, (1, tokens))
    states = [torch.randn(1, config.num_key_value_heads, past, 64, dtype=dtype) for _ in range(2)]

    def inputs() -> Mapping[str, Any]:
        if not past:
            return {"input_ids": tokens_given, "use_cache": False}
        cache = DynamicCache()
        for layer in range(layers):
            cache.update(states[0], states[1], layer)
        return {"input_ids": tokens_given, "past_key_values": cache}

    return Pair(reference, copy.deepcopy(reference), inputs)


# Name, the pair, and the goal for the traced comparison.
CASES: dict[str, tuple[Callable[[], Pair], float]] = {
    "tiny-llama": (lambda: built_in("tiny-llama"), 2.5),
    "tiny-qwen3-vl": (lambda: built_in("tiny-qwen3-vl"), 1.8),
    "Llama 256 x 32, 16 tokens": (lambda: llama(256, 32, 16), 1.8),
    "Llama 512 x 8, 512 tokens": (lambda: llama(512, 8, 512), 1.06),
    "Llama 2048 x 4, a step after 64": (lambda: llama(2048, 4, 1, past=64), 1.08),
    "Llama 1024 x 4, 256, bfloat16": (lambda: llama(1024, 4, 256, dtype=torch.bfloat16), 1.10),
}
LEVELS = {"leaves": 3.0, "blocks": 4.0, "layers": 8.0}
# What Python is given, and the goal; the first is what the others cannot do without.
COMMANDS: dict[str, tuple[Sequence[str], float | None]] = {
    "importing LlamaForCausalLM": (["-c", "from transformers import LlamaForCausalLM"], None),
    "trace_model compare tiny-llama": (["-m", "tracer", "compare", "tiny-llama"], 2.5),
    "trace_model compare tiny-llama --candidate quantized": (
        ["-m", "tracer", "compare", "tiny-llama", "--candidate", "quantized"],
        5.0,
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="interleaved runs of each (7)")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="models and levels with this in their name"
    )
    parser.add_argument("--without-commands", action="store_true", help="no commands")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put them into a page of results")
    parser.add_argument(
        "--from", dest="earlier", type=Path, metavar="FILE", help="figures that --json has written"
    )
    arguments = parser.parse_args(argv)
    if arguments.earlier is None:
        found = measured(arguments)
    else:
        found = json.loads(arguments.earlier.read_text())
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.page is not None:
        put_into(arguments.page, found)


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, one thread, medians of", end=" ")
    print(f"{arguments.runs} runs")
    found: dict[str, Any] = {"machine": machine(arguments.runs)}
    found["comparisons"] = comparisons(arguments.only, arguments.runs)
    found["pair"] = pair_of_calls(arguments.runs)
    found["isolation"] = isolation(arguments.only, arguments.runs)
    found["statistics"] = large_pair(arguments.runs)
    if not arguments.without_commands:
        found["commands"] = commands(min(arguments.runs, 3))
    return found


def machine(runs: int) -> str:
    name = next(
        (
            line.partition(":")[2].strip()
            for line in read_if_there(Path("/proc/cpuinfo")).splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, one thread, {runs} runs"


def read_if_there(path: Path) -> str:
    return path.read_text() if path.exists() else ""


BEGIN, END = "<!-- benchmarks.speed begins -->\n", "<!-- benchmarks.speed ends -->\n"


def put_into(page: Path, found: Mapping[str, Any]) -> None:
    """Replaces the tables of a page by those of these figures."""
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{page} has no lines {BEGIN.strip()} and {END.strip()} around its tables")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}{tables(found)}{END}{after}")


def tables(found: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    parts = [f"\n{found['machine']}; medians.\n"]
    if rows := [
        [name, *(f"{own[key]:.2f}" for key in ("traced", "goal", "hooks", "debug_mode"))]
        for name, own in found["comparisons"].items()
    ]:
        header = [
            "two plain forwards = 1",
            "traced",
            "goal",
            "hooks that keep outputs",
            "DebugMode",
        ]
        parts.append(markdown([header, *rows]))
    pair = found["pair"]
    parts.append(
        f"A pair of calls of tiny tensors takes {pair['microseconds']:.0f} us beyond the calls, "
        f"which take {pair['plain_microseconds']:.0f} us (goal {pair['goal']:.0f}).\n"
    )
    if rows := [
        [level, f"{own['ratio']:.1f}", f"{own['goal']:.0f}", f"{own['without_causes']:.1f}"]
        for level, own in found["isolation"].items()
    ]:
        header = ["isolation, a plain pair = 1", "in all", "goal", "without causes"]
        parts.append(markdown([header, *rows]))
    rows = [[name, f"{own:.2f}"] for name, own in found["statistics"].items()]
    parts.append(markdown([["statistics of 4.1 million pairs", "ms"], *rows]))
    if rows := [
        [name, f"{own['seconds']:.1f}", "" if own["goal"] is None else f"{own['goal']:.1f}"]
        for name, own in found.get("commands", {}).items()
    ]:
        parts.append(markdown([["a command, with all that it imports", "s of CPU", "goal"], *rows]))
    return "\n".join(parts) + "\n"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    return "".join([lines[0], "|---" * len(rows[0]) + "|\n", *lines[1:]])


def medians(calls: Mapping[str, Call], runs: int) -> dict[str, float]:
    """Seconds of process time of each, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(runs):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(own) for name, own in times.items()}


def comparisons(only: str, runs: int) -> dict[str, dict[str, float]]:
    print(f"\n{'two plain forwards = 1':34} traced  goal   hooks  DebugMode  plain, ms")
    found = {}
    for name, (build, goal) in CASES.items():
        if only not in name:
            continue
        pair = build()
        calls = {
            "plain": pair.plain,
            "traced": pair.traced,
            "hooks": pair.by_hooks,
            "debug_mode": pair.by_debug_mode,
        }
        times = medians(calls, runs)
        ratios = {each: own / times["plain"] for each, own in times.items()}
        found[name] = {**ratios, "plain_seconds": times["plain"], "goal": goal}
        print(
            f"{name:34} {ratios['traced']:6.2f} {goal:5.2f} {ratios['hooks']:7.2f}"
            f" {ratios['debug_mode']:10.2f} {times['plain'] * 1e3:10.1f}"
        )
    return found


class Block(nn.Module):
    """Three small modules and an argument besides."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor, mask: None) -> torch.Tensor:
        down: torch.Tensor = self.down(torch.relu(self.up(self.norm(x))))
        return x + down


class Stack(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, mask=None)
        return x


def stack(blocks: int) -> Pair:
    """Two stacks whose values differ by rounding."""
    torch.manual_seed(0)
    reference = Stack(blocks).eval()
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        for parameter in candidate.parameters():
            parameter.mul_(1 + 1e-7)
    x = torch.randn(1, 8, 32)
    return Pair(reference, candidate, lambda: {"x": x})


def pair_of_calls(runs: int) -> dict[str, float]:
    """What a pair of calls costs beyond the calls themselves: by the slope over the depth."""
    few, many = stack(4), stack(36)
    times = medians(
        {
            "few": few.traced,
            "many": many.traced,
            "few plain": few.plain,
            "many plain": many.plain,
        },
        runs,
    )
    pairs = 32 * 4
    traced = (times["many"] - times["few"]) / pairs * 1e6
    plain = (times["many plain"] - times["few plain"]) / pairs * 1e6
    print(
        f"\na pair of calls of tiny tensors {traced - plain:16.0f} us, goal 100; the calls", end=""
    )
    print(f" alone {plain:.0f} us")
    return {"microseconds": traced - plain, "plain_microseconds": plain, "goal": 100.0}


def isolation(only: str, runs: int) -> dict[str, dict[str, float]]:
    """Of a quantised tiny-llama, over the plain pair, without the comparison before it."""
    levels = {level: goal for level, goal in LEVELS.items() if only in level}
    if not levels:
        return {}
    loaded = tracer.models.load("tiny-llama")
    spec = wrappers.affine("uint8")
    quantized = wrappers.prepare(loaded.model, wrappers.PTQConfig(activation=spec, weight=spec))
    wrappers.calibrate(quantized, [loaded.inputs])
    pair = Pair(loaded.model, wrappers.convert(quantized), lambda: dict(loaded.inputs))

    def isolated(level: str | None, *, causes: bool) -> Call:
        return lambda: pair.traced(isolate=level, causes=causes, confirm=False)

    calls: dict[str, Call] = {"plain": pair.plain, "compared": isolated(None, causes=True)}
    for level in levels:
        calls[level] = isolated(level, causes=True)
        calls[f"{level}, no causes"] = isolated(level, causes=False)
    times = medians(calls, runs)
    print("\nisolation, a plain pair = 1   in all  goal  without causes")
    found = {}
    for level, goal in levels.items():
        own, bare = (
            (times[name] - times["compared"]) / times["plain"]
            for name in (level, f"{level}, no causes")
        )
        found[level] = {"ratio": own, "without_causes": bare, "goal": goal}
        print(f"{level:28} {own:7.2f} {goal:5.1f} {bare:15.2f}")
    return found


def large_pair(runs: int) -> dict[str, float]:
    """Statistics of 4.1 million pairs on one thread, in milliseconds."""
    random = np.random.default_rng(0)
    r = random.standard_normal(ELEMENTS).astype(np.float32)
    c = (r + 1e-5 * random.standard_normal(ELEMENTS)).astype(np.float32)
    tensors = torch.from_numpy(r), torch.from_numpy(c)
    calls: dict[str, Call] = {
        "reading both once": lambda: (tensors[0].sum(), tensors[1].sum()),
        "separate passes": lambda: separate_passes(*tensors),
        "NumPy, in chunks": lambda: [
            by_numpy(r[start : start + CHUNK], c[start : start + CHUNK])
            for start in range(0, ELEMENTS, CHUNK)
        ],
    }
    halves = tuple(tensor.bfloat16() for tensor in tensors)
    calls["NumPy, bfloat16"] = lambda: [
        by_numpy(one.float().numpy(), other.float().numpy())
        for one, other in zip(*(tensor.split(CHUNK) for tensor in halves), strict=True)
    ]
    one_pass = compiled()
    if one_pass is not None:
        bits = [tensor.view(torch.uint16).numpy() for tensor in halves]
        calls["compiled, one pass"] = lambda: one_pass(r, c)
        calls["compiled, bfloat16"] = lambda: one_pass(*bits)
    if runs > 1 and shutil.which("c++"):
        fused = torch.compile(sums_and_extremes)
        calls["torch.compile, one pass without the peak"] = lambda: fused(*tensors)
    times = {name: 1e3 * own for name, own in medians(calls, 3 * runs).items()}
    print(f"\nstatistics of {ELEMENTS / 1e6:.1f} million pairs, ms")
    for name, own in times.items():
        print(f"{name:42} {own:6.2f}")
    return times


def sums_and_extremes(r: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What a pass needs, in float32 throughout; with `argmax` inductor makes two passes."""
    d = (r - c).abs()
    sums = d.sum(), d.square().sum(), r.square().sum(), c.square().sum()
    return *sums, d.amin(), d.amax(), r.amin(), r.amax()


def separate_passes(r: torch.Tensor, c: torch.Tensor) -> list[float]:
    d = (r - c).abs()
    values = (d.mean(), d.min(), d.max(), d.std(), r.min(), r.max(), r.double().square().sum())
    products = (c.double().square().sum(), (r.double() * c.double()).sum(), d.argmax())
    return [float(value) for value in (*values, *products)]


def commands(runs: int) -> dict[str, dict[str, Any]]:
    """Seconds of process time of whole commands, with all that is imported.

    What is imported is compiled, as an installed package is: the first run is not counted.
    """
    print(f"\n{'seconds of a command':54} CPU  goal")
    found = {}
    with_bytecode = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for name, (arguments, goal) in COMMANDS.items():
        command = [sys.executable, *arguments]
        times = []
        for _ in range(1 + runs):
            before = children_seconds()
            subprocess.run(command, env=with_bytecode, check=False, capture_output=True)
            times.append(children_seconds() - before)
        found[name] = {"seconds": statistics.median(times[1:]), "goal": goal}
        print(f"{name:52} {found[name]['seconds']:5.1f} {goal or '':5}")
    return found


def children_seconds() -> float:
    import resource  # not on Windows

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
