"""A call that can be made again while both models stand at one of its events, as if for the first
time: with the same arguments, random numbers, and state of the module.

Hooks see nothing of it, since neither model is running, and nothing of it is left behind.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import NoneType

import torch

from tracer.errors import ModelRunError
from tracer.execution.hooks import Call
from tracer.execution.module_state import ModuleStates, has_same_numbers, module_states_kept
from tracer.execution.state import RandomStates, random_state_kept
from tracer.tensors.leaves import deep_copy, tensor_leaves, version_of


class Recall:
    """Takes down what a call begins with; to be made at its start, or where all is as it was then.

    Args:
        call: whose module is called again.
        arguments: what it is given, by parameter name; the call's own by default.

    Attributes:
        leaves_nothing: the first of several calls was seen to change nothing: neither the module
            nor what it was given, and to draw no random number. Known once there is a second.
    """

    def __init__(self, call: Call, arguments: Mapping[str, object] | None = None) -> None:
        self.leaves_nothing = False
        self._call = call
        self._arguments = deep_copy(dict(call.arguments if arguments is None else arguments))
        self._states = ModuleStates.read(list(call.module.modules()))
        self._random = RandomStates.read(beyond_torch=True)
        self._calls = 0
        self._copy: dict[str, object] = {}
        self._versions: list[tuple[torch.Tensor, int | None]] = []

    def __call__(self, *within: AbstractContextManager[None]) -> tuple[object, dict[str, object]]:
        """Calls the module, and puts back what that has changed; see `again`."""
        with self.opened():
            return self.again(*within)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Puts back what calls of the module change, once for all that are made meanwhile."""
        with module_states_kept((self._call.module,)), random_state_kept():
            yield

    @contextmanager
    def changed_by(self, *contexts: AbstractContextManager[None]) -> Iterator[None]:
        """Lets calls begin with what contexts change in the module, while it is `opened`."""
        self._states.write()
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            self._states = ModuleStates.read(list(self._call.module.modules()))
            yield

    def again(self, *within: AbstractContextManager[None]) -> tuple[object, dict[str, object]]:
        """Calls the module while it is `opened`.

        Args:
            within: contexts that it is called in.

        Returns:
            What it returned, and its arguments with what it has left in them: copies, of which the
            next call is given the same if they have not changed.

        Raises:
            ModelRunError: it raised.
        """
        module, form = self._call.module, self._call.form
        self._rewind()
        arguments = self._copy
        args, kwargs = self._call.passed(arguments)
        autocast = self._call.autocast
        with torch.no_grad(), ExitStack() as stack:
            if autocast is not None:
                device = next((t.device for _, t in tensor_leaves(arguments, "")), None)
                stack.enter_context(torch.autocast(device.type if device else "cpu", autocast))
            for context in within:
                stack.enter_context(context)
            try:
                output = module(*args, **kwargs)
            except (Exception, SystemExit, GeneratorExit) as error:
                raise ModelRunError(
                    f"module {self._call.name!r} ({type(module).__name__}) raised "
                    f"{type(error).__name__} when it was called again to isolate its error: {error}"
                ) from error
        return output if form is None else form.see(output), arguments

    def _rewind(self) -> None:
        """Brings all to where the call began, of which little is left to do if it leaves nothing.

        What goes past the counters of edits is looked for after the first call, not after each.
        """
        if self._calls == 1:
            self.leaves_nothing = (
                self._is_copy_unchanged(by_version=False)
                and self._states.hold()
                and RandomStates.read(beyond_torch=True).equals(self._random)
            )
        self._calls += 1
        if not self.leaves_nothing or not self._is_copy_unchanged():
            self._copy = deep_copy(self._arguments)
            leaves = tensor_leaves(self._copy, "")
            self._versions = [(tensor, version_of(tensor)) for _, tensor in leaves]
        if not self.leaves_nothing or not self._states.hold(by_version=True):
            self._states.write()
            self._random.write()

    def _is_copy_unchanged(self, *, by_version: bool = True) -> bool:
        """Whether the copy of the arguments is as it was given; never of what is no tensor."""
        if not all(map(is_immutable, self._copy.values())):
            return False
        if any(known is None or version_of(tensor) != known for tensor, known in self._versions):
            return False
        given = (tensor for _, tensor in tensor_leaves(self._arguments, ""))
        return by_version or all(
            has_same_numbers(tensor, other)
            for (tensor, _), other in zip(self._versions, given, strict=True)
        )


def is_immutable(value: object) -> bool:
    """Whether nothing can be left in a value but numbers in its tensors."""
    if type(value) in (tuple, torch.Size):
        return all(map(is_immutable, value))  # type: ignore[call-overload]
    return isinstance(value, torch.Tensor | int | float | str | NoneType | torch.dtype)
