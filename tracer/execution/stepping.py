"""Models run as generation runs them: a prefill, then one token at a time over the cache.

    inputs = {"input_ids": ids, "attention_mask": mask}
    tracer.compare(Stepping(model, steps=16), Stepping(prefill, decode, steps=16), inputs)
    tracer.compare(Stepped(model, steps=16), Stepping(prefill, decode, steps=16), inputs)

In the second line the reference does not step itself: it runs once over all positions.

The last tokens of each row of the inputs are the steps' (teacher forcing), so that both sides see
the same tokens whatever they predict. Call #0 of a module is that of the prefill, call #k that of
the k-th step, also where a second model takes the steps. Modules go by their names in their own
model; where there are two models, by `prefill.` or `decode.` and that name.

Rows may be of different lengths. Those that are padded on the right leave a gap in the cache, which
the mask hides:

    a b c d . .        a b . | c d
    e f g h i .   ->   e f g | h i     of two steps
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trace_model.annotations import checked
from tracer.errors import InputError, UsageError
from tracer.execution.replay import Replay
from tracer.execution.standin import StandIn
from tracer.tensors.roles import DEFAULT_ROLES, Roles

# What a prefill is given for each token.
_PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")


class Driver(nn.Module):
    """Runs one or two models; their modules are compared by their own names."""

    @property
    def stages(self) -> dict[str, nn.Module]:
        """The models by the prefix of their modules' names, which is empty for one alone."""
        raise NotImplementedError


@checked(UsageError)
class Stepping(Driver):
    """One or two causal language models of transformers' kind as they generate.

    Args:
        prefill: takes the prompts and makes the cache.
        decode: takes one token of each row at a time; `prefill` itself by default.
        steps: how many of the last tokens of each row are steps.

    Raises:
        UsageError: fewer than one step.
    """

    def __init__(self, prefill: nn.Module, decode: nn.Module | None = None, *, steps: int) -> None:
        super().__init__()
        _check_steps(steps)
        self.prefill = prefill
        self.decode = prefill if decode is None else decode
        self.steps = steps
        self.training = prefill.training  # the models stay in their own modes

    @property
    def stages(self) -> dict[str, nn.Module]:
        """The models by the prefix of their modules' names, which is empty for one alone."""
        if self.prefill is self.decode:
            return {"": self.prefill}
        return {"prefill": self.prefill, "decode": self.decode}

    def forward(self, **inputs: Tensor) -> Tensor:
        """Returns the logits of all positions of `ending_in_steps(inputs)`.

        Args:
            **inputs: token ids [batch, sequence] as `input_ids`, their `attention_mask`, and what
                else the prefill takes: images and the like.
        """
        inputs = ending_in_steps(inputs, self.steps)
        output = self.prefill(**prompt_of(inputs, self.steps), use_cache=True)
        logits = [output.logits]
        deltas = _image_deltas(self.prefill, inputs)
        for step in range(self.steps, 0, -1):
            output = self.decode(**self.step_inputs(inputs, step, output.past_key_values, deltas))
            logits.append(output.logits)
        return torch.cat(logits, dim=1)

    def step_inputs(
        self, inputs: Mapping[str, Tensor], left: int, cache: Any, deltas: Tensor | None = None
    ) -> dict[str, Any]:
        """What a step is given.

        Args:
            inputs: as `ending_in_steps` returns them.
            left: how many steps are left, this one included.
            cache: of the positions before.
            deltas: what images take off the positions, [batch, 1]; None without images.
        """
        ids, mask, positions = (
            inputs[name] for name in ("input_ids", "attention_mask", "position_ids")
        )
        end = ids.shape[1] - left + 1
        position = positions[:, end - 1 : end]
        return {
            "input_ids": ids[:, end - 1 : end],
            "attention_mask": mask[:, :end],
            "position_ids": position if deltas is None else (position + deltas).expand(3, -1, -1),
            "past_key_values": cache,
            "use_cache": True,
        }


