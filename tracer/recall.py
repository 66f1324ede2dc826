"""Calls a module again while both models stand at one of its events.

Hooks see nothing of it, since neither model is running; what the module keeps from call to call and
the random numbers stay as they were.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from tracer.errors import ModelRunError
from tracer.session import state_kept
from tracer.states import random_state_kept
from tracer.values import deep_copy


def inputs_kept(arguments: Mapping[str, object]) -> dict[str, object]:
    """A copy of a call's arguments that nothing the call does will change."""
    copied: dict[str, object] = deep_copy(dict(arguments), lambda tensor: tensor.detach().clone())
    return copied


def call_again(
    name: str, module: nn.Module, arguments: Mapping[str, object], positional: Sequence[str]
) -> object:
    """Returns what a module returns for the given arguments, which it may write to.

    Args:
        name: the module's, for an error.
        arguments: by parameter name.
        positional: which of them go by position, in order.

    Raises:
        ModelRunError: it raised.
    """
    keywords = {key: value for key, value in arguments.items() if key not in positional}
    with state_kept((module,)), random_state_kept(), torch.no_grad():
        try:
            return module(*(arguments[key] for key in positional), **keywords)
        except Exception as error:
            raise ModelRunError(
                f"module {name!r} ({type(module).__name__}) raised {type(error).__name__} when it "
                f"was called again to isolate its error: {error}"
            ) from error
