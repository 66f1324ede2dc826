"""What algorithms gain: perplexity of the real checkpoints, quantised after each of them.

    python -m benchmarks.quantised_perplexity FOLDER [--checkpoint NAME] [--sets N] [--only TEXT]

FOLDER holds the data that the tests use. Each line is one list of stages: the perplexity, its
spread over N calibration sets of 16 documents or windows, how much it is above that of the float
model, and how long the stages and the calibration took. Activations are int16, weights uint4 unless
`--weight` says otherwise; the variant is `prefill_reference`. On two cores a checkpoint takes some
minutes for each set.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from wrappers import PTQConfig, affine, algorithms, evaluate
from wrappers.algorithms import (
    GPTQ,
    AdaRound,
    BiasCorrection,
    BlockReconstruction,
    CrossLayerEqualisation,
    Rotation,
    SmoothQuant,
    Stage,
)

ALONE = "rounding alone"
PLAIN: dict[str, Any] = {"ranges": "minmax", "match_float": False}
STAGES: dict[str, list[Stage]] = {
    ALONE: [],
    "SmoothQuant": [SmoothQuant()],
    "SmoothQuant, activations alone": [SmoothQuant(statistic="mean")],
    "cross-layer equalisation": [CrossLayerEqualisation()],
    "rotation": [Rotation()],
    "bias correction": [BiasCorrection()],
    "GPTQ": [GPTQ()],
    "GPTQ, weighted MSE": [GPTQ(ranges="weighted_mse")],
    "GPTQ, whole ranges": [GPTQ(ranges="minmax")],
    "GPTQ, outputs of layers": [GPTQ(match_float=False)],
    "plain GPTQ": [GPTQ(**PLAIN)],
    "plain GPTQ, groups of 32": [GPTQ(group_size=32, **PLAIN)],
    "plain GPTQ, static groups of 32": [GPTQ(group_size=32, static_groups=True, **PLAIN)],
    "AdaRound": [AdaRound()],
    "block reconstruction": [BlockReconstruction()],
    "GPTQ, block reconstruction": [GPTQ(), BlockReconstruction()],
    "rotation, block reconstruction": [Rotation(), BlockReconstruction()],
    "SmoothQuant, plain GPTQ": [SmoothQuant(), GPTQ(**PLAIN)],
    "rotation, plain GPTQ": [Rotation(), GPTQ(**PLAIN)],
    "rotation, GPTQ": [Rotation(), GPTQ()],
    "GPTQ, bias correction": [GPTQ(), BiasCorrection()],
}
IN_A_SET = 16


@dataclass(frozen=True)
class Case:
    """A checkpoint, what it is calibrated on and what it is scored on."""

    checkpoint: str
    calibration: str
    text: str
    separator: str | None
    tokens: int | None  # that are scored; None for all


CASES = (
    Case("stories260K", "tinystories/tinystories_train_head.split.txt",
         "tinystories/tinystories_sample_cs336.txt", "<|endoftext|>", None),
    Case("wikitext2-llama", "wikitext2/wiki.valid.tokens.txt",
         "wikitext2/wiki.test.tokens.head.txt", None, 3060),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", choices=[case.checkpoint for case in CASES])
    parser.add_argument("--sets", type=int, default=1, metavar="N", help="of calibration data")
    parser.add_argument("--only", metavar="TEXT", help="stages with this in their name")
    parser.add_argument("--activation", default="int16")
    parser.add_argument("--weight", default="uint4")
    parser.add_argument("--qscheme", help="of the weights")
    arguments = parser.parse_args(argv)
    config = PTQConfig(
        activation=affine(arguments.activation),
        weight=affine(arguments.weight, qscheme=arguments.qscheme),
        variant="prefill_reference",
    )
    for case in CASES:
        if arguments.checkpoint in (None, case.checkpoint):
            table(arguments.folder, case, config, arguments.sets, arguments.only)


def table(folder: Path, case: Case, config: PTQConfig, sets: int, only: str | None) -> None:
    """Prints the lines of one checkpoint."""
    checkpoint = folder / case.checkpoint / "hf"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    bos = tokenizer.bos_token_id
    texts = documents(folder / case.text, tokenizer, case.separator)
    if case.tokens is not None:
        texts = [texts[0][: case.tokens]]
    scored = evaluate.perplexity(model, texts, bos=bos, batch=8)
    print(
        f"\n{case.checkpoint}, {sum(scored.tokens):,} tokens, activations "
        f"{config.activation.dtype}, weights {config.weight.dtype}: float {scored.value:.3f}",
        flush=True,
    )
    data = documents(folder / case.calibration, tokenizer, case.separator)
    for name, stages in STAGES.items():
        if only is not None and only not in name:
            continue
        seconds, found = 0.0, []
        for index in range(sets):
            batches = calibration(data, index, model.config.max_position_embeddings, bos)
            began = time.perf_counter()
            quantized = algorithms.quantize(model, config, batches, stages)
            seconds += time.perf_counter() - began
            found.append(evaluate.perplexity(quantized, texts, bos=bos, batch=8).value)
        low, high = min(found), max(found)
        spread = f"{low:.3f}" if sets == 1 else f"{low:.3f} to {high:.3f}"
        print(
            f"  {name:36}{spread:20}+{100 * (sum(found) / sets / scored.value - 1):.2f} %"
            f"{seconds / sets:8.1f} s",
            flush=True,
        )


def documents(file: Path, tokenizer: Any, separator: str | None) -> list[list[int]]:
    text = file.read_text(encoding="utf-8")
    return evaluate.documents(text[: 1 << 19].strip(), tokenizer, separator=separator)


def calibration(
    data: list[list[int]], index: int, window: int, bos: int
) -> list[dict[str, torch.Tensor]]:
    """One of the sets: documents, or windows of the one document, that no other set has."""
    if len(data) == 1:
        starts = range(0, len(data[0]), window - 1)
        data = [data[0][start : start + window - 1] for start in starts]
    chosen = data[index * IN_A_SET : (index + 1) * IN_A_SET]
    return [{"input_ids": torch.tensor([[bos, *ids[: window - 1]]])} for ids in chosen]


if __name__ == "__main__":
    main()
