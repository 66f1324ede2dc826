"""How wrapper tests compare a wrapped model with its float model, module by module."""

import inspect
import math

import pytest
import torch

from wrappers.core.module import QuantModule

VARIANTS = pytest.mark.parametrize("variant", ["prefill", "prefill_reference"])
EACH_VARIANT = pytest.mark.parametrize("variant", ["prefill", "prefill_reference", "decode"])
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["eager", "sdpa"])
BATCHES = pytest.mark.parametrize(("batch", "length", "side"), [
    (1, 1, None), (1, 7, None), (3, 16, None), (3, 16, "left"), (3, 16, "right"), (1, 97, None),
])  # fmt: skip


def peir(reference, candidate):
    """Peak error to interval ratio of two tensors of one shape."""
    reference, candidate = reference.detach().double(), candidate.detach().double()
    error = (reference - candidate).abs().max()
    interval = reference.max() - reference.min()
    return 0.0 if error == 0 else float(error / interval)


def padding(batch, length, side):
    """An attention mask, int64 [batch, length], with more padding in each row than in the last."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    for row in range(batch):
        count = row * length // (batch + 1)
        if side == "left":
            mask[row, :count] = 0
        elif side == "right":
            mask[row, length - count :] = 0
    return mask


def redrawn(model, seed=0):
    """The model with weights that keep the variance, and with no norm and no bias neutral."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
            else:
                parameter.copy_(parameter + 0.2 * noise)
    return model


def with_checkpointing(model):
    """The model in training, with the activations of its layers computed again as needed."""
    # The older name warns where there is the newer one.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    getattr(model, next(name for name in names if hasattr(model, name)))()
    return model.train()


def record(model, **inputs):
    """Runs a model.

    Returns:
        Its output, and the calls of all modules in the order in which they end: (name, arguments
        by name, parts of the output in the reference's form).
    """
    calls, hooks = [], []

    def hook(name):
        def after(module, args, kwargs, output):
            names = inspect.signature(module.forward).parameters
            if isinstance(module, QuantModule) and hasattr(module, "to_reference_output"):
                output = module.to_reference_output(output)
            calls.append((name, dict(zip(names, args, strict=False)) | kwargs, _parts(output)))

        return after

    for name, module in model.named_modules():
        hooks.append(module.register_forward_hook(hook(name), with_kwargs=True))
    with torch.no_grad():
        output = model(**inputs)
    for handle in hooks:
        handle.remove()
    return output, calls


def assert_modules_agree(model, wrapped, limit, **inputs):
    """Same calls, same arguments by name (but that None may be left out), same form of output, and
    every tensor within `limit`.

    Returns:
        The output of the wrapped model.
    """
    _, expected_calls = record(model, **inputs)
    found, found_calls = record(wrapped, **inputs)
    assert_calls_agree(expected_calls, found_calls, limit)
    return found


def assert_calls_agree(expected_calls, found_calls, limit):
    """Likewise, of calls that `record` gave."""
    names = [name for name, _, _ in expected_calls]
    assert [name for name, _, _ in found_calls] == names, "the same calls in the same order"
    for (name, arguments, reference), (_, other, candidate) in zip(
        expected_calls, found_calls, strict=True
    ):
        for key in arguments.keys() ^ other.keys():
            assert (arguments | other)[key] is None, (name, key)
        assert len(candidate) == len(reference), name
        for r, c in zip(reference, candidate, strict=True):
            assert type(r) is type(c), name
            if isinstance(r, torch.Tensor):
                assert r.shape == c.shape and r.dtype == c.dtype, name
                assert peir(r, c) <= limit, name


def _parts(output):
    """The members of an output, those of a list or tuple in it one by one."""
    if isinstance(output, dict):
        output = tuple(output.values())
    if not isinstance(output, tuple | list):
        return (output,)
    return tuple(part for member in output for part in _parts(member))
