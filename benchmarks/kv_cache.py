"""What a cache in few bits costs: perplexity of decode on real checkpoints, and bytes per token.

    python -m benchmarks.kv_cache FOLDER [--checkpoint NAME] [--tokens N] [--only TEXT]

FOLDER holds the data that the tests use. Nothing but the cache is quantised. After a prompt of 8
tokens each token is read by a step of the variant `decode`; what the steps predict is scored. Bytes
are those that the cache of a window takes, scales and float window included, for each token of all
layers together.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import wrappers
from benchmarks.quantised_perplexity import CASES, Case, documents
from wrappers import KVCacheSpec, PTQConfig, evaluate
from wrappers.deploy.runtime import Prompts, run_prefill

SPECS: dict[str, KVCacheSpec | None] = {
    "float": None,
    "int8": KVCacheSpec("int8", "int8"),
    "int8, no window": KVCacheSpec("int8", "int8", residual=0),
    "int4": KVCacheSpec("int4", "int4"),
    "int4, no window": KVCacheSpec("int4", "int4", residual=0),
    "int4 keys, int8 values": KVCacheSpec("int4", "int8"),
    "int8 keys, int4 values": KVCacheSpec("int8", "int4"),
    "int4, groups of 8": KVCacheSpec("int4", "int4", group=8),
    "int2": KVCacheSpec("int2", "int2"),
}
PROMPT = 8


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", choices=[case.checkpoint for case in CASES])
    parser.add_argument("--tokens", type=int, metavar="N", help="the first so many alone")
    parser.add_argument("--only", metavar="TEXT", help="caches with this in their name, and float")
    arguments = parser.parse_args(argv)
    names = [name for name in SPECS if name == "float" or (arguments.only or "") in name]
    for case in CASES:
        if arguments.checkpoint in (None, case.checkpoint):
            table(arguments.folder, case, names, arguments.tokens)


def table(folder: Path, case: Case, names: Sequence[str], most: int | None) -> None:
    """Prints the lines of one checkpoint."""
    checkpoint = folder / case.checkpoint / "hf"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = documents(folder / case.text, tokenizer, case.separator)
    if most is not None or case.tokens is not None:
        texts = [texts[0][: most or case.tokens]]
    exact = 0.0
    for name in names:
        decode = rounding(model, SPECS[name])
        scored = evaluate.decoded_perplexity(
            model, decode, texts, bos=tokenizer.bos_token_id, prompt=PROMPT, batch=16
        )
        if name == "float":
            exact = scored.value
            print(f"\n{case.checkpoint}, {sum(scored.tokens):,} tokens", flush=True)
        above, size = 100 * (scored.value / exact - 1), bytes_per_token(model, decode)
        print(f"  {name:24}{scored.value:9.3f}  {above:+7.2f} %{size:9.1f} bytes", flush=True)


def rounding(model: nn.Module, spec: KVCacheSpec | None) -> nn.Module:
    """A decode model that quantises nothing but its cache."""
    nothing = wrappers.no_quantization()
    config = PTQConfig(activation=nothing, weight=nothing, kv_cache=spec, variant="decode")
    return wrappers.convert(wrappers.prepare(model, config))


@torch.no_grad()
def bytes_per_token(model: nn.Module, decode: nn.Module) -> float:
    """Of a cache that holds as many tokens as the model has positions."""
    length: int = model.config.max_position_embeddings  # type: ignore[union-attr, assignment]
    prompts = Prompts.packed(torch.ones(1, length, dtype=torch.int64))
    _, slots = run_prefill(model, decode, prompts, length, logits_to_keep=1)
    return slots.packed(decode).nbytes / length


if __name__ == "__main__":
    main()
