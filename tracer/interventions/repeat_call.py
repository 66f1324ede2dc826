"""A call that can be made again while both models stand at one of its events, as if for the first
time: with the same arguments, random numbers, and state of the module.

Hooks see nothing of it, since neither model is running, and nothing of it is left behind.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import nn

from tracer.errors import ModelRunError
from tracer.execution.hooks import Call
from tracer.execution.kept_tensors import has_same_numbers
from tracer.execution.module_state import ModuleStates, module_states_kept
from tracer.execution.state import RandomStates, random_state_kept
from tracer.tensors.kinds import copied
from tracer.tensors.leaves import tensor_leaves, version_of
from tracer.tensors.rebuilding import deep_copy


class Recall:
    """Takes down what a call begins with; to be made at its start, or where all is as it was then.

    Args:
        call: whose module is called again.
        arguments: what it is given, by parameter name; the call's own by default.

    Attributes:
        leaves_nothing: calls were seen to change nothing in the module, and to draw no random
            number: see `settle`.
    """

    def __init__(self, call: Call, arguments: Mapping[str, object] | None = None) -> None:
        self.leaves_nothing = False
        self._call = call
        self._arguments = deep_copy(dict(call.arguments if arguments is None else arguments))
        self._modules = list(call.module.modules())
        self._states = ModuleStates.read(self._modules)
        self._random = RandomStates.read(beyond_torch=True)
        self._is_begun = False  # whether all is as it was then
        # Of each tensor in the arguments a copy that calls are given until one edits it.
        self._copies: dict[int, torch.Tensor] = {}
        self._versions: list[tuple[torch.Tensor, int | None]] = []
        self._keeps_copies = False

    def __call__(self, *within: AbstractContextManager[None]) -> tuple[object, dict[str, object]]:
        """Calls the module, and puts back what that has changed; see `again`."""
        with self.opened():
            return self.again(*within)

    @contextmanager
    def opened(self, *, is_begun: bool = False) -> Iterator[None]:
        """Puts back what calls of the module change, once for all that are made meanwhile.

        Args:
            is_begun: all is now as it was when this was made.
        """
        states = self._states if is_begun else None
        with module_states_kept((self._call.module,), states), random_state_kept():
            self._is_begun = is_begun
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
        if not self.leaves_nothing:
            self._rewind()
        self._is_begun = False
        arguments = self._given()
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

    def settle(
        self,
        may_keep: Callable[[nn.Module], bool],
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> object:
        """Calls the module, and looks whether calls leave something that the next one would see.

        Of what the first call leaves, a second one may show that it makes no difference: a weight
        that is kept in another form. Then calls begin with that, and little is left to put back.

        Args:
            may_keep: says of a module whether it knows when what it keeps no longer holds, as
                something is changed for the next call.
            within: makes a context that it is called in.

        Returns:
            What it returned.
        """
        output, _ = self.again(within())
        self._keeps_copies = self._are_copies_unchanged() and all(
            has_same_numbers(self._copies[id(tensor)], tensor)
            for _, tensor in tensor_leaves(self._arguments, "")
        )
        is_settled = self._is_as_begun()
        if not is_settled:
            before, self._states = self._states, ModuleStates.read(self._modules)
            self._is_begun = False
            other, _ = self.again(within())
            is_settled = (
                have_same_numbers(output, other)
                and self._is_as_begun()
                and self._have_kept_nothing(before, [m for m in self._modules if not may_keep(m)])
            )
            self._states = self._states if is_settled else before
        self.leaves_nothing = self._is_begun = is_settled
        return output

    @contextmanager
    def changed_by(self, *contexts: AbstractContextManager[None]) -> Iterator[None]:
        """Lets calls begin with what contexts change in the module, while it is `opened`."""
        self._rewind()
        begun = self._states
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            if not self.leaves_nothing:
                self._states = ModuleStates.read(self._modules)
            yield
        self._states = begun

    def has_held(self) -> bool:
        """Whether calls have left nothing since, if `settle` said so; else they are to be made
        once more, and are put back after each."""
        if self.leaves_nothing and not self._is_as_begun():
            self.leaves_nothing = False
            return False
        return True

    def _rewind(self) -> None:
        """Puts back what calls have changed."""
        if not self._is_begun:
            self._states.write()
            self._random.write()
            self._is_begun = True

    def _is_as_begun(self) -> bool:
        drawn = RandomStates.read(beyond_torch=True)
        return self._states.hold() and drawn.equals(self._random)

    def _have_kept_nothing(self, before: ModuleStates, modules: Sequence[nn.Module]) -> bool:
        """Whether some of the modules are now as they were before the first call."""
        if not modules:
            return True
        before.write()
        states = ModuleStates.read(modules)
        self._states.write()
        return states.hold()

    def _given(self) -> dict[str, object]:
        """The arguments for one call, of which nothing is edited that another call is given."""
        if not self._keeps_copies or not self._are_copies_unchanged():
            leaves = [tensor for _, tensor in tensor_leaves(self._arguments, "")]
            self._copies = {id(tensor): copied(tensor) for tensor in leaves}
            self._versions = [(copy, version_of(copy)) for copy in self._copies.values()]
        given: dict[str, object] = deep_copy(self._arguments, lambda t: self._copies[id(t)])
        return given

    def _are_copies_unchanged(self) -> bool:
        return all(known is not None and version_of(t) == known for t, known in self._versions)


def have_same_numbers(value: object, other: object) -> bool:
    """Whether two values hold the same tensors."""
    both = [dict(tensor_leaves(each, "")) for each in (value, other)]
    return both[0].keys() == both[1].keys() and all(
        tensor.dtype == both[1][path].dtype and has_same_numbers(tensor, both[1][path])
        for path, tensor in both[0].items()
    )
