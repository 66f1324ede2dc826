"""A function in another file that calls a module, for the tests of callers' lines."""

from torch import Tensor, nn


def call_it(module: nn.Module, x: Tensor) -> Tensor:
    """Calls the module on the last line of this file."""
    return module(x)
