"""Trains a small Llama with a tokenizer of its own: how the built-in `tiny-llama` was made.

    python examples/train_tiny_llama.py TEXT... --out FOLDER [--more FILE [--teacher MODEL]]

The built-in one was trained on TinyStories (Eldan & Li 2023, short stories written by a language
model; licence CDLA-Sharing-1.0, which sets no conditions on what is computed from the data): the
0.2 MB of it that were at hand. Every tenth story is held out. As that is little, a teacher, another
small model of such stories (stories260K of karpathy/tinyllamas, licence MIT), writes eight times
as much. No held-out story is among what the tokenizer or the model is trained on; the teacher may
have seen some, since it was trained on TinyStories.

The recipe: byte-level BPE of 512 tokens; 4 layers of hidden size 64, 8 heads over 4 of keys and
values, float32; stories between BOS and EOS in one stream, cut into windows of 128 tokens, of 256
and at last of 512; AdamW, 1024 tokens a step, a learning rate that falls linearly over the second
half; the weights that do best on the held-out stories are kept. A text file holds one story a line,
or stories between lines of `<|endoftext|>`. All is seeded, and one thread computes the same every
time on the same machine. The built-in model took eight minutes of one core, its teacher three.
"""

import argparse
import copy
import math
import random
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from wrappers import evaluate

SEPARATOR = "<|endoftext|>"
PAD, BOS, EOS = range(3)
SPECIAL = ("<pad>", "<s>", "</s>")
HELD_OUT = 10  # one story in this many
TOKENS = 1024  # of one step
LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 6e-3, 0.1, 100
# The length of a window, and up to which part of the training.
WINDOWS = ((128, 0.75), (256, 0.92), (512, 1.0))
EVALUATED_EVERY = 500  # steps
WRITTEN_AT_ONCE = 192


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a small Llama on text files.")
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXT")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--more", type=Path, metavar="FILE", help="of which none is held out")
    parser.add_argument("--teacher", metavar="MODEL", help="writes the stories of --more first")
    parser.add_argument("--written", type=int, default=2304, help="how many (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5000, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args()
    if options.teacher is not None and options.more is None:
        parser.error("--teacher writes to the file of --more, which was not given")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    stories = read(options.texts)
    if len(stories) < HELD_OUT:
        parser.error(f"found {len(stories)} stories; expected at least {HELD_OUT}")
    held_out = stories[HELD_OUT // 2 :: HELD_OUT]
    del stories[HELD_OUT // 2 :: HELD_OUT]
    tokenizer = trained_tokenizer(stories)
    if options.teacher is not None:
        torch.manual_seed(options.seed)
        write(options.teacher, options.written, options.more)
    more = [] if options.more is None else read([options.more])
    print(f"{len(stories)} stories and {len(more)} more, {len(held_out)} held out")

    torch.manual_seed(options.seed)
    model = new_model()
    texts = [encoded(part, tokenizer) for part in (stories, held_out)]
    for name, text in zip(("training", "held-out"), texts, strict=True):
        print(f"{name} stories: {sum(map(len, text))} tokens, untrained {perplexity(model, text)}")
    model = trained(model, texts[0] + encoded(more, tokenizer), texts[1], options)
    for name, text in zip(("training", "held-out"), texts, strict=True):
        print(f"{name} stories: perplexity {perplexity(model, text)}")
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{options.out}: {size / 2**20:.2f} MiB, {model.num_parameters()} parameters")


def read(files: Sequence[Path]) -> list[str]:
    """The stories of text files, each once."""
    found: dict[str, None] = {}
    for file in files:
        text = file.read_text(encoding="utf-8")
        parts = text.split(SEPARATOR if SEPARATOR in text else "\n")
        found |= dict.fromkeys(story for part in parts if (story := part.strip()))
    return list(found)


def trained_tokenizer(stories: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that no text is unknown; a text begins with BOS."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape().vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories, trainer)
    begin = SPECIAL[BOS]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        model_max_length=shape().max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )


def encoded(stories: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    return [
        tokenizer(story, add_special_tokens=False, verbose=False)["input_ids"] for story in stories
    ]


def write(teacher: str, count: int, file: Path) -> None:
    """Stories that another model makes up."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    how = GenerationConfig(
        do_sample=True,
        temperature=0.9,
        top_k=0,
        max_new_tokens=420,
        eos_token_id=[tokenizer.bos_token_id, tokenizer.eos_token_id],
        pad_token_id=tokenizer.eos_token_id,
    )
    done = 0
    with file.open("w", encoding="utf-8") as out:
        while done < count:
            start = torch.full((min(WRITTEN_AT_ONCE, count - done), 1), tokenizer.bos_token_id)
            mask = torch.ones_like(start)
            made = model.generate(start, attention_mask=mask, generation_config=how)
            for story in tokenizer.batch_decode(made, skip_special_tokens=True):
                out.write(f"{story.strip()}\n{SEPARATOR}\n")
            done += len(start)
            print(f"the teacher has written {done} of {count}", flush=True)


def shape() -> LlamaConfig:
    """That of `random-llama`."""
    return LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def new_model() -> LlamaForCausalLM:
    """Weights that keep the variance; what adds to the residual stream begins small."""
    config = shape()
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed_tokens" not in name:
            adds = name.endswith(("o_proj.weight", "down_proj.weight"))
            smaller = math.sqrt(2 * config.num_hidden_layers) if adds else 1.0
            torch.nn.init.normal_(parameter, std=1 / (smaller * math.sqrt(parameter.shape[1])))
    return model


def perplexity(model: LlamaForCausalLM, texts: Sequence[Sequence[int]]) -> str:
    found = evaluate.perplexity(model.eval(), texts, bos=BOS)
    return f"{found.value:.3f}"


def trained(
    model: LlamaForCausalLM,
    texts: Sequence[Sequence[int]],
    held_out: Sequence[Sequence[int]],
    options: argparse.Namespace,
) -> LlamaForCausalLM:
    """The model as it did best on the held-out stories."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        betas=(0.9, 0.98),
        fused=True,
    )
    generator = random.Random(options.seed)
    best, kept = math.inf, model
    for step, windows in enumerate(batches(texts, options.steps, generator), start=1):
        share = step / options.steps
        rate = LEARNING_RATE * min(1.0, step / WARM_UP, 2 * (1.01 - share))
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model.train()(input_ids=windows, use_cache=False).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % EVALUATED_EVERY == 0 or step == options.steps:
            now = evaluate.perplexity(model.eval(), held_out, bos=BOS).value
            print(f"step {step}: loss {loss.item():.3f}, held-out perplexity {now:.3f}", flush=True)
            if now < best:
                best, kept = now, copy.deepcopy(model)
    return kept.eval()


def batches(
    texts: Sequence[Sequence[int]], steps: int, generator: random.Random
) -> Iterator[torch.Tensor]:
    """Windows of the stream of all stories, in another order each time, [windows, length]."""
    done = 0
    for length, share in WINDOWS:
        until = round(share * steps)
        while done < until:
            stream: list[int] = []
            while len(stream) < 2 * TOKENS:
                stream += chain.from_iterable([BOS, *t, EOS] for t in shuffled(texts, generator))
            start = generator.randrange(length)
            windows = list(torch.tensor(stream[start:]).split(length))[:-1]
            ordered = shuffled(windows, generator)
            size = TOKENS // length
            for place in range(0, len(ordered) - size + 1, size):
                if done == until:
                    break
                yield torch.stack(ordered[place : place + size])
                done += 1


def shuffled(items: Sequence, generator: random.Random) -> list:
    return generator.sample(items, len(items))


if __name__ == "__main__":
    main()
