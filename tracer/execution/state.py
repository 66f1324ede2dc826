"""What outlives a switch between two models that run in one thread, or a call that is a trial.

Random numbers, and what a model may have switched on around a call: gradients, autocast, inference
mode, a default dtype or device, function and dispatch modes. Neither model must see the other's.
"""

import ctypes
import gc
import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from tracer.execution import torch_internals
from tracer.execution.hooks import Call, Phase
from tracer.execution.torch_internals import TorchDispatchMode

_AUTOCAST_DEVICES = ("cpu", "cuda")


class RandomNumbers:
    """One side's random numbers: both sides begin alike and draw without disturbing each other.

    In training each call of a paired module draws from a stream of its own, which its name and
    index begin and which ends with it: a side that makes calls in another order, or draws in other
    places in between, still drops the same elements in each of them.

    Python's and NumPy's own generators are switched in training, where models draw from them
    (to drop layers, to mask spectrograms), and where they were seen to move: reading their states
    takes 50 times as long as torch's.

    Args:
        is_training: whether a module of either side is in training mode.
        names: the reference's names of this side's paired modules; None for a single stream.
        beyond_torch: whether Python's and NumPy's generators are switched in evaluation, too.
    """

    def __init__(
        self, is_training: bool, names: Mapping[str, str] | None, *, beyond_torch: bool = False
    ) -> None:
        self._is_training = is_training
        self._beyond_torch = is_training or beyond_torch
        self._may_use_cuda = torch.backends.cuda.is_built()
        self._names = names if is_training and names is not None else {}
        self._states = RandomStates.read(beyond_torch=self._beyond_torch)
        self._cpu = _bytes_of(self._states.cpu)
        self._key = hashlib.blake2b(self._cpu, digest_size=32).digest()
        # Calls that have a stream of their own, each with the states of the one around it.
        self._around: list[tuple[Call, RandomStates]] = []

    def enter(self) -> None:
        """This side goes on."""
        torch.default_generator.set_state(self._states.cpu)
        if self._beyond_torch or self._states.cuda:
            self._states.write_others()

    def leave(self) -> bool:
        """The other side goes on.

        Returns:
            Whether this one has drawn since it went on last; in training it may.
        """
        entered = self._states
        is_more = self._beyond_torch or (self._may_use_cuda and torch.cuda.is_initialized())
        if not is_more and _bytes_of(torch.default_generator.get_state()) == self._cpu:
            return False
        self._states = RandomStates.read(beyond_torch=self._beyond_torch)
        self._cpu = _bytes_of(self._states.cpu)
        return not self._is_training and not self._states.equals(entered)

    @property
    def are_followed(self) -> bool:
        """Whether calls have streams of their own."""
        return bool(self._names)

    def follow(self, call: Call, phase: Phase) -> None:
        """Begins the stream of a call, or goes on with that of the call around it."""
        name = self._names.get(call.name)
        if name is None:
            return
        if phase is Phase.START:
            around = RandomStates.read(beyond_torch=True)
            self._around.append((call, around))
            text = f"{name}#{self._stream(name, call, around.cpu)}".encode()
            digest = hashlib.blake2b(text, digest_size=8, key=self._key).digest()
            _seed(int.from_bytes(digest, "little"))
            return
        # Those above it were left by an exception that the model has caught.
        while (ended := self._around.pop())[0] is not call:
            pass
        ended[1].write()

    def _stream(self, name: str, call: Call, around: torch.Tensor) -> str:
        """What tells the stream of a call from those of others of its name.

        Args:
            around: the random state in which it begins.
        """
        return str(call.index)


def _bytes_of(state: torch.Tensor) -> bytes:
    """A generator's state as what is compared in a tenth of the time that tensors take."""
    return ctypes.string_at(state.data_ptr(), state.numel())


def _seed(number: int) -> None:
    """Seeds every generator that models draw from; `torch.manual_seed` would take far longer."""
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    random.seed(number)
    np.random.seed(number % 2**32)


@contextmanager
def random_state_kept() -> Iterator["RandomStates"]:
    """Puts all generators of random numbers back to where they were, which it yields."""
    states = RandomStates.read(beyond_torch=True)
    try:
        yield states
    finally:
        states.write()


