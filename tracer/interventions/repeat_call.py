"""A call that can be made again while both models stand at one of its events, as if for the first
time: with the same arguments, random numbers, and state of the module.

Hooks see nothing of it, since neither model is running, and nothing of it is left behind.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch

from tracer.errors import ModelRunError
from tracer.execution.hooks import Call
from tracer.execution.module_state import ModuleStates, module_states_kept
from tracer.execution.state import RandomStates, random_state_kept
from tracer.tensors.leaves import deep_copy, tensor_leaves


class Recall:
    """Takes down what a call begins with; to be made at its start.

    Args:
        call: whose module is called again.
        arguments: what it is given, by parameter name; the call's own by default.
    """

    def __init__(self, call: Call, arguments: Mapping[str, object] | None = None) -> None:
        self._call = call
        self._arguments = deep_copy(dict(call.arguments if arguments is None else arguments))
        self._states = ModuleStates.read(list(call.module.modules()))
        self._random = RandomStates.read(beyond_torch=True)

    def __call__(self, *within: AbstractContextManager[None]) -> tuple[object, dict[str, object]]:
        """Calls the module, and puts back what that has changed; see `again`."""
        with self.opened():
            return self.again(*within)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Puts back what calls of the module change, once for all that are made meanwhile."""
        with module_states_kept((self._call.module,)), random_state_kept():
            yield

    def again(self, *within: AbstractContextManager[None]) -> tuple[object, dict[str, object]]:
        """Calls the module while it is `opened`.

        Args:
            within: contexts that it is called in.

        Returns:
            What it returned, and its arguments with what it has left in them.

        Raises:
            ModelRunError: it raised.
        """
        module, form = self._call.module, self._call.form
        arguments: dict[str, object] = deep_copy(self._arguments)
        args, kwargs = self._call.passed(arguments)
        autocast = self._call.autocast
        with torch.no_grad(), ExitStack() as stack:
            if autocast is not None:
                device = next((t.device for _, t in tensor_leaves(arguments, "")), None)
                stack.enter_context(torch.autocast(device.type if device else "cpu", autocast))
            self._states.write()
            self._random.write()
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
