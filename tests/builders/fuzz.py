"""Input as it comes from a disk that fails or from someone who means harm, for the command line.

Each kind makes a case from a seed: a folder of files and the arguments that read them. What comes
of it is an exit code in {0, 1, 2}, no traceback, and nothing but a sentence where it is 2.
"""

import contextlib
import io
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from tracer.cli import main

VALUES: Sequence[object] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**30, 1.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "x", "\0", "\ud800", "../../x", "x" * 5000, "float32", "é"),
    *([], [1], [None], [[]], {}, {"a": 1}, {"": {}}, ["a", 1], [[1, 2]]),
)
TOKENS = (
    *(
        "",
        "-1",
        "0",
        "1",
        "99999999999999999999",
        "1e999",
        "nan",
        "x" * 300,
        "\udcff",
        "*",
        "[",
        "(",
    ),
    *("(a+)+$=x", "a=\\9", "{}", "~nouser9", "/dev/null", "/dev/zero", ".", "..", "a/b", "=", "=="),
    *(
        "\x1b[31m",
        "None",
        "layers",
        "model.*",
        "cpu",
        "cuda:99",
        "meta",
        "float16",
        "int4",
        "eager",
    ),
)
OPTIONS = (
    *(
        "--candidate",
        "--dtype",
        "--device",
        "--prompt",
        "--sequence-length",
        "--batch",
        "--padding",
    ),
    *(
        "--seed",
        "--steps",
        "--variant",
        "--activation",
        "--weight",
        "--map",
        "--tolerance",
        "--zoom",
    ),
    *(
        "--isolate",
        "--what-if",
        "--focus",
        "--report",
        "--json",
        "--baseline",
        "--max-peir",
        "--all",
    ),
    *("--fail-on", "--reference", "--inputs", "--image", "--processor", "--train", "--noise-floor"),
    *("--inside", "--salvage", "--offload", "--max-pixels", "--video", "--calibrate"),
)


@dataclass(frozen=True)
class Fuzzer:
    """Makes cases in a folder.

    Attributes:
        checkpoint, trace, baseline: whole ones.
        folder: where cases are made.
    """

    checkpoint: Path
    trace: Path
    baseline: Path
    folder: Path

    @classmethod
    def at(cls, folder: Path) -> "Fuzzer":
        """Makes whole files to begin with."""
        whole = folder / "whole"
        whole.mkdir()
        checkpoint(whole / "checkpoint")
        quiet(["record", str(whole / "checkpoint"), "--out", str(whole / "a.trace")])
        quiet(["compare", str(whole / "checkpoint"), "--report", str(whole / "a.json")])
        return cls(whole / "checkpoint", whole / "a.trace", whole / "a.json", folder)

    def run(self, kind: str, seed: int) -> tuple[int, str]:
        """Makes a case, runs it, and returns the exit code and standard error."""
        case = self.folder / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        return quiet(KINDS[kind](self, case, random.Random(f"{kind} {seed}")))


def config(fuzzer: Fuzzer, case: Path, draw: random.Random) -> list[str]:
    made = shutil.copytree(fuzzer.checkpoint, case / "checkpoint")
    damage_json(made / "config.json", draw)
    return ["compare", str(made)]


def index(fuzzer: Fuzzer, case: Path, draw: random.Random) -> list[str]:
    made = shutil.copytree(fuzzer.checkpoint, case / "checkpoint")
    file = made / "model.safetensors.index.json"
    file.write_text('{"metadata": {}, "weight_map": {"lm_head.weight": "model.safetensors"}}')
    damage_json(file, draw)
    return ["compare", str(made)]


def weights(fuzzer: Fuzzer, case: Path, draw: random.Random) -> list[str]:
    made = shutil.copytree(fuzzer.checkpoint, case / "checkpoint")
    damage_safetensors(made / "model.safetensors", draw)
    return ["compare", str(made)]


def inputs(fuzzer: Fuzzer, case: Path, draw: random.Random) -> list[str]:
    file = case / "inputs.safetensors"
    save_file({"input_ids": torch.ones(1, 4, dtype=torch.int64)}, file)
    damage_safetensors(file, draw)
    return ["compare", str(fuzzer.checkpoint), "--inputs", str(file)]


def trace(fuzzer: Fuzzer, case: Path, draw: random.Random) -> list[str]:
    made = shutil.copytree(fuzzer.trace, case / "a.trace")
    damage_bytes(made / draw.choice(["events.jsonl", "header.json"]), draw)
    salvage = draw.choice([[], ["--salvage"]])
    if draw.random() < 0.5:
        return ["show", str(made), *salvage]
    return ["compare", str(fuzzer.checkpoint), "--reference", str(made), *salvage]