@contextmanager
def garbage_set_aside() -> Iterator[None]:
    """Lets the garbage collector look at what is made from here on only.

    It goes through everything that a process has imported otherwise, which takes longer than a run
    of a small model. What the caller has set aside stays so.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass(frozen=True, slots=True)
class ThreadState:
    """What a model may have switched on in PyTorch's thread state around a call of a module."""

    grad: bool
    inference: bool
    default_dtype: torch.dtype
    autocast: tuple[tuple[bool, torch.dtype], ...]
    autocast_cache: bool
    device: torch.device | None
    function_modes: list[TorchFunctionMode]
    dispatch_modes: list[TorchDispatchMode]

    @classmethod
    def capture(cls) -> "ThreadState":
        """The state that is in force."""
        return cls(
            grad=torch.is_grad_enabled(),
            inference=torch.is_inference_mode_enabled(),
            default_dtype=torch.get_default_dtype(),
            autocast=(
                (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
                (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")),
            ),
            autocast_cache=torch.is_autocast_cache_enabled(),
            device=torch_internals.default_device(),
            function_modes=torch_internals.function_modes(),
            dispatch_modes=torch_internals.dispatch_modes(),
        )

    def is_in_force(self) -> bool:
        """Whether it is the state now, without taking all of it down."""
        return (
            torch.is_grad_enabled() is self.grad
            and torch.is_inference_mode_enabled() is self.inference
            and torch.get_default_dtype() is self.default_dtype
            and torch.is_autocast_enabled("cpu") is self.autocast[0][0]
            and torch.is_autocast_enabled("cuda") is self.autocast[1][0]
            and torch.get_autocast_dtype("cpu") is self.autocast[0][1]
            and torch.get_autocast_dtype("cuda") is self.autocast[1][1]
            and torch.is_autocast_cache_enabled() is self.autocast_cache
            and torch_internals.are_set(self.device, self.function_modes, self.dispatch_modes)
        )

    def apply(self, current: "ThreadState") -> None:
        """Switches from the current state to this one, but for inference mode."""
        # Modes see PyTorch's functions being called, these here too: first out, last in.
        if self.dispatch_modes != current.dispatch_modes:
            torch_internals.set_dispatch_modes([])
        if self.function_modes != current.function_modes:
            torch_internals.set_function_modes([])
        if self.grad != current.grad:
            torch.set_grad_enabled(self.grad)
        if self.default_dtype != current.default_dtype:
            torch.set_default_dtype(self.default_dtype)
        if (self.autocast, self.autocast_cache) != (current.autocast, current.autocast_cache):
            for device, (enabled, dtype) in zip(_AUTOCAST_DEVICES, self.autocast, strict=True):
                torch.set_autocast_enabled(device, enabled)
                torch.set_autocast_dtype(device, dtype)
            torch.set_autocast_cache_enabled(self.autocast_cache)
            # It holds casts of parameters that the models may share, in this state's dtype or not.
            torch.clear_autocast_cache()
        torch_internals.set_default_device(self.device)
        if self.function_modes != current.function_modes:
            torch_internals.set_function_modes(self.function_modes)
        if self.dispatch_modes != current.dispatch_modes:
            torch_internals.set_dispatch_modes(self.dispatch_modes)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Puts this state back in force afterwards, whatever a model has left behind."""
        try:
            yield
        finally:
            if not self.is_in_force():
                self.apply(ThreadState.capture())

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Puts this state in force for a while.

        A hook may fire inside a `with` block of the model's own: autocast, grad or inference mode,
        a device context. The other side must not see it, and the model must find it again.
        """
        if self.is_in_force():
            yield
            return
        found = ThreadState.capture()
        with ExitStack() as guards:
            if found.inference != self.inference:
                guards.enter_context(torch.inference_mode(self.inference))
            self.apply(ThreadState.capture())
            try:
                yield
            finally:
                # Inference mode is left first: it brings back the dispatch keys of that moment.
                entered = ThreadState.capture()
                guards.close()
                found.apply(entered)


@dataclass(frozen=True, slots=True)
class RandomStates:
    """The states of the generators of random numbers that models draw from."""

    cpu: torch.Tensor
    cuda: tuple[torch.Tensor, ...]
    python: Any = None
    numpy: Any = None

    @classmethod
    def read(cls, *, beyond_torch: bool) -> "RandomStates":
        in_use = torch.cuda.is_initialized() and torch.cuda.is_available()
        return cls(
            cpu=torch.default_generator.get_state(),
            cuda=tuple(torch.cuda.get_rng_state_all()) if in_use else (),
            python=random.getstate() if beyond_torch else None,
            numpy=np.random.get_state() if beyond_torch else None,
        )

    def equals(self, other: "RandomStates") -> bool:
        """Whether nothing was drawn between them; they are of the same generators."""
        return (
            torch.equal(self.cpu, other.cpu)
            and (not self.cuda or all(map(torch.equal, self.cuda, other.cuda)))
            and (self.python is None or self.equals_beyond_torch(other))
        )

    def equals_beyond_torch(self, other: "RandomStates") -> bool:
        """The same for Python's and NumPy's generators."""
        numpy = zip(self.numpy or (), other.numpy or (), strict=True)
        return self.python == other.python and all(np.array_equal(*pair) for pair in numpy)

    def write(self) -> None:
        torch.default_generator.set_state(self.cpu)
        self.write_others()

    def write_others(self) -> None:
        """Those of all generators but the CPU's."""
        for index, state in enumerate(self.cuda):
            torch.cuda.set_rng_state(state, index)
        if self.python is not None:
            random.setstate(self.python)
        if self.numpy is not None:
            np.random.set_state(self.numpy)
