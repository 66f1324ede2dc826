"""What is measured of a trial.

| metric | what |
|---|---|
| `loss`, `perplexity` | of the text, per token (nats); `losses` and `tokens` by document; of a decode model as deployed: the prompt by the quantised prefill, then its own past |
| `float_loss` | the float model's on the same tokens |
| `quantized_past_loss`, `float_past_loss` | of a decode model: one step at a time, over a past made whole by the quantised prefill, or by the float model |
| `float_step_loss` | the float model's on the same tokens as these two |
| `equal`, `first_different` | of greedy continuations: the share of tokens that are the float model's, and the mean index of the first that is not (its length where there is none) |
| `repetition`, `degenerate` | of the continuations, see `GenerationCheck` |
| `weights_peir`, `attention_peir` | PEIR of the attention weights (the softmax) and of the attention's output, by layer |
| `layer_l2` | relative L2 error of each decoder layer's output |
| `quantized_past_layer_l2`, `..._own_l2`, `..._sensitivity` | of a decode model, in steps that the float model takes over the same past: the error of each layer's output, what of it the layer introduces itself, and the error of the logits with that layer alone quantised; see `wrappers.evaluate.layers` |
| `float_past_layer_l2`, ... | the same three over the float model's past |
| `mask_saturation` | the share of the values at the mask points (logits with their mask) that lie beyond the points' range |
| `mask_step` | the largest step of such a point, in logits |
| `leak`, `leaking` | the most attention that a query of any head pays in total to keys hidden from it, and the share of queries that pay more than 1 % |
| `tasks` | by task of lm-eval, its accuracy, or its first metric where it has none |
"""  # noqa: E501

from __future__ import annotations

import functools
import io
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn

from wrappers import evaluate
from wrappers.core.module import iter_wrappers
from wrappers.deploy.runtime import Runtime
from wrappers.evaluate.opening import head_of, with_images
from wrappers.studies.execute.quantising import decode_model, prefill_model
from wrappers.studies.plan.trials import Trial
from wrappers.studies.plan.workload import LoadedWorkload, Workload, load

MASK_POINT = "mask_add"
_PROBE = 96  # tokens of a sequence that is compared layer by layer
_STEPS = 32  # sequences that are taken one decode step further for that
_PROMPT = 8  # tokens of a text that the prefill reads before the decode model is scored
_EVERY = 4  # one token in this many is scored over a past that is given
_TOGETHER = 32  # texts that are decoded side by side
_LEAK_WINDOW, _LEAK_PARTS = 256, 16  # of the texts in which leaks are looked for
_LEAKS = 0.01  # of a query's attention
_WINDOWS = 4  # windows that a prefill scores side by side


def measure(loaded: LoadedWorkload, trial: Trial) -> dict[str, Any]:
    """Quantises as a trial's settings say, and measures."""
    prefill = prefill_model(loaded, trial)
    if "source" not in trial.settings:
        return _of_prefill(loaded, prefill)
    return _of_decode(loaded, prefill, decode_model(loaded, trial, prefill))


def _of_prefill(loaded: LoadedWorkload, model: nn.Module) -> dict[str, Any]:
    metrics = _losses(_scored(loaded, model))
    metrics["float_loss"] = _float_loss(loaded.workload, _scored)
    metrics |= _generated(loaded, model)
    metrics |= _by_layer(loaded.model, model, _probe(loaded)) | _of_masks(model, _probe(loaded))
    return metrics | _leaks(loaded, model) | _tasks(loaded, model)


def _of_decode(loaded: LoadedWorkload, prefill: nn.Module, decode: nn.Module) -> dict[str, Any]:
    metrics = _losses(_deployed(loaded, prefill, decode))
    metrics["float_loss"] = _float_loss(loaded.workload, _deployed)
    metrics["float_step_loss"] = _float_loss(loaded.workload, _stepped)
    for name, past in (("quantized_past", prefill), ("float_past", loaded.model)):
        metrics[f"{name}_loss"] = _stepped(loaded, past, decode).loss
        metrics |= {
            f"{name}_{metric}": errors
            for metric, errors in _of_layers(loaded, decode, past=past).items()
        }
    longest = max(map(len, loaded.prompts), default=0) + loaded.workload.new_tokens
    metrics |= _generated(loaded, Runtime(prefill, decode, capacity=longest))
    return metrics | _tasks(loaded, evaluate.DecodedModel(prefill, decode, prompt=_PROMPT))