def forged_trace(fuzzer: Fuzzer, case: Path, draw: random.Random) -> list[str]:
    """Of the format without checksums, its values changed one by one."""
    made = shutil.copytree(fuzzer.trace, case / "a.trace")
    header = json.loads((made / "header.json").read_text())
    (made / "header.json").write_text(json.dumps(header | {"format": 2}))
    if draw.random() < 0.3:
        damage_json(made / "header.json", draw)
    else:
        file = made / "events.jsonl"
        lines = file.read_text().splitlines()
        place = draw.randrange(len(lines))
        lines[place] = json.dumps(damaged(json.loads(lines[place]), draw))
        file.write_text("\n".join(lines) + "\n")
    if draw.random() < 0.5:
        return ["show", str(made)]
    return ["compare", str(fuzzer.checkpoint), "--reference", str(made)]


def baseline(fuzzer: Fuzzer, case: Path, draw: random.Random) -> list[str]:
    file = shutil.copy(fuzzer.baseline, case / "a.json")
    damage_json(Path(file), draw)
    return ["compare", str(fuzzer.checkpoint), "--baseline", str(file)]


def study(fuzzer: Fuzzer, case: Path, draw: random.Random) -> list[str]:
    file = case / "a.toml"
    texts = (
        "[" * 3000,
        "a = ",
        '"x"',
        "-1",
        "{ only = 1 }",
        "[1, 'a']",
        "1e400",
        "\n[grid]\n",
        "nan",
    )
    parts = ['[study]\nname = "a"\nseeds = [0]\n', "[settings]\nactivation = 'int16'\n", "[grid]\n"]
    text = (
        "".join(parts) + f"weight = {draw.choice(texts)}\n[workload]\ntokens = {draw.choice(texts)}"
    )
    file.write_text(text if draw.random() < 0.7 else flipped(text.encode(), draw).decode("latin-1"))
    results = str(case / "a.jsonl")
    return ["ablate", "--config", str(file), str(fuzzer.checkpoint), "--results", results]


def options(fuzzer: Fuzzer, case: Path, draw: random.Random) -> list[str]:
    command = draw.choice(["compare", "compare", "compare", "record", "show", "ablate", "comparé"])
    words = [command, draw.choice([*[str(fuzzer.checkpoint)] * 60, *TOKENS])]
    words += ["--out", str(case / "out")] if command == "record" else []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        words += [draw.choice(OPTIONS), draw.choice(TOKENS)][: draw.choice([1, 2, 2, 2])]
    return words


KINDS: dict[str, Callable[[Fuzzer, Path, random.Random], list[str]]] = {
    "config.json": config,
    "index of shards": index,
    "safetensors header": weights,
    "inputs": inputs,
    "trace": trace,
    "forged trace": forged_trace,
    "baseline": baseline,
    "study": study,
    "options": options,
}


def checkpoint(folder: Path) -> None:
    """A Llama of one tiny layer, without a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)


def quiet(arguments: list[str]) -> tuple[int, str]:
    """The exit code of a command and its standard error."""
    out, err, where = io.StringIO(), io.StringIO(), os.getcwd()  # noqa: PTH109
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    os.chdir(where)
    return code, err.getvalue()


def damaged(value: object, draw: random.Random) -> object:
    """A JSON value with one part of it replaced, removed, renamed or nested without end."""
    if isinstance(value, dict | list) and value and draw.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw.choice(keys)
        if draw.random() < 0.1:
            del value[key]  # type: ignore[arg-type]
        else:
            value[key] = damaged(value[key], draw)  # type: ignore[index, call-overload]
        return value
    if draw.random() < 0.05:
        for _ in range(draw.choice([100, 300])):
            value = [value]
    return draw.choice([*VALUES, value])


def damage_json(file: Path, draw: random.Random) -> None:
    if draw.random() < 0.3:
        damage_bytes(file, draw)
    else:
        file.write_text(json.dumps(damaged(json.loads(file.read_text()), draw)))


def damage_safetensors(file: Path, draw: random.Random) -> None:
    if draw.random() < 0.5:
        damage_bytes(file, draw)
        return
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.dumps(damaged(json.loads(data[8 : 8 + length]), draw)).encode()
    size = draw.choice([len(header), len(header), 0, 2**63, len(header) + 7])
    file.write_bytes(struct.pack("<Q", size) + header + data[8 + length :])


def damage_bytes(file: Path, draw: random.Random) -> None:
    data = file.read_bytes()
    match draw.randrange(5):
        case 0:
            data = data[: draw.randrange(len(data))]
        case 1:
            data = b"[" * 100_000 + b"]" * 100_000
        case 2:
            data = draw.randbytes(draw.randrange(2000))
        case 3 if draw.random() < 0.3:
            file.unlink()
            draw.choice([os.mkfifo, Path.mkdir])(file)  # type: ignore[operator]
            return
        case _:
            data = flipped(data, draw)
    file.write_bytes(data)


def flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 4])):
        changed[draw.randrange(min(len(changed), 4000))] ^= 1 << draw.randrange(8)
    return bytes(changed)
