"""What the parsers of several commands share."""

import argparse
from typing import Any, NoReturn, TypeAlias

from tracer.choices import (
    BUILT_IN,
    CANDIDATES,
    DEFAULT_ACTIVATION,
    DEFAULT_BATCH,
    DEFAULT_CALIBRATE,
    DEFAULT_DEVICE,
    DEFAULT_DTYPE,
    DEFAULT_PADDING,
    DEFAULT_VARIANT,
    DEFAULT_WEIGHT,
    DTYPES,
    PADDING_SIDES,
)
from tracer.cli.exit_codes import ExitCode
from tracer.cli.requests import ModelRequest
from tracer.cli.types import count, file

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """Gives what was given and nothing else, and says what is wrong in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False, argument_default=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        self.exit(ExitCode.WRONG_USE, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_model(parser: Parser, others: str = "") -> None:
    """What MODEL may be.

    Args:
        others: what else it may be.
    """
    built_in = "; ".join(f"{name}: {what}" for name, what in BUILT_IN.items())
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=(
            f"a local folder, a Hugging Face hub id, or a built-in model ({built_in}); or a "
            "function, FILE.py:FUNCTION or MODULE:FUNCTION, that returns a model, or a pair of it "
            f"and its inputs by name, whose code is run{others}"
        ),
    )


def add_include(parser: Parser, verb: str) -> None:
    """The modules that the command does something with, by its verb."""
    parser.add_argument(
        "--include",
        action="append",
        metavar="GLOB",
        help=f"{verb} matching modules only (repeatable)",
    )


def add_candidate(parser: Parser) -> None:
    """A candidate instead of the model, for commands that run one of them."""
    parser.add_argument(
        "--candidate",
        metavar="KIND",
        help=(
            "a candidate made from the model instead of it, as `trace_model compare` makes it: "
            f"{', '.join(CANDIDATES)} (default: the model itself)"
        ),
    )


def add_making(parser: Parser) -> None:
    """How the model, its inputs and its wrapped or quantised form are made."""
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        help=(
            "of the weights, on both sides unless the candidate says otherwise; auto: as stored "
            f"(default: {DEFAULT_DTYPE}, so that rounding in half precision hides nothing)"
        ),
    )
    group.add_argument("--device", help=f"cpu, cuda, cuda:1, mps, ... (default: {DEFAULT_DEVICE})")
    group.add_argument(
        "--offload",
        nargs="?",
        const=True,
        metavar="FOLDER",
        help=(
            "leave the weights of both models on disk until a module needs its own, for models "
            "that do not fit in memory; those that a checkpoint does not hold as they are needed "
            "are kept in FOLDER meanwhile (default: the system's temporary folder)"
        ),
    )
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with a checkpoint (default: off)",
    )

    group = parser.add_argument_group("the inputs")
    group.add_argument(
        "--prompt",
        metavar="TEXT",
        help=(
            "a text (default: a short English one, or a question about --image; random tokens "
            "without a tokenizer, and around a synthetic image for a Qwen3-VL)"
        ),
    )
    group.add_argument(
        "--image",
        action="append",
        type=file,
        metavar="FILE",
        help=(
            "a photo that a Qwen3-VL sees before the prompt (repeatable: all in one sequence; with "
            "--batch one in each, or the only one in all)"
        ),
    )
    group.add_argument(
        "--processor",
        metavar="FOLDER|HUB_ID",
        help=(
            "what makes tokens and patches of prompt and images (default: the model's own); "
            "tiny-qwen3-vl, which has none, is built with its vocabulary"
        ),
    )
    group.add_argument(
        "--max-pixels",
        type=count(1),
        metavar="N",
        help=(
            "shrinks larger images to at most N pixels, for fewer tokens: a Qwen3-VL makes one of "
            "32 x 32 pixels"
        ),
    )
    group.add_argument(
        "--video",
        type=count(1),
        metavar="FRAMES",
        help="adds a synthetic clip of FRAMES frames to the synthetic image of a Qwen3-VL",
    )
    group.add_argument(
        "--sequence-length",
        type=count(1),
        metavar="N",
        help="tokens in the longest sequence; a text is repeated or cut to it (not with --image)",
    )
    group.add_argument(
        "--batch",
        type=count(1),
        metavar="N",
        help=(
            "sequences, of different lengths and padded if more than one (default: "
            f"{DEFAULT_BATCH})"
        ),
    )
    group.add_argument(
        "--padding",
        choices=PADDING_SIDES,
        help=f"the side that is padded (default: {DEFAULT_PADDING})",
    )
    group.add_argument(
        "--inputs",
        type=file,
        metavar="FILE.safetensors",
        help="the model's keyword arguments, instead of the above",
    )
    group.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help=(
            "of random inputs, of what a model writes to be calibrated on, of what drops out with "
            "--train, and of the weights of random-llama and tiny-qwen3-vl (default: "
            f"{ModelRequest.seed})"
        ),
    )

    group.add_argument(
        "--steps",
        type=count(1),
        metavar="N",
        help=(
            "generate: a prefill, and N decode steps with the last tokens of each sequence; with "
            "--variant decode the candidate's prefill is in the variant prefill"
        ),
    )

    group = parser.add_argument_group("the wrapped or quantised candidate")
    group.add_argument(
        "--variant",
        help=(
            "form of the wrappers: prefill, prefill_reference, or decode, which is run on the last "
            f"token of each sequence over the float model's cache (default: {DEFAULT_VARIANT})"
        ),
    )
    group.add_argument(
        "--activation",
        metavar="DTYPE",
        help=f"uint8, int16, ... (default: {DEFAULT_ACTIVATION})",
    )
    group.add_argument(
        "--weight", metavar="DTYPE", help=f"uint8, uint4, ... (default: {DEFAULT_WEIGHT})"
    )
    group.add_argument(
        "--calibrate",
        type=count(0),
        metavar="N",
        help=(
            "how many inputs to calibrate on besides the inputs themselves: sequences, synthetic "
            "images, or random parts of the images with other questions (default: "
            f"{DEFAULT_CALIBRATE})"
        ),
    )
    group.add_argument(
        "--calibration-text",
        type=file,
        metavar="FILE",
        help=(
            "a text to take them, or what is said about images, from (default: what the model "
            "writes itself, with this --seed; random tokens for one without a tokenizer)"
        ),
    )