def _scored(loaded: LoadedWorkload, model: nn.Module) -> evaluate.Perplexity:
    window = loaded.workload.window
    return evaluate.perplexity(model, loaded.texts, bos=loaded.bos, window=window, batch=_WINDOWS)


def _deployed(
    loaded: LoadedWorkload, prefill: nn.Module, decode: nn.Module | None = None
) -> evaluate.Perplexity:
    return evaluate.decoded_perplexity(
        prefill, prefill if decode is None else decode, loaded.texts, **_of_steps(loaded)
    )


def _stepped(
    loaded: LoadedWorkload, past: nn.Module, decode: nn.Module | None = None
) -> evaluate.Perplexity:
    return evaluate.step_perplexity(
        past, past if decode is None else decode, loaded.texts, every=_EVERY, **_of_steps(loaded)
    )


def _of_steps(loaded: LoadedWorkload) -> dict[str, Any]:
    window = loaded.workload.window
    prompt = max(_PROMPT, _images(loaded) + 1)
    return {"bos": loaded.bos, "prompt": prompt, "window": window, "batch": _TOGETHER}


def _images(loaded: LoadedWorkload) -> int:
    """How many tokens of each sequence come before the text, where it begins with images."""
    return len(loaded.bos.ids) if isinstance(loaded.bos, evaluate.Opening) else 0


@functools.lru_cache(maxsize=4)
def _float_loss(
    workload: Workload, score: Callable[[LoadedWorkload, nn.Module], evaluate.Perplexity]
) -> float:
    """The float model's, which is the same in all trials."""
    loaded = load(workload)
    return score(loaded, loaded.model).loss


def _losses(found: evaluate.Perplexity) -> dict[str, Any]:
    return {
        "loss": found.loss,
        "perplexity": found.value,
        "losses": list(found.losses),
        "tokens": list(found.tokens),
    }


def _generated(loaded: LoadedWorkload, model: nn.Module | Runtime) -> dict[str, Any]:
    new_tokens = loaded.workload.new_tokens
    if not loaded.prompts or not new_tokens:
        return {}
    capacity = model.capacity if isinstance(model, Runtime) else None
    reference = _float_texts(loaded.workload, capacity)
    prompts = _prompts(loaded)
    check = evaluate.generation_check(reference, model, prompts, max_new_tokens=new_tokens)
    places = [
        len(text.reference) if (at := text.first_different) is None else at
        for text in check.continuations
    ]
    return {
        "equal": check.equal_share,
        "first_different": statistics.mean(places),
        "repetition": check.repetition[1],
        "degenerate": check.degenerate[1],
    }


@functools.lru_cache(maxsize=2)
def _float_texts(workload: Workload, capacity: int | None) -> tuple[tuple[int, ...], ...]:
    """What the float model writes in all trials; with a capacity it runs over a static cache."""
    loaded = load(workload)
    model = loaded.model if capacity is None else Runtime(loaded.model, capacity=capacity)
    check = evaluate.generation_check(
        model, model, _prompts(loaded), max_new_tokens=workload.new_tokens
    )
    return tuple(text.reference for text in check.continuations)


def _prompts(loaded: LoadedWorkload) -> list[dict[str, Tensor]]:
    return [with_images(torch.tensor([list(ids)]), loaded.bos) for ids in loaded.prompts]


def _probe(loaded: LoadedWorkload) -> dict[str, Any]:
    """A sequence of the text that is scored, for what is compared value by value."""
    return {**with_images(_sequences(loaded)[:1], loaded.bos), "use_cache": False}


def _sequences(loaded: LoadedWorkload) -> Tensor:
    """Parts of the text that is scored, token ids [parts, length], BOS included.

    The first is of the longest document; all have the length that it allows.
    """
    head = head_of(loaded.bos)
    texts = sorted(loaded.texts, key=len, reverse=True)
    most = _PROBE + _images(loaded)
    most = min(most, loaded.workload.window or most) - len(head)
    length = min(most, len(texts[0]))
    parts = [
        [*head, *ids[start : start + length]]
        for ids in texts
        for start in range(0, len(ids) - length + 1, length)
    ]
    return torch.tensor(parts)