@checked(UsageError)
class Stepped(Driver, StandIn):
    """A reference that runs once over all positions, and is compared as if it had stepped.

    Its calls are reported once for each step, to be compared with those of a `Stepping`. Memory
    holds the values of one forward pass meanwhile.

    Args:
        model: takes whole sequences.
        steps: how many of the last tokens of each row are steps.
        roles: which arguments are masks and caches, as their names say.

    Raises:
        UsageError: fewer than one step.
    """

    def __init__(self, model: nn.Module, *, steps: int, roles: Roles = DEFAULT_ROLES) -> None:
        super().__init__()
        _check_steps(steps)
        self.model = model
        self.steps = steps
        self.roles = roles
        self.training = model.training

    @property
    def stages(self) -> dict[str, nn.Module]:
        return {"": self.model}

    def event_source(self) -> Replay:
        """What keeps the calls of its forward pass, and reports them once for each step."""
        return Replay(self.steps, self.roles)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Returns the logits of all positions of `ending_in_steps(inputs)`; see `Stepping`."""
        inputs = ending_in_steps(inputs, self.steps)
        logits: Tensor = self.model(**inputs, use_cache=True).logits
        return logits


def stages_of(model: nn.Module) -> Mapping[str, nn.Module]:
    """The models that a run calls, by the prefix of their modules' names."""
    return model.stages if isinstance(model, Driver) else {"": model}


@checked(UsageError)
def decode_step(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The keyword arguments of one decode step: the last token of each row, and the cache of the
    tokens before it.

    Args:
        model: computes the cache.
        inputs: as for `Stepping`.

    Raises:
        InputError: see `ending_in_steps`.
    """
    stepping = Stepping(model, steps=1)
    inputs = ending_in_steps(inputs, 1)
    with torch.no_grad():
        output = model(**prompt_of(inputs, 1), use_cache=True)
    return stepping.step_inputs(inputs, 1, output.past_key_values, _image_deltas(model, inputs))


def prompt_of(inputs: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
    """What is left for the prefill of the inputs that `ending_in_steps` returns."""
    prompt = {
        name: value[:, :-steps] if name in (*_PER_TOKEN, "position_ids") else value
        for name, value in inputs.items()
    }
    if _with_images(inputs):
        del prompt["position_ids"]  # images have positions of their own, which the model counts
    return prompt


@checked(UsageError)
def ending_in_steps(inputs: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
    """Moves the last tokens of each row into the last columns; see this module's picture.

    Args:
        inputs: token ids [batch, sequence] as `input_ids`, with an `attention_mask` of the same
            shape that is 0 for padding, or none; what else there is stays as it is.
        steps: how many tokens of each row.

    Returns:
        The inputs with an attention mask, and the positions of the tokens as `position_ids`.

    Raises:
        InputError: no token ids, a mask of another shape, a row of no more than `steps` tokens, or
            an image among these.
    """
    ids = inputs.get("input_ids")
    if ids is None or ids.dim() != 2:
        found = ", ".join(inputs) if ids is None else f"input_ids of shape {list(ids.shape)}"
        raise InputError(f"found {found}; decode steps take input_ids of [batch, sequence]")
    given = inputs.get("attention_mask")
    visible = torch.ones_like(ids, dtype=torch.bool) if given is None else given.bool()
    if visible.shape != ids.shape:
        raise InputError(
            f"found an attention_mask of shape {list(visible.shape)}; decode steps take one of "
            f"the tokens' shape, {list(ids.shape)}"
        )
    lengths = visible.sum(dim=1, keepdim=True)
    if int(lengths.min()) <= steps:
        raise InputError(
            f"a row has {int(lengths.min())} tokens, of which {steps} would be decode steps, and "
            "at least one is to be left for the prefill: give longer rows or fewer steps"
        )
    is_step = visible & (visible.cumsum(dim=1) > lengths - steps)
    is_prompt = visible & ~is_step
    kinds = inputs.get("mm_token_type_ids")
    if kinds is not None and (kinds.bool() & is_step).any():
        raise InputError(
            f"the last {steps} tokens of a row hold some of an image, which no decode step takes: "
            "give more text after it or fewer steps"
        )
    columns = is_prompt.any(dim=0)

    def moved(values: Tensor) -> Tensor:
        return torch.cat([values[:, columns], values[is_step].view(len(ids), steps)], dim=1)

    mask = moved(is_prompt | is_step) & torch.cat(
        [is_prompt[:, columns], torch.ones_like(is_step[:, :steps])], dim=1
    )
    made = {name: moved(value) for name, value in inputs.items() if name in _PER_TOKEN}
    made["attention_mask"] = mask.long()
    made["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return {**inputs, **made}


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise UsageError(f"steps {steps}: expected at least 1")


def _with_images(inputs: Mapping[str, Tensor]) -> bool:
    return not inputs.keys() <= {*_PER_TOKEN, "position_ids"}


def _image_deltas(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """What images took off the positions in a model's prefill, [batch, 1]; None without images."""
    if not _with_images(inputs):
        return None
    deltas: Tensor | None = getattr(getattr(model, "model", None), "rope_deltas", None)
    return deltas
