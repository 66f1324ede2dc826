"""Perplexity of the real checkpoints, beside what their description says.

    python -m benchmarks.perplexity FOLDER [--cases N]

FOLDER holds the data that the tests use. Windows are of one context length, begin with BOS and do
not overlap. The first line takes a second, all of them some minutes on one core.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from wrappers import evaluate


@dataclass(frozen=True)
class Case:
    """A checkpoint, a text for it, and its perplexity as described, per token."""

    checkpoint: str
    text: str
    separator: str | None
    expected: float


STORIES, ARTICLES = "stories260K", "wikitext2-llama"
CASES = (
    Case(STORIES, "tinystories/tinystories_sample_cs336.txt", "<|endoftext|>", 3.548),
    Case(STORIES, "tinystories/tinystories_train_head.split.txt", "<|endoftext|>", 4.891),
    Case(ARTICLES, "wikitext2/wiki.valid.tokens.txt", None, 35.17),
    Case(ARTICLES, "wikitext2/wiki.test.tokens.txt", None, 33.66),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=len(CASES), metavar="N", help="the first N")
    arguments = parser.parse_args(argv)
    folder = arguments.folder
    for case in CASES[: arguments.cases]:
        began = time.perf_counter()
        checkpoint = folder / case.checkpoint / "hf"
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32").eval()
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        text = (folder / case.text).read_text(encoding="utf-8")
        texts = evaluate.documents(text, tokenizer, separator=case.separator)
        found = evaluate.perplexity(model, texts, bos=tokenizer.bos_token_id, batch=8)
        print(
            f"{case.checkpoint:16}{Path(case.text).name:37}{sum(found.tokens):8,} tokens  "
            f"{found.value:7.3f}  described {case.expected}, off {found.value - case.expected:+.4f}"
            f"  {time.perf_counter() - began:5.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