def _by_layer(reference: nn.Module, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    import tracer

    comparison = tracer.compare(reference, model, inputs, confirm=False)
    found: dict[str, list[float]] = {"weights_peir": [], "attention_peir": [], "layer_l2": []}
    for row in comparison.rows:
        if not row.is_output or row.difference is None:
            continue
        if row.module.endswith(".self_attn"):
            name = {"output.0": "attention_peir", "output.1": "weights_peir"}[row.value]
            found[name].append(row.difference.peir)
        elif row.module.rpartition(".")[0].endswith("layers"):
            found["layer_l2"].append(row.difference.relative_l2)
    return found


def _of_layers(
    loaded: LoadedWorkload, decode: nn.Module, *, past: nn.Module
) -> dict[str, list[float]]:
    """Errors of the layers in one decode step, which both models take over the same past."""
    import tracer

    sequences = with_images(_sequences(loaded)[:_STEPS], loaded.bos)
    step = tracer.models.decode_step(past, sequences)
    layers = evaluate.layer_errors(loaded.model, decode, step)
    return {
        "layer_l2": [layer.inherited for layer in layers],
        "layer_own_l2": [layer.introduced for layer in layers],
        "layer_sensitivity": [layer.sensitivity for layer in layers],
    }


def _of_masks(model: nn.Module, inputs: dict[str, Any]) -> dict[str, float]:
    attentions = [each for _, each in iter_wrappers(model) if MASK_POINT in each.points]
    with ExitStack() as stack, torch.no_grad():
        counted = [stack.enter_context(each.count_rounding()) for each in attentions]
        model(**inputs)
    masks = [points[MASK_POINT] for points in counted if MASK_POINT in points]
    seen = sum(shares["values"] for shares in masks)
    beyond = sum(shares["values"] * shares["saturated"] for shares in masks)
    steps = [each.points[MASK_POINT].qparams for each in attentions]
    return {
        "mask_saturation": beyond / max(1, seen),
        "mask_step": max(
            (float(each.scale.max()) for each in steps if each is not None), default=0.0
        ),
    }


@torch.no_grad()
def _leaks(loaded: LoadedWorkload, model: nn.Module) -> dict[str, float]:
    """What causal attention pays to later keys, over parts of the texts that are scored."""
    limits = (loaded.workload.window, evaluate.positions_of(loaded.model))
    most = _LEAK_WINDOW + _images(loaded)
    most = min(most, *(limit for limit in limits if limit is not None))
    paid = []
    for part in evaluate.windows(loaded.texts, window=most, bos=loaded.bos)[:_LEAK_PARTS]:
        inputs = with_images(torch.tensor([part.ids]), loaded.bos)
        for weights in model(**inputs, use_cache=False, output_attentions=True).attentions:
            paid.append(weights.triu(1).sum(-1).flatten())  # of [1, heads, queries, keys]
    every = torch.cat(paid)
    return {"leak": float(every.max()), "leaking": float((every > _LEAKS).float().mean())}


def _tasks(loaded: LoadedWorkload, model: nn.Module) -> dict[str, Any]:
    workload = loaded.workload
    if not workload.tasks:
        return {}
    with _quiet():
        found = evaluate.run_tasks(
            model,
            loaded.tokenizer,
            workload.tasks,
            data=workload.task_data,
            limit=workload.task_limit,
            batch=_TOGETHER,
        )
    return {"tasks": dict(_score(task, scores) for task, scores in found["results"].items())}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's bars and what its subprocesses say: the study has bars of its own.

    What fails there is raised all the same.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _score(task: str, scores: Mapping[str, Any]) -> tuple[str, float]:
    """The accuracy of a task; of one that has none its first metric, by name."""
    if "acc,none" in scores:
        return task, float(scores["acc,none"])
    metric = next(name for name in scores if name.endswith(",none") and "_stderr" not in name)
    return f"{task} {metric.removesuffix(',none')}", float(scores[metric])
