"""What a pair of calls costs, in counts: they say the same on every machine."""

import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from types import FrameType

import greenlet
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

import tracer
from benchmarks.speed import stack
from tracer.execution import hooks, walks


def pair(blocks: int) -> tuple[nn.Module, nn.Module]:
    made = stack(blocks)
    return made.reference, made.candidate


X = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(0))


def of_a_pair(count: Callable[[nn.Module, nn.Module], int]) -> float:
    """What a further pair of calls adds to a count, by the slope over the depth."""
    few, many = pair(4), pair(12)
    for models in (few, many):
        tracer.compare(*models, X)  # so that what is looked up once is known
    return (count(*many) - count(*few)) / (8 * 4)


@pytest.mark.covers
def test_calls_of_python() -> None:
    def count(*models: nn.Module) -> int:
        counts = Counter[str]()

        def note(_: FrameType, event: str, __: object) -> None:
            counts[event] += 1

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            tracer.compare(*models, X)
        finally:
            sys.setprofile(before)
        return counts["call"]

    assert of_a_pair(count) < 350


@pytest.mark.covers
def test_hand_overs() -> None:
    def count(*models: nn.Module) -> int:
        switches = 0

        def note(event: str, _: object) -> None:
            nonlocal switches
            switches += event == "switch"

        before = greenlet.settrace(note)
        try:
            tracer.compare(*models, X)
        finally:
            greenlet.settrace(before)
        return switches

    assert of_a_pair(count) == 8  # to each side and back, at the start and at the end


def test_walks_do_not_grow_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    walked = Counter[int]()
    for name in ("modules", "named_modules"):
        method = getattr(nn.Module, name)

        def counted(module: nn.Module, *args: object, _method=method, **kwargs: object) -> object:
            walked[depth] += not args and not module.training and len(module._modules) > 0
            return _method(module, *args, **kwargs)

        monkeypatch.setattr(nn.Module, name, counted)
    for name in ("modules_of", "named_modules_of"):
        function = getattr(walks, name)

        def counting(*models: nn.Module, _function=function) -> object:
            walked[depth] += 1
            return _function(*models)

        for module in [m for m in sys.modules.values() if getattr(m, name, None) is function]:
            monkeypatch.setattr(module, name, counting)
    for depth in (4, 12):
        tracer.compare(*pair(depth), X)
    assert walked[4] == walked[12] <= 24


def test_handles_of_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    found = RemovableHandle.__init__

    def noted(handle: RemovableHandle, *args: object, **kwargs: object) -> None:
        made.append(1)
        found(handle, *args, **kwargs)

    monkeypatch.setattr(RemovableHandle, "__init__", noted)
    attached: list[nn.Module] = []
    attach = hooks.attach_hooks
    monkeypatch.setattr(
        hooks, "attach_hooks", lambda module, *how: (attached.append(module), attach(module, *how))
    )
    models = pair(4)
    tracer.compare(*models, X, confirm=False)
    assert len(made) == 1  # its key is that of all
    assert len(attached) == sum(1 for model in models for _ in model.modules())


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, _, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_operations_of_pytorch() -> None:
    def count(*models: nn.Module) -> int:
        with Operations() as mode:
            tracer.compare(*models, X)
        traced = mode.count
        with torch.no_grad(), Operations() as mode:
            for model in models:
                model(X)
        return traced - mode.count

    assert of_a_pair(count) <= 25


@pytest.mark.covers
def test_what_is_kept_of_a_pair() -> None:
    def count(*models: nn.Module) -> int:
        tracemalloc.start()
        try:
            comparison = tracer.compare(*models, X)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert comparison.verdict.agrees
        return held

    assert of_a_pair(count) < 3_000  # bytes, of its rows
