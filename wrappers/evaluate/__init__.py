"""Evaluation of causal LMs and of models with images: float, wrapped or quantised.

evaluate.perplexity(model, evaluate.documents(text, tokenizer), bos=tokenizer.bos_token_id)
evaluate.generation_check(reference, candidate, prompts, max_new_tokens=64)
evaluate.layer_errors(reference, candidate, inputs)  # by the tracer
evaluate.run_tasks(model, tokenizer, ["arc_easy"])  # by lm-eval
evaluate.image_questions(model, processor, "photos.jsonl")
"""

from wrappers.evaluate.decoded import DecodedModel
from wrappers.evaluate.generation import Continuation, GenerationCheck, generation_check, repetition
from wrappers.evaluate.harness import check_tasks, run_tasks
from wrappers.evaluate.layers import LayerError, layer_errors
from wrappers.evaluate.opening import Opening
from wrappers.evaluate.perplexity import (
    Perplexity,
    decoded_perplexity,
    perplexity,
    step_perplexity,
)
from wrappers.evaluate.questions import (
    ImageAnswer,
    ImageQuestion,
    ImageQuestions,
    image_questions,
    read_questions,
)
from wrappers.evaluate.text_windows import Window, documents, positions_of, windows

__all__ = [
    "Continuation", "DecodedModel", "GenerationCheck", "ImageAnswer", "ImageQuestion",
    "ImageQuestions", "LayerError", "Opening", "Perplexity", "Window", "check_tasks",
    "decoded_perplexity", "documents", "generation_check", "image_questions", "layer_errors",
    "perplexity", "positions_of", "read_questions", "repetition", "run_tasks", "step_perplexity",
    "windows",
]  # fmt: skip
